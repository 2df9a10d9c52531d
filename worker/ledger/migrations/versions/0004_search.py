"""Indexes for those who look for stored resources: the newest first, and by an object's key.

It only adds. Making them keeps writers of a large ledger on PostgreSQL waiting, a second or two for a million resources.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two indexes."""
    op.create_index("resources_by_time", "resources", ["recorded_at"])
    op.create_index("objects_by_key", "objects", ["key"])
