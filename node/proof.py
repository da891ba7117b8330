"""Proof of delivery: asks each destination whether it holds what it took, again later, and reads back on request.

An object that a destination does not hold any more is sent again, visibly and a bounded number of times. What is known,
how and since when, stands in the ledger (`node.ledger.proofs`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import pydicom
from pydicom import Dataset
from pydicom.uid import generate_uid

from node.errors import ConfigurationError, InvalidInstance, PeerRefused, PeerUnavailable
from node.header import UNREADABLE
from node.inquiry import Sent, inquire
from node.ledger import Ledger
from node.operation import Operation, Outcome
from node.outgoing import describe
from node.readback import compare
from node.records import Delivery
from node.scu import Address
from node.settings import Delivery as Rules
from node.spool import Spool
from node.states import Proof, Wanted
from node.webinquiry import web_inquiry
from node.webservice import WebService

log = logging.getLogger(__name__)

_ROUND_S = 1.0
# Beyond the longest wait that the settings give; a later time is of a clock that was set back.
_SLACK_S = 60.0

Way = Literal["auto", "commitment", "query", "none"]
# Gets an object in a transfer syntax that we read; None: it is not there.
Fetch = Callable[[Sent, str], Dataset | None]


class Witness(Protocol):
    """Answers whether a destination holds objects; `query` is by what a query is known."""

    query: Proof
    commits: bool
    finds: bool

    def request_commitment(self, transaction_uid: str, objects: Sequence[Sent]) -> None:
        """Ask for storage commitment; `PeerRefused` and `PeerUnavailable` say that it was not taken."""

    def await_report(self, seconds: float) -> None:
        """Give a report the time to come at once."""

    def holds(self, sent: Sent) -> bool:
        """Tell whether the destination holds one object."""


@dataclass(frozen=True)
class Destination:
    """How one destination is asked, and read from."""

    name: str
    way: Way
    witness: Callable[[], AbstractContextManager[Witness]]
    fetch: Fetch


def dicom_destination(
    name: str, way: Way, peer: Address, timeout_s: float, report: Callable[[Operation], Outcome], fetch: Fetch
) -> Destination:
    """Return a destination that is asked by DIMSE; `report` takes storage commitment reports."""
    return Destination(name, way, partial(inquire, peer, timeout_s, report), fetch)


def web_destination(name: str, way: Way, service: WebService, timeout_s: float) -> Destination:
    """Return a destination that is asked by DICOMweb."""

    def fetch_by_wado(sent: Sent, _transfer_syntax_uid: str) -> Dataset:
        with web_inquiry(service, timeout_s) as inquiry:
            return inquiry.fetch(sent)

    return Destination(name, way, partial(web_inquiry, service, timeout_s), fetch_by_wado)


class Prover:
    """Asks one destination: with a prover for each, one that hangs holds up nobody else."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        destination: Destination,
        rules: Rules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._destination = destination
        self._rules = rules
        self._clock = clock
        longest = max(rules.backoff_max_s, 256 * rules.report_timeout_s, *rules.recheck_s, 0.0)
        self._longest_s = longest + _SLACK_S

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next."""
        asked: list[tuple[Delivery, Sent]] = []
        for item in self._ledger.due_proofs(now, self._destination.name, self._longest_s):
            path = self._spool.path(item.path)
            try:
                sent = read_sent(path)
            except InvalidInstance as error:
                self._ledger.no_proof(item.id, f"our own copy is gone: {error.reason}", self._clock())
                continue
            if item.wanted == Wanted.READ_BACK:
                self._read_back(item, sent, path)
            elif self._destination.way == "none":
                self._ledger.no_proof(item.id, 'no proof is asked for: proof = "none"', self._clock())
            else:
                asked.append((item, sent))
        if asked:
            self._ask(asked)
        return _ROUND_S

    @property
    def trouble(self) -> str:
        """What wants an admin; empty: nothing.

        Raises
        ------
        LedgerUnavailable
        """
        lost, doubtful, doubt = self._ledger.proof_trouble(self._destination.name)
        words = [f"{lost} object(s) that it had taken were not there: sent again"] if lost else []
        if doubtful:
            words.append(f"of {doubtful} object(s) it is not known whether it holds them: {doubt}")
        return "; ".join(words)

    def _ask(self, asked: Sequence[tuple[Delivery, Sent]]) -> None:
        late = {item.id for item, _ in asked if item.asked_at > item.proved_at and item.check_at <= self._clock()}
        if late:
            self._ledger.report_missing(sorted(late), self._unreported())
        waiting = {item.id for item, _ in asked}
        try:
            with self._destination.witness() as witness:
                by_query = []
                by_commitment = []
                for item, sent in asked:
                    silent = bool(item.unanswered or item.id in late)
                    if self._commits(witness, silent):
                        by_commitment.append((item, sent))
                    elif self._destination.way != "commitment" and witness.finds:
                        by_query.append((item, sent))
                    else:
                        self._without(item, silent)
                        waiting.discard(item.id)
                self._find(witness, by_query, waiting)
                if by_commitment:
                    self._commit(witness, by_commitment, waiting)
        except (PeerRefused, PeerUnavailable, ConfigurationError) as error:
            log.warning("%s cannot be asked what it holds: %s", self._destination.name, error)
            self._ledger.doubt(sorted(waiting), str(error), self._rules, self._clock())

    def _commits(self, witness: Witness, silent: bool) -> bool:
        """Tell whether to ask for storage commitment: not where a report failed to come and a query can be made."""
        way = self._destination.way
        return witness.commits and (way == "commitment" or (way == "auto" and not (silent and witness.finds)))

    def _without(self, item: Delivery, silent: bool) -> None:
        way = self._destination.way
        if way == "auto" and not silent:
            self._ledger.no_proof(item.id, "the peer offers no proof", self._clock())
            return
        lacks = {"commitment": "Storage Commitment", "query": "queries"}.get(way, "Storage Commitment any more")
        doubt = f"it does not accept {lacks} (let it accept that from our AE title, or change proof)"
        self._ledger.doubt([item.id], doubt, self._rules, self._clock())

    def _find(self, witness: Witness, asked: Sequence[tuple[Delivery, Sent]], waiting: set[int]) -> None:
        for item, sent in asked:
            try:
                held, now = witness.holds(sent), self._clock()
            except PeerRefused as error:  # of this object; of the others it may tell
                log.warning("%s does not tell of an object of job=%s: %s", self._destination.name, item.job_id, error)
                self._ledger.doubt([item.id], str(error), self._rules, self._clock())
                waiting.discard(item.id)
                continue
            if held:
                self._ledger.proved(item.id, witness.query, self._rules, now)
            elif item.proved_at == 0 and now - item.updated_at < self._rules.proof_patience_s:
                self._ledger.doubt([item.id], f"not found by {witness.query} yet", self._rules, now)
            else:
                log.warning("%s does not hold an object of job=%s", self._destination.name, item.job_id)
                self._ledger.not_held(item.id, f"not found by {witness.query}", self._rules, now)
            waiting.discard(item.id)

    def _commit(self, witness: Witness, asked: Sequence[tuple[Delivery, Sent]], waiting: set[int]) -> None:
        ids = [item.id for item, _ in asked]
        transaction_uid = generate_uid(prefix=None)
        self._ledger.commitment_asked(ids, transaction_uid, self._rules, self._clock())
        try:
            witness.request_commitment(transaction_uid, [sent for _, sent in asked])
        except PeerRefused as error:
            self._ledger.doubt(ids, str(error), self._rules, self._clock(), unanswered=1)
            waiting.difference_update(ids)
            if self._destination.way == "auto" and witness.finds:
                self._find(witness, asked, set())
        else:
            waiting.difference_update(ids)
            log.info("asked %s for storage commitment of %d object(s)", self._destination.name, len(ids))
            witness.await_report(self._rules.report_pause_s)

    def _unreported(self) -> str:
        return (
            f"no report of storage commitment came within {self._rules.report_timeout_s:g} s: it must know our AE "
            "title and where we listen, and stand in [[peers]]"
        )

    def _read_back(self, item: Delivery, sent: Sent, path: Path) -> None:
        name, rules = self._destination.name, self._rules
        words: str
        equal: bool | None = None
        try:
            copy = self._destination.fetch(sent, describe(path).transfer_syntax_uid)
            if copy is None:
                self._ledger.not_held(item.id, "nothing came when it was read back", rules, self._clock())
                return
            found = compare(pydicom.dcmread(path), copy)
            equal, words = found.is_equal, found.words()
        except (PeerRefused, PeerUnavailable, ConfigurationError, InvalidInstance) as error:
            words = f"could not be read back: {error}"
        log.info("job=%s at %s: %s", item.job_id, name, words)
        self._ledger.read_back(item.id, words, equal, rules, self._clock())


def read_sent(path: Path) -> Sent:
    """Read from a result's file by what a peer knows it.

    Raises
    ------
    InvalidInstance
        It cannot be read.
    """
    outgoing = describe(path)
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
        return Sent(outgoing.sop_class_uid, outgoing.sop_uid, str(ds.SeriesInstanceUID), str(ds.StudyInstanceUID))
    except (*UNREADABLE, AttributeError) as error:
        raise InvalidInstance(f"{path.name} cannot be read ({type(error).__name__})", "") from error
