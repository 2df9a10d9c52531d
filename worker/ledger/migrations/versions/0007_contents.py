"""Which payloads lie in a target already, for routes that store identical ones once.

It only adds. Code of revision 0006 stores everything and notes nothing here, and when it retires a bundle it leaves that bundle's
rows: all workers are updated before a route deduplicates.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A new table."""
    op.create_table(
        "contents",
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("bid", sa.Text, nullable=False),
    )
    op.create_index("contents_by_bid", "contents", ["bid"])
