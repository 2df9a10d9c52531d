"""Attempts at messages, replays of completions, deleted staging, and which older code works on the schema.

It only adds: code of revision 0001 works on the result.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """New columns are nullable or have a default, so that rows written by older code are whole."""
    op.add_column("bundles", sa.Column("unstaged_at", sa.BigInteger))
    op.create_index("bundles_staged", "bundles", ["state", "unstaged_at", "published_at"])
    op.create_index("bundles_published", "bundles", ["state", "published_at"])
    op.create_index("messages_by_bid", "messages", ["bid"])
    op.add_column("outbox", sa.Column("replays", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "attempts",
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("message_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("error", sa.Text),
        sa.Column("detail", sa.Text),
        sa.Column("outage", sa.Boolean, nullable=False),
    )
    op.create_index("attempts_by_age", "attempts", ["began_at"])
    compatibility = op.create_table("schema_compatibility", sa.Column("oldest", sa.Text, primary_key=True))
    op.bulk_insert(compatibility, [{"oldest": "0001"}])
    probe = op.create_table(
        "probe",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(probe, [{"id": 1, "at": 0}])
