"""Everything that can go wrong, as one tree with two branches.

::

    PennodeError
    ├── Retryable                 the same work may succeed later, unchanged
    │   ├── LedgerUnavailable     the database does not answer
    │   ├── BrokerUnavailable     the Celery broker does not take a message
    │   ├── NodeUnavailable       a worker cannot reach the node's worker API
    │   ├── PeerUnavailable       no association, or the peer is out of resources for now
    │   ├── OutOfDisk             the state folder is full, or nearly
    │   ├── ModelUnavailable      a worker cannot open a model that it has
    │   └── Damaged               bytes changed on their way between node and worker
    └── Permanent                 the same work fails again until somebody changes something
        ├── ConfigurationError    settings name something that does not exist or cannot work
        ├── InvalidInstance       received bytes are not the DICOM object they claim to be
        ├── InvalidRequest        a web request breaks its format
        ├── RequestTooLarge       a web request breaks a limit on its size
        ├── ProtocolViolation     a peer breaks the upper layer protocol, or one of its limits
        ├── Unsuitable            geometry or pixels of a series cannot be segmented
        ├── PeerRefused           the peer answers, and says no
        │   └── ClassRefused      it takes no object of this kind at all
        ├── LeaseLost             another worker holds this job by now
        ├── InvalidResult         a result bundle does not belong to its job, or is no valid object
        ├── EngineFailure         the network cannot be loaded or gives no usable answer
        └── NotFound              no such job, series or file

Foreign exceptions are translated into these at the door where they enter. The text of an error says what is wrong,
``next_step`` what to do; neither ever holds a patient's name or identifier.
"""

from __future__ import annotations


class PennodeError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    reason
        What is wrong, in words a technologist understands. No patient data.
    next_step
        What to do about it; empty when the reason says it already.
    """

    def __init__(self, reason: str, next_step: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.reason} ({self.next_step})" if self.next_step else self.reason


class Retryable(PennodeError):
    """The same work may succeed later, unchanged."""


class LedgerUnavailable(Retryable):
    """Raised when the database does not answer."""


class BrokerUnavailable(Retryable):
    """Raised when the Celery broker does not take a message."""


class NodeUnavailable(Retryable):
    """Raised when a worker cannot reach the node's worker API."""


class PeerUnavailable(Retryable):
    """Raised when there is no association, or the peer is out of resources for now."""


class OutOfDisk(Retryable):
    """Raised when the state folder is full, or nearly."""


class ModelUnavailable(Retryable):
    """Raised when a worker cannot open a model that it has; another worker may."""


class Damaged(Retryable):
    """Raised when bytes changed on their way between node and worker."""


class Permanent(PennodeError):
    """The same work fails again until somebody changes something."""


class ConfigurationError(Permanent):
    """Raised when settings name something that does not exist or cannot work."""


class InvalidInstance(Permanent):
    """Raised when received bytes are not the DICOM object they claim to be."""


class InvalidRequest(Permanent):
    """Raised when a web request breaks its format; it is answered with 400."""


class RequestTooLarge(Permanent):
    """Raised when a web request breaks a limit on its size; it is answered with 413."""


class ProtocolViolation(Permanent):
    """Raised when a peer breaks the upper layer protocol, or one of its limits; its association is aborted.

    Parameters
    ----------
    abort_reason
        What the A-ABORT says (PS3.8 table 9-26); see `node.statuses`.
    """

    def __init__(self, reason: str, abort_reason: int) -> None:
        super().__init__(reason)
        self.abort_reason = abort_reason


class Unsuitable(Permanent):
    """Raised when geometry or pixels of a series cannot be segmented; the job ends REJECTED."""


class PeerRefused(Permanent):
    """Raised when the peer answers, and says no."""


class ClassRefused(PeerRefused):
    """Raised when the peer takes no object of this SOP class, or none so encoded, whatever is in it."""


class LeaseLost(Permanent):
    """Raised when another worker holds this job by now; nothing of this attempt counts."""


class InvalidResult(Permanent):
    """Raised when a result bundle does not belong to its job, or is no valid object."""


class DeviceLost(Retryable):
    """Raised when a GPU has failed: this process cannot use it any more, another may."""


class EngineFailure(Permanent):
    """Raised when the network cannot be loaded or gives no usable answer."""


class NotFound(Permanent):
    """Raised when there is no such job, series or file."""
