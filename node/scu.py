"""Sending objects to a peer by C-STORE, and reports by N-EVENT-REPORT, with a word of why it does not take them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pydicom
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context

from node.errors import ClassRefused, InvalidInstance, PeerRefused, PeerUnavailable
from node.header import UNREADABLE
from node.outgoing import Outgoing
from node.settings import Secured
from node.tls import client_context

# PS3.8 9.3.4: result and reason of an A-ASSOCIATE-RJ from the service user, in words.
_USER_REJECTS = {
    1: ("no reason given", "ask the peer's administrator"),
    2: ("it does not know this application context", "ask the peer's administrator"),
    3: ("it does not know our AE title", "add our AE title to the peer's configuration"),
    7: ("it does not know the AE title we called", "check its ae_title in the settings"),
}
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_DUPLICATE = 0x0111
# PS3.7 C.5.6 "SOP class not supported", and 0xA8xx, which earlier editions of PS3.4 B.2.3 had for it. Not 0xA9xx, "data
# set does not match SOP class": who says so takes the class, and finds fault with this one object.
_CLASS_NOT_SUPPORTED, _CLASS_NOT_SUPPORTED_BEFORE = 0x0122, 0xA8
_SYNTAXES_NOT_SUPPORTED = 0x04  # PS3.8 table 9-18: why a context is refused
_MAX_CONTEXTS = 128


@dataclass(frozen=True)
class Address:
    """Where a peer listens, by which titles we speak, and whether over TLS."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    security: Secured = field(default_factory=Secured)

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"

    @contextlib.contextmanager
    def opened(self, files: Sequence[Outgoing], timeout_s: float) -> Iterator[Callable[[Outgoing], str]]:
        """Open an association for these files, and yield what sends one of them; raises as `associate` and `send`."""
        with associate(self, contexts_for(files), timeout_s) as association:
            yield partial(send, association)


@contextlib.contextmanager
def associate(
    peer: Address,
    contexts: Sequence[PresentationContext],
    timeout_s: float,
    as_scp: Sequence[str] = (),
    handlers: Sequence[tuple[Any, Callable[[Any], Any]]] = (),
    max_pdu: int = 0,
) -> Iterator[Association]:
    """Open an association, and release it at the end. Of the SOP classes in `as_scp` we propose to be the SCP.

    `handlers` are called for pynetdicom's events, in the association's own thread. `max_pdu` is the longest PDU that we
    take, in bytes; 0: any.

    Raises
    ------
    PeerUnavailable
        Nobody answers, or the peer rejects us for now.
    PeerRefused
        The peer rejects us for good, with its reason in words; `ClassRefused`: it accepts no presentation context.
    ConfigurationError
        A file that its `security` names cannot be used.
    """
    secured = client_context(peer.security)
    ae = AE(ae_title=peer.calling_ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = timeout_s
    ae.maximum_pdu_size = max_pdu
    name = peer.security.tls_server_name or peer.host
    roles: list[Any] = [build_role(sop_class, scp_role=True) for sop_class in as_scp]
    try:
        association = ae.associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            ext_neg=roles,
            evt_handlers=[(evt.EVT_CONN_OPEN, partial(_limit_waits, timeout_s)), *handlers],
            tls_args=(secured, name) if secured else None,
        )
    except OSError as error:
        raise PeerUnavailable(f"{peer} cannot be found ({error.strerror})", "check its address and the DNS") from error
    connection = association.dul.socket and association.dul.socket.socket
    if not association.is_established:
        if secured is not None:
            secured.close()
        if secured is not None and secured.trouble:
            raise PeerUnavailable(
                f"{peer} and we have no TLS: {secured.trouble}", "check the certificates on both sides"
            )
        _raise_unassociated(association, peer, as_scp)
    try:
        _check_answer(association, peer)
        yield association
    finally:
        if association.is_established:
            association.release()
        # pynetdicom shuts a socket down before it closes it; with the peer gone the first fails and skips the second.
        if connection is not None:
            connection.close()


