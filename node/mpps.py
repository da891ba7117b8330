"""Modality Performed Procedure Step (PS3.4 F.7): a scanner tells what it does, and which images it has made.

Of what it tells, only UIDs, the state and the times are kept: no patient, no protocol. The list of images is evidence
of what a series should hold.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

from pydicom import Dataset

from node import statuses
from node.ledger import Ledger, ProcedureStep, StepChange, StepState
from node.operation import Operation, Outcome, Refusal, items, text, uid
from node.records import is_uid

log = logging.getLogger(__name__)

SOP_CLASS_UID = "1.2.840.10008.3.1.2.3.3"
# Steps that are IN PROGRESS, of one calling AE and in all. A scanner has one or two; forgotten ones go with retention.
MOST_OPEN_OF_ONE, MOST_OPEN = 1000, 10_000
_IMAGES = ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence")
_DATE, _TIME = re.compile(r"[0-9]{8}"), re.compile(r"[0-9]{2}([0-9]{2}){0,2}(\.[0-9]{1,6})?")


class ProcedureSteps:
    """Takes N-CREATE and N-SET.

    Parameters
    ----------
    changed
        Called when a change was committed, so that assembly looks again.
    """

    def __init__(self, ledger: Ledger, changed: Callable[[], None], now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._changed = changed
        self._now = now

    def create(self, operation: Operation) -> Outcome:
        """Answer an N-CREATE (PS3.4 F.7.2.1): a new step, IN PROGRESS.

        Raises
        ------
        Refusal, LedgerUnavailable
        """
        made = "" if operation.sop_uid else f"2.25.{uuid.uuid4().int}"
        sop_uid = operation.sop_uid or made
        if not is_uid(sop_uid):
            raise Refusal(statuses.INVALID_SOP_INSTANCE, "the SOP Instance UID is no UID")
        ds = operation.data_set()
        if _state(ds, required=True) is not StepState.IN_PROGRESS:
            raise Refusal(statuses.INVALID_ATTRIBUTE_VALUE, "PerformedProcedureStepStatus must be IN PROGRESS")
        scheduled = items(ds, "ScheduledStepAttributesSequence")
        if not scheduled:
            raise Refusal(statuses.MISSING_ATTRIBUTE, "ScheduledStepAttributesSequence is missing or empty")
        studies = dict.fromkeys(uid(item, "StudyInstanceUID", statuses.INVALID_ATTRIBUTE_VALUE) for item in scheduled)
        now, origin = self._now(), operation.origin
        of_one, of_all = self._ledger.open_steps(origin.calling_ae)
        if of_one >= MOST_OPEN_OF_ONE or of_all >= MOST_OPEN:
            raise Refusal(statuses.RESOURCE_LIMITATION, "too many procedure steps are IN PROGRESS already")
        step = ProcedureStep(
            sop_uid=sop_uid, calling_ae=origin.calling_ae, peer=origin.address, state=StepState.IN_PROGRESS,
            study_uids=tuple(studies), started=_moment(ds, "Start"), ended="", created_at=now, updated_at=now,
        )  # fmt: skip
        if not self._ledger.create_step(step, _images(ds)):
            raise Refusal(statuses.DUPLICATE_SOP_INSTANCE, "this procedure step exists already")
        log.info("procedure step=%s from=%s: created", sop_uid, origin.calling_ae)
        return Outcome(statuses.SUCCESS, made=made)

    def set(self, operation: Operation) -> Outcome:
        """Answer an N-SET (PS3.4 F.7.2.2), after which a step that is COMPLETED or DISCONTINUED is final.

        Raises
        ------
        Refusal, LedgerUnavailable
        """
        ds = operation.data_set()
        if not ds:
            raise Refusal(statuses.MISSING_ATTRIBUTE, "the Modification List is empty")
        state = _state(ds, required=False)
        images = _images(ds) if "PerformedSeriesSequence" in ds else None
        if not is_uid(operation.sop_uid):
            raise Refusal(statuses.NO_SUCH_SOP_INSTANCE, "there is no such procedure step")
        change = self._ledger.change_step(operation.sop_uid, state, images, _moment(ds, "End"), self._now())
        if change is StepChange.UNKNOWN:
            raise Refusal(statuses.NO_SUCH_SOP_INSTANCE, "there is no such procedure step")
        if change is StepChange.FINAL:
            raise Refusal(
                statuses.PROCESSING_FAILURE, "Performed Procedure Step Object may no longer be updated",
                statuses.NO_LONGER_UPDATED,
            )  # fmt: skip
        log.info(
            "procedure step=%s from=%s: %s", operation.sop_uid, operation.origin.calling_ae, state or "more is told"
        )
        self._changed()
        return Outcome(statuses.SUCCESS)


def _state(ds: Dataset, *, required: bool) -> StepState | None:
    keyword = "PerformedProcedureStepStatus"
    if keyword not in ds:
        if required:
            raise Refusal(statuses.MISSING_ATTRIBUTE, f"{keyword} is missing")
        return None
    value = text(ds, keyword)
    if not value:
        raise Refusal(statuses.MISSING_ATTRIBUTE_VALUE, f"{keyword} is empty")
    try:
        return StepState(value)
    except ValueError as error:
        raise Refusal(statuses.INVALID_ATTRIBUTE_VALUE, f"{keyword} is no defined term") from error


def _images(ds: Dataset) -> dict[str, frozenset[str]]:
    """Return the SOP Instance UIDs that each series of the Performed Series Sequence lists, by Series Instance UID."""
    found: dict[str, frozenset[str]] = {}
    for series in items(ds, "PerformedSeriesSequence"):
        series_uid = uid(series, "SeriesInstanceUID", statuses.INVALID_ATTRIBUTE_VALUE)
        listed = frozenset(
            uid(image, "ReferencedSOPInstanceUID", statuses.INVALID_ATTRIBUTE_VALUE)
            for keyword in _IMAGES
            for image in items(series, keyword)
        )
        found[series_uid] = found.get(series_uid, frozenset()) | listed
    return found


def _moment(ds: Dataset, which: str) -> str:
    """Return Performed Procedure Step Start or End Date and Time, joined; empty where absent or ill-formed."""
    date, clock = (text(ds, f"PerformedProcedureStep{which}{part}") for part in ("Date", "Time"))
    if not _DATE.fullmatch(date):
        return ""
    return date + clock if _TIME.fullmatch(clock) else date
