"""Alembic's entry. The connection, and the transaction around everything, come from worker/ledger/database.py."""

from alembic import context

from worker.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
