"""Let a series have a job for each model that it is for, and keep how shadows compare."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

# What the constraint is called: by PostgreSQL itself, and by alembic where SQLite has it without a name.
_ONE_JOB = "job_series_uid_revision_key"


def upgrade() -> None:
    """Add the columns and the table; what was there before is a series' only job, for its worker's default model."""
    # SQLite cannot drop a constraint: the table is made anew.
    naming = {"uq": "%(table_name)s_%(column_0_N_name)s_key"}
    with op.batch_alter_table("job", naming_convention=naming) as job:
        job.add_column(sa.Column("wanted_model", sa.String(64), nullable=False, server_default=""))
        job.add_column(sa.Column("shadow", sa.Boolean, nullable=False, server_default=sa.false()))
        job.drop_constraint(_ONE_JOB, type_="unique")
        job.create_unique_constraint("uq_job_series_revision_model", ["series_uid", "revision", "wanted_model"])
    shadow = sa.text("shadow")
    op.create_index("ix_job_shadow", "job", ["purged_at"], sqlite_where=sa.text("shadow = 1"), postgresql_where=shadow)
    op.add_column("worker", sa.Column("models", sa.JSON, nullable=False, server_default="[]"))
    op.create_table(
        "comparison",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("own_id", sa.String(32), nullable=False),
        sa.Column("own_fence", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("ix_comparison_own_id", "comparison", ["own_id"])
