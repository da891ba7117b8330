"""The nouns of the ledger: states as tables, and frozen records of what was received, decided and sent.

No record holds a patient's name or identifier: the node never needs one to do its work.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from node.states import DeliveryState, JobState, SeriesState

# PS3.5 section 9.1: digits and dots, at most 64 characters. Leading zeros are forbidden there but common in the field,
# and harmless; anything else could become a path.
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")

# Namespace of every derived UID; changing it changes the identity of all results ever sent.
_NAMESPACE = uuid.UUID("5d0f3a52-7c1e-5b7e-9f0a-2f6f2c1d9b11")

# A worker says that it lives every 15 s; after three misses it does not count.
WORKER_SILENT_S = 50.0

RESEARCH_NOTICE = "For research use only. Not for diagnosis."


def is_uid(text: str) -> bool:
    """Tell whether `text` is a UID by PS3.5 section 9.1 (leading zeros of a component tolerated)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def derived_uid(*parts: str) -> str:
    """Return the UID, under the 2.25 root (PS3.5 B.2), that these parts always give.

    A result sent twice is thereby the same object; a result of another input or model is another one.
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def input_digest(instances: Iterable[tuple[str, str]]) -> str:
    """Return one sha256 over `(SOP Instance UID, sha256 of the data set)` pairs, whatever their order."""
    digest = hashlib.sha256()
    for sop_uid, sha256 in sorted(instances):
        digest.update(f"{sop_uid} {sha256}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Header:
    """What assembly and selection need of one instance, read from its first kilobytes.

    Lengths in mm; positions and direction cosines in the patient's LPS system (PS3.3 C.7.6.2). ``None`` or an empty
    value: the attribute is absent.
    """

    modality: str = ""
    image_type: tuple[str, ...] = ()
    series_description: str = ""
    protocol_name: str = ""
    study_description: str = ""
    body_part: str = ""
    contrast_agent: str = ""
    sequence_name: str = ""
    manufacturer: str = ""
    frame_of_reference_uid: str = ""
    instance_number: int | None = None
    acquisition_number: int | None = None
    images_in_acquisition: int | None = None
    temporal_position: int | None = None
    temporal_positions: int | None = None
    concatenation_total: int | None = None
    number_of_frames: int = 1
    rows: int = 0
    columns: int = 0
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    pixel_spacing: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the ledger's JSON column, empty ones left out."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if v not in ("", (), None)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Header:
        """Return the header kept by `to_json`; keys of another version are ignored."""
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in cls.__dataclass_fields__
        }
        return cls(**known)


@dataclass(frozen=True)
class Instance:
    """One received SOP instance: who sent it, where its bytes lie, and its header. Times in seconds since 1970.

    `association` numbers the one that brought it, within one run of the node.
    """

    sop_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax_uid: str
    sha256: str
    size: int
    path: str
    calling_ae: str
    called_ae: str
    peer: str
    received_at: float
    header: Header = field(default_factory=Header)
    association: int = 0


@dataclass(frozen=True)
class Series:
    """One series as the ledger knows it. `revision` counts the seals; `instances` those received so far."""

    series_uid: str
    study_uid: str
    state: SeriesState
    revision: int
    calling_ae: str
    instances: int
    first_at: float
    last_at: float
    seal_reason: str = ""


@dataclass(frozen=True)
class PerformedSeries:
    """What MPPS says of one series: the state of its procedure step, and the images it lists as made (PS3.3 C.4.14)."""

    series_uid: str
    state: str  # IN PROGRESS, COMPLETED or DISCONTINUED (0040,0252)
    sop_uids: frozenset[str]


@dataclass(frozen=True)
class Job:
    """One revision of one series on its way to the PACS. Times in seconds since 1970.

    `wanted_model` is the model it is for, by name; empty: the default of whichever worker takes it. A `shadow` runs
    beside the series' own job, and nothing of it is sent.
    """

    id: str
    series_uid: str
    study_uid: str
    revision: int
    state: JobState
    stage: str
    reason: str
    next_step: str
    priority: int
    fence: int
    attempts: int
    calling_ae: str
    description: str
    instances: int
    input_digest: str
    model: str
    worker: str
    progress: float
    not_before: float
    created_at: float
    updated_at: float
    last_image_at: float
    wanted_model: str = ""
    shadow: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json` and the worker API."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """One result object in the spool. `form` is the key of its recipe (`node.forms`)."""

    sop_uid: str
    sop_class_uid: str
    job_id: str
    path: str
    size: int
    sha256: str
    form: str = "SEG"


@dataclass(frozen=True)
class Delivery:
    """One result object on its way to one destination, on one of its rungs (`node.forms`).

    `proof` says how it was known at `proved_at` that the destination holds it, empty: not yet, and `doubt` why not.
    `asked_at` is when a storage commitment was asked for that is not reported, else 0. `check_at`: the next look, 0:
    none. `lost` counts how often the destination did not hold what it had taken. `read_back` is what reading it back
    gave, at `read_back_at`. Times in seconds since 1970.
    """

    id: int
    job_id: str
    sop_uid: str
    destination: str
    path: str
    state: DeliveryState
    attempts: int
    not_before: float
    reason: str
    updated_at: float
    form: str = "SEG"
    rung: int = 0
    proof: str = ""
    proved_at: float = 0.0
    asked_at: float = 0.0
    check_at: float = 0.0
    tries: int = 0
    unanswered: int = 0
    lost: int = 0
    wanted: str = ""
    doubt: str = ""
    read_back: str = ""
    read_back_at: float = 0.0

    @property
    def is_held(self) -> bool:
        """Whether it is known that the destination holds the object."""
        return self.state is DeliveryState.COMMITTED


def known_at(deliveries: Sequence[Delivery]) -> float | None:
    """Return since when it is known that every destination holds all results of a job; None: it is not."""
    counting = [d for d in deliveries if d.state not in (DeliveryState.REPLACED, DeliveryState.CANCELLED)]
    held = bool(counting) and all(d.is_held for d in counting)
    return min(d.proved_at for d in counting) if held else None


@dataclass(frozen=True)
class JournalEntry:
    """One line of history: what moved, from where to where, by whom, and why."""

    at: float
    series_uid: str
    job_id: str
    subject: str
    before: str
    after: str
    by: str
    text: str


@dataclass(frozen=True)
class Worker:
    """A worker as last heard of: its default model, and all that it has, each as name and version."""

    name: str
    seen_at: float
    version: str
    device: str
    model: str
    models: tuple[str, ...] = ()

    @property
    def served(self) -> frozenset[str]:
        """Names of models whose jobs it takes; the empty one is of jobs that name none."""
        return frozenset({"", *(model.partition(" ")[0] for model in self.models)})


@dataclass(frozen=True)
class Claim:
    """A job in a worker's hands: it may write under this fence until the lease ends, and renews it by heartbeats.

    `forms` are the keys of what is to be made (`node.forms.Recipe`), `model` names what to make it with; empty: the
    worker's default.
    """

    job_id: str
    fence: int
    lease_s: float
    series_uid: str
    study_uid: str
    input_digest: str
    instances: int
    attempt: int
    forms: tuple[str, ...] = ("SEG",)
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the worker API."""
        return asdict(self)
