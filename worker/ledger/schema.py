"""The ledger's tables, as this release works with them. Changing one means a migration beside it (migrations/versions).

Times are milliseconds since the epoch in 64 bits: one representation on SQLite and PostgreSQL, compared by the database.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

HEAD = "0007"
"""The revision this release works with; a test holds it to Alembic's own head."""

metadata = MetaData()

messages = Table(
    "messages",
    metadata,
    Column("id", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("bid", Text, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Index("messages_by_bid", "bid"),
)

bundles = Table(
    "bundles",
    metadata,
    Column("bid", Text, primary_key=True),
    Column("recipe_id", Text, nullable=False),
    Column("primary_url", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("resources_count", Integer),
    Column("stored_count", Integer, nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("meta", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("targets", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    Column("published_at", BigInteger),
    Column("unstaged_at", BigInteger),
    Index("bundles_by_state", "state", "created_at"),
    Index("bundles_staged", "state", "unstaged_at", "published_at"),
    Index("bundles_published", "state", "published_at"),
)

resources = Table(
    "resources",
    metadata,
    Column("bid", Text, primary_key=True),
    Column("resource_id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("content_type", Text),
    Column("status_code", Integer),
    Column("meta", JSON, nullable=False),
    Column("location", Text, nullable=False),
    Column("late", Boolean, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("before", JSON),
    Index("resources_by_time", "recorded_at"),
)

objects = Table(
    "objects",
    metadata,
    Column("bid", Text, primary_key=True),
    Column("resource_id", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("etag", Text),
    Column("version", Text),
    Column("member", Text),
    Index("objects_by_key", "key"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("bid", Text, nullable=False, unique=True),
    Column("recipe_id", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("error", Text),
    Column("completed_at", BigInteger, nullable=False),
    Column("published_at", BigInteger),
    Column("replays", Integer, nullable=False, server_default="0"),
    Index("outbox_due", "state", "due_at"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("began_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("error", Text),
    Column("detail", Text),
    Column("outage", Boolean, nullable=False),
    Index("attempts_by_age", "began_at"),
)
"""Tries at messages that came back, or came to nothing. Without `ended_at`: under way, or its process died."""

transfers = Table(
    "transfers",
    metadata,
    Column("message_id", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("bid", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("stored", JSON),
    Column("error", Text),
    Column("updated_at", BigInteger, nullable=False),
    Index("transfers_by_bid", "bid", "target", "state"),
)
"""What became of a message's payload in each target, for as long as not all of them have it. Empty when all is well."""

contents = Table(
    "contents",
    metadata,
    Column("route", Text, primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("key", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("etag", Text),
    Column("version", Text),
    Column("bid", Text, nullable=False),
    Index("contents_by_bid", "bid"),
)
"""Payloads that a target has, which later ones of the same route may refer to. Empty unless a route deduplicates."""

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(always=True), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("bid", Text),
    Column("recipe_id", Text),
    Column("url", Text),
    Column("target", Text),
    Column("key", Text),
    Column("size", BigInteger),
    Column("sha256", Text),
    Column("detail", Text),
    sqlite_autoincrement=True,
)
"""The audit trail. Triggers refuse to change a row, and to delete one that `audit_retention` does not give up."""

audit_retention = Table(
    "audit_retention",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("through", BigInteger, nullable=False),
)
"""One row: rows of `audit` up to that id may be deleted, and are."""

schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    Column("oldest", Text, primary_key=True),
)
"""One row: the oldest revision whose code still works on this schema. A migration that only adds leaves it as it is."""

probe = Table(
    "probe", metadata, Column("id", Integer, primary_key=True), Column("at", BigInteger, nullable=False)
)
"""One row, written to see whether the database takes writes."""


class now_ms(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it stands for
    """Milliseconds since the epoch by the database's clock, not frozen at the transaction's start."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _sqlite_now(_element: now_ms, _compiler: Any, **_kw: Any) -> str:
    return "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"


@compiles(now_ms, "postgresql")
def _postgresql_now(_element: now_ms, _compiler: Any, **_kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
