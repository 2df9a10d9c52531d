"""The first schema: messages, bundles, resources, objects, outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Written out rather than taken from schema.py: a migration must not change when the schema does."""
    op.create_table(
        "messages",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("bid", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "bundles",
        sa.Column("bid", sa.Text, primary_key=True),
        sa.Column("recipe_id", sa.Text, nullable=False),
        sa.Column("primary_url", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("resources_count", sa.Integer),
        sa.Column("stored_count", sa.Integer, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("meta", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("published_at", sa.BigInteger),
    )
    op.create_index("bundles_by_state", "bundles", ["state", "created_at"])
    op.create_table(
        "resources",
        sa.Column("bid", sa.Text, primary_key=True),
        sa.Column("resource_id", sa.Text, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("content_type", sa.Text),
        sa.Column("status_code", sa.Integer),
        sa.Column("meta", sa.JSON, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "objects",
        sa.Column("bid", sa.Text, primary_key=True),
        sa.Column("resource_id", sa.Text, primary_key=True),
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("etag", sa.Text),
        sa.Column("version", sa.Text),
    )
    op.create_table(
        "outbox",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("bid", sa.Text, nullable=False, unique=True),
        sa.Column("recipe_id", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("completed_at", sa.BigInteger, nullable=False),
        sa.Column("published_at", sa.BigInteger),
    )
    op.create_index("outbox_due", "outbox", ["state", "due_at"])
