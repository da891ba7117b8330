"""Remember storage commitment requests and performed procedure steps."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create their tables."""
    uid = sa.String(64)
    row_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "commitment",
        sa.Column("number", row_id, primary_key=True, autoincrement=True),
        sa.Column("transaction_uid", uid, nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("references", sa.JSON, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("requested", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("next_step", sa.Text, nullable=False),
        sa.Column("asked_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.UniqueConstraint("calling_ae", "transaction_uid"),
    )
    op.create_index("ix_commitment_due", "commitment", ["state", "not_before"])
    op.create_table(
        "procedure_step",
        sa.Column("sop_uid", uid, primary_key=True),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("study_uids", sa.JSON, nullable=False),
        sa.Column("started", sa.String(32), nullable=False),
        sa.Column("ended", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
    )
    op.create_index("ix_procedure_step_created_at", "procedure_step", ["created_at"])
    op.create_table(
        "performed_series",
        sa.Column("step_uid", uid, primary_key=True),
        sa.Column("series_uid", uid, primary_key=True),
        sa.Column("sop_uids", sa.JSON, nullable=False),
    )
    op.create_index("ix_performed_series_series_uid", "performed_series", ["series_uid"])
