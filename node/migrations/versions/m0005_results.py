"""Tell of what form each result is, and on which rung of its destination."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns; what was made before is a BINARY Segmentation."""
    for table in ("result", "delivery"):
        op.add_column(table, sa.Column("form", sa.String(64), nullable=False, server_default="SEG"))
    op.add_column("delivery", sa.Column("rung", sa.Integer, nullable=False, server_default="0"))
