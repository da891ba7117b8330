"""Remember what people had fetched from an archive, series by series."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the tables."""
    uid = sa.String(64)
    row_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "study_fetch",
        sa.Column("number", row_id, primary_key=True, autoincrement=True),
        sa.Column("archive", sa.String(32), nullable=False),
        sa.Column("study_uid", uid, nullable=False),
        sa.Column("wanted", sa.JSON, nullable=False),
        sa.Column("asked_by", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("warned", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("next_step", sa.Text, nullable=False),
        sa.Column("asked_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_index("ix_study_fetch_due", "study_fetch", ["state", "archive"])
    op.create_table(
        "fetched_series",
        sa.Column("fetch_number", row_id, primary_key=True, autoincrement=False),
        sa.Column("series_uid", uid, primary_key=True),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("description", sa.String(64), nullable=False),
        sa.Column("announced", sa.Integer, nullable=True),
        sa.Column("left_out", sa.Text, nullable=False),
    )
    op.create_index("ix_fetched_series_series_uid", "fetched_series", ["series_uid"])
