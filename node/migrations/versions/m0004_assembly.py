"""Keep how each series was weighed, and how its senders paused."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the tables of assembly, and tell by which association an image came."""
    op.add_column("instance", sa.Column("association", sa.Integer, nullable=False, server_default="0"))
    uid = sa.String(64)
    op.create_table(
        "weighing",
        sa.Column("series_uid", uid, primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("pieces", sa.JSON, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("last_at", sa.Float, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "rhythm",
        sa.Column("calling_ae", sa.String(16), primary_key=True),
        sa.Column("series_uid", uid, primary_key=True),
        sa.Column("longest_s", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
