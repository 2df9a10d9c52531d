"""Whether the tables of the PostgreSQL backend are there and can be relied on, and their making. Called by backends/postgres.py only."""

from backends import postgres_sql as sql
from backends.errors import PermissionDenied, StorageError, Unavailable
from backends.failpoints import failpoint
from backends.postgres_client import Database


async def create(database: Database) -> None:
    """Make schema and tables, unless they are there."""
    (state,) = await database.read(sql.STATE)
    if state["present"]:
        return
    try:
        with database.translating("create tables"):
            failpoint("postgres.create_tables.before")
            await database.script(sql.TABLES if state["schema_present"] else sql.SCHEMA + sql.TABLES)
            failpoint("postgres.create_tables.after")
    except StorageError:
        # Somebody else may have been faster; all of it is one transaction.
        (state,) = await database.read(sql.STATE)
        if not state["present"]:
            raise


async def check(database: Database) -> None:
    """The tables are there, this user may change them, and the server keeps what it has acknowledged."""
    (state,) = await database.read(sql.STATE)
    if state["encoding"] != "UTF8":
        raise StorageError(
            f"{database.location} stores text as {state['encoding']}; create the database with: ENCODING 'UTF8' TEMPLATE template0"
        )
    if not state["present"]:
        statements = (sql.SCHEMA + " " + sql.TABLES).replace("{schema}", database.schema)
        raise StorageError(
            f"{database.location} has no tables; set create_tables: true once, or run: {' '.join(statements.split())}"
        )
    if not state["permitted"]:
        raise PermissionDenied(
            f"{database.location} needs: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {database.schema}"
        )
    if state["standby"]:
        raise Unavailable(
            f"{database.location} is a standby that cannot be written; give the primary's address"
        )
    if state["commit"] == "off":
        raise StorageError(
            f"{database.location} has synchronous_commit off: a crash of the server would lose what is acknowledged; "
            "set it to on for this user: ALTER ROLE … SET synchronous_commit = on"
        )
