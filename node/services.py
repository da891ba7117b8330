"""Which DIMSE-N operations the node performs, of which SOP classes, and who performs each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from node import commitment, mpps, statuses
from node.assurances import Assurances
from node.commitment import StorageCommitment
from node.errors import Retryable
from node.mpps import ProcedureSteps
from node.operation import Body, Operation, Outcome, Refusal
from node.pdata import N_ACTION_RQ, N_CREATE_RQ, N_EVENT_REPORT_RQ, N_SET_RQ

log = logging.getLogger(__name__)

Performers = Mapping[tuple[str, int], Callable[[Operation], Outcome]]

# What is negotiated beside Verification and storage.
SOP_CLASSES = (commitment.SOP_CLASS_UID, mpps.SOP_CLASS_UID)


class Services:
    """Performs operations by SOP class and command field.

    Parameters
    ----------
    limit
        Bytes that the data set of one operation may have.
    is_short_of_disk
        Asked before an operation that adds to the ledger.
    reports
        What `node.event_reports` brings to the associations that asked; None: nothing.
    """

    def __init__(
        self,
        performers: Performers,
        limit: int,
        reports: StorageCommitment | None = None,
        is_short_of_disk: Callable[[], bool] = lambda: False,
    ) -> None:
        self._performers = performers
        self._limit = limit
        self._is_short_of_disk = is_short_of_disk
        self.reports = reports

    def performs(self, sop_class_uid: str, field: int) -> bool:
        """Tell whether such an operation is performed at all."""
        return (sop_class_uid, field) in self._performers

    def body(self) -> Body:
        """Return where the data set of an operation is collected."""
        return Body(self._limit)

    def perform(self, operation: Operation) -> Outcome:
        """Perform an operation and return what the peer is told: a `Refusal` too, and that the node cannot for now."""
        origin = operation.origin
        try:
            if operation.data is None:
                raise Refusal(statuses.RESOURCE_LIMITATION, "the data set is over listener.max_message_mb")
            # What ends a procedure step that is known is taken: it costs little, and a scanner may say it only once.
            if operation.field in (N_ACTION_RQ, N_CREATE_RQ) and self._is_short_of_disk():
                raise Refusal(statuses.RESOURCE_LIMITATION, "less disk is free than listener.free_floor_mb")
            return self._performers[operation.sop_class_uid, operation.field](operation)
        except Refusal as refusal:
            outcome = refusal.outcome
            log.warning(
                "refused an operation %#06x from %s at %s: %s",
                operation.field,
                origin.calling_ae,
                origin.address,
                refusal,
            )
        except Retryable as error:
            outcome = Outcome(statuses.RESOURCE_LIMITATION, "the node cannot do it for now")
            log.error("refused an operation from %s at %s: %s", origin.calling_ae, origin.address, error)
        return outcome


def services(
    storage_commitment: StorageCommitment,
    assurances: Assurances,
    steps: ProcedureSteps,
    limit: int,
    is_short_of_disk: Callable[[], bool],
) -> Services:
    """Return all services of the node; `limit` in bytes."""
    return Services(
        {
            (commitment.SOP_CLASS_UID, N_ACTION_RQ): storage_commitment.request,
            (commitment.SOP_CLASS_UID, N_EVENT_REPORT_RQ): assurances.take,
            (mpps.SOP_CLASS_UID, N_CREATE_RQ): steps.create,
            (mpps.SOP_CLASS_UID, N_SET_RQ): steps.set,
        },
        limit,
        storage_commitment,
        is_short_of_disk,
    )


def report_taker(assurances: Assurances, limit: int) -> Callable[[Operation], Outcome]:
    """Return what takes reports on associations of our own; `limit` in bytes."""
    return Services({(commitment.SOP_CLASS_UID, N_EVENT_REPORT_RQ): assurances.take}, limit).perform
