"""Tell of what form each result is, on which rung of its destination, and in what frame of reference."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns; what was made before is a BINARY Segmentation, in the frame of reference of its images."""
    for table in ("result", "delivery"):
        op.add_column(table, sa.Column("form", sa.String(64), nullable=False, server_default="SEG"))
    op.add_column("delivery", sa.Column("rung", sa.Integer, nullable=False, server_default="0"))
    op.add_column("job", sa.Column("frame_of_reference_uid", sa.String(64), nullable=False, server_default=""))
    op.create_index("ix_job_frame_of_reference_uid", "job", ["frame_of_reference_uid"])
    _fill()


def _fill() -> None:
    """Look into one image of each series that has results, once."""
    job = sa.table("job", sa.column("id"), sa.column("series_uid"), sa.column("frame_of_reference_uid"))
    result = sa.table("result", sa.column("job_id"))
    instance = sa.table("instance", sa.column("series_uid"), sa.column("header", sa.JSON))
    connection = op.get_bind()
    segmented = sa.select(job.c.series_uid).where(job.c.id.in_(sa.select(result.c.job_id))).distinct()
    for series_uid in connection.execute(segmented).scalars().all():
        query = sa.select(instance.c.header).where(instance.c.series_uid == series_uid).limit(1)
        header = connection.execute(query).scalar()
        frame = header.get("frame_of_reference_uid", "") if isinstance(header, dict) else ""
        if frame and len(frame) <= 64:
            mine = job.c.series_uid == series_uid
            connection.execute(sa.update(job).where(mine).values(frame_of_reference_uid=frame))
