"""Remember how it is known that a destination holds what it took, and when to look again."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; of what was sent before nothing is known, and nothing is asked."""
    for name in ("proved_at", "asked_at", "check_at", "read_back_at"):
        op.add_column("delivery", sa.Column(name, sa.Float, nullable=False, server_default="0"))
    for name in ("tries", "unanswered", "rechecked", "lost"):
        op.add_column("delivery", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    for name, kind in (
        ("proof", sa.String(32)),
        ("transaction_uid", sa.String(64)),
        ("wanted", sa.String(16)),
        ("doubt", sa.Text),
        ("read_back", sa.Text),
    ):
        op.add_column("delivery", sa.Column(name, kind, nullable=False, server_default=""))
    op.create_index("ix_delivery_check", "delivery", ["destination", "check_at"])
    op.create_index("ix_delivery_transaction_uid", "delivery", ["transaction_uid"])