def _check_answer(association: Association, peer: Address) -> None:
    """Raise `PeerUnavailable` for a context that was not proposed so (PS3.8 9.3.3): pynetdicom stumbles over it."""
    proposed = {context.context_id: context.transfer_syntax for context in association.requestor.requested_contexts}
    for context in association.accepted_contexts:
        if not set(context.transfer_syntax) <= set(proposed.get(context.context_id) or ()):
            association.abort()
            raise PeerUnavailable(
                f"{peer} accepted a transfer syntax that was not proposed", "it is tried again; look into its log"
            )


def _limit_waits(timeout_s: float, event: Any) -> None:
    """Have a peer that stops within a PDU, or reads no more, be one that hung up: pynetdicom would wait for ever."""
    event.assoc.dul.socket.socket.settimeout(timeout_s)


def _raise_unassociated(association: Association, peer: Address, as_scp: Sequence[str]) -> None:
    if association.rejected_contexts:
        if as_scp:
            raise PeerRefused(f"{peer} does not accept {UID(as_scp[0]).name}", "let it accept that from our AE title")
        if all(context.result == _SYNTAXES_NOT_SUPPORTED for context in association.rejected_contexts):
            raise ClassRefused(f"{peer} accepts none of the transfer syntaxes we propose", "set compression to none")
        raise ClassRefused(f"{peer} accepts none of the SOP classes that we propose", "let it accept them")
    # pynetdicom takes a peer that rejects at once for one that is gone, and leaves its answer where it came in.
    answer: Any = association.acceptor.primitive or association.dul.receive_pdu(wait=False)
    if not (association.is_rejected or (isinstance(answer, A_ASSOCIATE) and answer.result)):
        # By TLS 1.3 a peer finds our certificate bad only when we believe the handshake done, and then just closes.
        whether = "; whether it takes our TLS certificate" if peer.security.tls else ""
        step = f"check that it runs, its address, and the firewall{whether}"
        raise PeerUnavailable(f"{peer} does not answer", step)
    permanent = answer is not None and answer.result == 0x01
    if permanent and answer.result_source == 0x01:
        why, what = _USER_REJECTS.get(answer.diagnostic, ("no reason known", "ask the peer's administrator"))
        raise PeerRefused(f"{peer} rejects us: {why}", what)
    raise PeerUnavailable(f"{peer} rejects us for now", "it may be too busy")


@contextlib.contextmanager
def associate_as_scp(peer: Address, sop_class_uid: str, timeout_s: float) -> Iterator[Association]:
    """Open an association on which we are the SCP of one SOP class, though we ask for it (PS3.7 D.3.3.4).

    A peer that leaves our proposal of roles without an answer is taken to agree: many know no role negotiation, and
    either take what an SCP sends or refuse that.

    Raises
    ------
    PeerUnavailable, PeerRefused
        As `associate`; PeerRefused also where the peer lets us be no SCP.
    """
    contexts = [build_context(sop_class_uid, syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)]
    with associate(peer, contexts, timeout_s, as_scp=[sop_class_uid]) as association:
        role = association.acceptor.role_selection.get(UID(sop_class_uid))
        if role is not None and not role.scp_role:
            raise PeerRefused(
                f"{peer} lets us be no SCP of {UID(sop_class_uid).name}", "let it accept the SCP role from our AE title"
            )
        yield association


def send_event_report(
    association: Association, sop_class_uid: str, sop_uid: str, event_type: int, information: pydicom.Dataset
) -> int:
    """Send one N-EVENT-REPORT (PS3.7 section 10.1.1) and return the status it is answered with.

    Raises
    ------
    PeerUnavailable
        The association broke, or there was no answer.
    """
    try:
        answer, _ = association.send_n_event_report(information, event_type, sop_class_uid, sop_uid)
    except (RuntimeError, ValueError) as error:
        raise PeerUnavailable("the association broke", "it is tried again") from error
    if "Status" not in answer:
        raise PeerUnavailable("no answer to N-EVENT-REPORT", "check the peer's log")
    return int(answer.Status)


