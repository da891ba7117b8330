"""The ledger: the truth about every series, job and delivery, and about what peers announce and ask."""

from node.ledger.callers import CallerNotes
from node.ledger.commitments import Asked, Commitment, Commitments, CommitmentState, Held, Reference
from node.ledger.database import Database
from node.ledger.deliveries import Deliveries
from node.ledger.earlier import Earlier
from node.ledger.fetches import Announcement, Fetch, FetchedSeries, Fetches, FetchState
from node.ledger.intake import Intake
from node.ledger.jobs import Jobs
from node.ledger.operator import Operator
from node.ledger.proofs import Proofs, Trouble
from node.ledger.recording import Receipt, Recorded
from node.ledger.shadows import Shadows
from node.ledger.steps import ProcedureStep, StepChange, Steps, StepState
from node.ledger.views import Views
from node.ledger.weighings import Weighings


class Ledger(
    Intake,
    Jobs,
    Operator,
    Shadows,
    Deliveries,
    Earlier,
    Proofs,
    Commitments,
    Steps,
    Weighings,
    Views,
    CallerNotes,
    Fetches,
):
    """All that is remembered, in one database. Safe to use from several threads and, on one host, processes.

    Parameters
    ----------
    url
        A SQLAlchemy URL, ``sqlite:///…`` or ``postgresql://…``.

    Raises
    ------
    ConfigurationError
        The URL cannot be used.
    LedgerUnavailable
        By every method, when the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._db = Database(url)

    def migrate(self) -> None:
        """Bring the tables to this version."""
        self._db.migrate()

    def claim_alone(self) -> None:
        """Make this ledger ours alone, for as long as the process lives; see `Database.claim_alone`."""
        self._db.claim_alone()

    def close(self) -> None:
        """Close all connections."""
        self._db.close()


__all__ = [
    "Announcement", "Asked", "Commitment", "CommitmentState", "Fetch", "FetchState", "FetchedSeries", "Held", "Ledger",
    "ProcedureStep", "Receipt", "Recorded", "Reference", "StepChange", "StepState", "Trouble",
]  # fmt: skip
