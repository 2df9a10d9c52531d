"""Payloads that not all of their targets have yet.

It only adds, but code of revision 0002 would not see what a best-effort target is owed, and reads fewer facts of a bundle's
targets than there are: all workers are updated before a route gets a second target.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A new table."""
    op.create_table(
        "transfers",
        sa.Column("message_id", sa.Text, primary_key=True),
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("bid", sa.Text, nullable=False),
        sa.Column("resource_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("stored", sa.JSON),
        sa.Column("error", sa.Text),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("transfers_by_bid", "transfers", ["bid", "target", "state"])
