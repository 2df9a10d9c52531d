"""What a payload was before it was transformed, and what its archive calls each object that was made of it.

It only adds, and what it adds may be missing: the release before goes on with it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two columns."""
    op.add_column("resources", sa.Column("before", sa.JSON))
    op.add_column("objects", sa.Column("member", sa.Text))
