"""Create the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    uid = sa.String(64)
    row_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table("identity", sa.Column("id", sa.String(32), primary_key=True))
    op.create_table(
        "instance",
        sa.Column("sop_uid", uid, primary_key=True),
        sa.Column("sop_class_uid", uid, nullable=False),
        sa.Column("series_uid", uid, nullable=False),
        sa.Column("study_uid", uid, nullable=False),
        sa.Column("transfer_syntax_uid", uid, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("called_ae", sa.String(16), nullable=False),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
        sa.Column("header", sa.JSON, nullable=False),
    )
    op.create_index("ix_instance_series_uid", "instance", ["series_uid"])
    op.create_index("ix_instance_path", "instance", ["path"])
    op.create_table(
        "series",
        sa.Column("series_uid", uid, primary_key=True),
        sa.Column("study_uid", uid, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("instances", sa.Integer, nullable=False),
        sa.Column("first_at", sa.Float, nullable=False),
        sa.Column("last_at", sa.Float, nullable=False),
        sa.Column("seal_reason", sa.Text, nullable=False),
    )
    op.create_index("ix_series_state", "series", ["state"])
    op.create_table(
        "job",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("series_uid", uid, nullable=False),
        sa.Column("study_uid", uid, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("next_step", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("instances", sa.Integer, nullable=False),
        sa.Column("input_digest", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("progress", sa.Float, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("dispatched_at", sa.Float, nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.Column("last_image_at", sa.Float, nullable=False),
        sa.Column("purged_at", sa.Float, nullable=False),
        sa.UniqueConstraint("series_uid", "revision"),
    )
    op.create_index("ix_job_series_uid", "job", ["series_uid"])
    op.create_index("ix_job_due", "job", ["state", "not_before"])
    op.create_index("ix_job_updated_at", "job", ["updated_at"])
    op.create_table(
        "result",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("sop_uid", uid, primary_key=True),
        sa.Column("sop_class_uid", uid, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    op.create_table(
        "delivery",
        sa.Column("id", row_id, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("sop_uid", uid, nullable=False),
        sa.Column("destination", sa.String(32), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("refusals", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.UniqueConstraint("job_id", "sop_uid", "destination"),
    )
    op.create_index("ix_delivery_due", "delivery", ["state", "not_before"])
    op.create_table(
        "journal",
        sa.Column("id", row_id, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("series_uid", uid, nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("before", sa.String(16), nullable=False),
        sa.Column("after", sa.String(16), nullable=False),
        sa.Column("by", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("ix_journal_series_uid", "journal", ["series_uid"])
    op.create_table(
        "worker",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
    )