def send(association: Association, outgoing: Outgoing) -> str:
    """Send one file and return a note; the association has a context for it.

    Raises
    ------
    PeerUnavailable
        The association broke, or the peer is out of resources (0xA7xx).
    ClassRefused
        The peer accepted no presentation context for it, or answered that it takes no object of its SOP class.
    PeerRefused
        The peer answered with another failure.
    InvalidInstance
        The file cannot be read, or not be encoded.
    """
    _check_context(association, outgoing)
    with warnings.catch_warnings():
        # pydicom warns of values another system encoded oddly; they are sent as they are.
        warnings.simplefilter("ignore", UserWarning)
        try:
            ds = pydicom.dcmread(outgoing.path)
        except UNREADABLE as error:
            raise InvalidInstance(f"{outgoing.path.name} cannot be read ({type(error).__name__})", "") from error
        try:
            response = association.send_c_store(ds)
        except ValueError as error:
            raise InvalidInstance(f"{outgoing.path.name} cannot be encoded", "report it") from error
        except AttributeError as error:
            raise InvalidInstance(f"{outgoing.path.name} is not a whole DICOM file", "") from error
        except RuntimeError as error:
            raise PeerUnavailable("the association broke", "it is tried again") from error
    status = response.get("Status")
    if status is None:
        raise PeerUnavailable("no answer to C-STORE", "check the peer's log")
    if status == _DUPLICATE:
        return "the peer had this object already (0x0111)"
    if status == 0x0000:
        return "stored (0x0000)"
    if status >> 12 == 0xB:
        return f"stored with a warning (0x{status:04X})"
    if status >> 8 == 0xA7:
        raise PeerUnavailable(f"the peer is out of resources (0x{status:04X})", "free its disk")
    if status == _CLASS_NOT_SUPPORTED or status >> 8 == _CLASS_NOT_SUPPORTED_BEFORE:
        raise ClassRefused(f"the peer answered 0x{status:04X}, SOP class not supported", "let it accept the class")
    raise PeerRefused(f"the peer answered 0x{status:04X}", "look into the peer's log")


def _check_context(association: Association, outgoing: Outgoing) -> None:
    """Raise `ClassRefused` where no accepted context fits a file, which is told apart from one that cannot be sent."""
    wanted = outgoing.transfer_syntax_uid
    fitting = {wanted, *_instead_of(wanted)}
    mine = [c for c in association.accepted_contexts if c.abstract_syntax == outgoing.sop_class_uid]
    if any(syntax in fitting for context in mine for syntax in context.transfer_syntax):
        return
    name = UID(outgoing.sop_class_uid).name
    refused = [c.result for c in association.rejected_contexts if c.abstract_syntax == outgoing.sop_class_uid]
    if mine or _SYNTAXES_NOT_SUPPORTED in refused:
        raise ClassRefused(
            f"it accepts no presentation context for {name} in {UID(wanted).name}", "set compression to none"
        )
    raise ClassRefused(f"it accepts no presentation context for {name}", "let the destination accept its SOP class")


def contexts_for(files: Sequence[Outgoing]) -> list[PresentationContext]:
    """Return one presentation context for each pair of SOP class and transfer syntax, as the files are encoded.

    Uncompressed and deflated files are offered in both little endian syntaxes too: every peer must take Implicit VR
    (PS3.5 10.1), and pynetdicom encodes them anew.
    """
    pairs = dict.fromkeys((f.sop_class_uid, f.transfer_syntax_uid) for f in files)
    pairs |= dict.fromkeys((c, other) for c, syntax in list(pairs) for other in _instead_of(syntax))
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs][:_MAX_CONTEXTS]


def _instead_of(syntax: str) -> tuple[str, ...]:
    return _PLAIN if syntax in (*_PLAIN, DeflatedExplicitVRLittleEndian) else ()


def send_files(
    files: Sequence[Outgoing], peer: Address, timeout_s: float, progress: Callable[[Outgoing, str], None]
) -> list[tuple[Outgoing, str]]:
    """Send many files over one association; return those refused, each with the reason.

    Raises
    ------
    PeerUnavailable, PeerRefused
        There is no association, or it broke.
    """
    refused: list[tuple[Outgoing, str]] = []
    with associate(peer, contexts_for(files), timeout_s) as association:
        for outgoing in files:
            try:
                progress(outgoing, send(association, outgoing))
            except (PeerRefused, InvalidInstance) as error:
                refused.append((outgoing, str(error)))
                progress(outgoing, str(error))
    return refused
