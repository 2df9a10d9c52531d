"""What PostgreSQL, or the way to it, refuses, as the ledger's errors. Used by worker/ledger/postgresql.py only."""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import asyncpg  # type: ignore[import-untyped] # it ships no type information
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from worker.ledger.base import (
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerRefused,
    LedgerUnavailable,
    SchemaMismatch,
)
from worker.redaction import HIDDEN, one_line


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn what the driver raises into the ledger's own errors."""
    try:
        yield
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
        raise _translate(exc, url) from exc
    except ssl.SSLCertVerificationError as exc:
        # A ValueError besides, though it says nothing of the entry.
        raise LedgerUnavailable(f"{_told(exc, url)}; see sslmode and sslrootcert in ledger.url") from exc
    except (StatementError, ArithmeticError, TypeError, ValueError, RecursionError) as exc:
        # Raised before the database was asked: a value it has no type for.
        raise LedgerRefused(_told(_origin(exc), url)) from exc
    except (SQLAlchemyError, OSError) as exc:
        raise LedgerUnavailable(_told(exc, url)) from exc


_POOLER = "; when ledger.url leads to PgBouncer, set ledger.pooler: true"
_KINDS: Mapping[str, tuple[type[LedgerError], str]] = MappingProxyType(
    {
        "22": (LedgerRefused, ""),
        "23": (LedgerRefused, ""),
        "54": (LedgerRefused, ""),
        "54000": (LedgerUnavailable, "; when it is the queue of notifications: a session that listens hangs"),
        "55P03": (LedgerBusy, ""),
        "28": (LedgerError, "; correct user and password in ledger.url, or the server's pg_hba.conf"),
        "3D000": (LedgerError, "; create the database, or correct its name in ledger.url"),
        "42P01": (SchemaMismatch, "; run: transload migrate"),
        "42703": (SchemaMismatch, "; run: transload migrate"),
        "42501": (LedgerError, "; grant it to the ledger's user"),
        "42": (LedgerError, ""),
        "26000": (LedgerError, _POOLER),
        "42P05": (LedgerError, _POOLER),
        "08P01": (LedgerUnavailable, _POOLER),
        "53100": (LedgerUnavailable, "; the server's disk is full: free some space"),
        "XX001": (LedgerCorrupt, "; the server's files are damaged: restore a backup"),
        "XX002": (LedgerCorrupt, "; the server's files are damaged: REINDEX, or restore a backup"),
    }
)
"""SQLSTATE or its class -> error and remedy; whatever is not here may pass.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""


def _translate(exc: Exception, url: URL) -> LedgerError:
    origin, state = _origin(exc), sqlstate_of(exc)
    if not state and isinstance(origin, asyncpg.ClientConfigurationError):
        return LedgerError(f"{_told(origin, url)}; correct ledger.url")
    if not state and isinstance(origin, ValueError):
        return LedgerRefused(_told(origin, url))
    kind, remedy = _KINDS.get(state) or _KINDS.get(state[:2]) or (LedgerUnavailable, "")
    return kind(f"{_told(origin, url)}{remedy}")


def _told(exc: BaseException, url: URL) -> str:
    if isinstance(exc, TimeoutError):
        exc = TimeoutError("the server did not answer in time")
    reason = one_line(str(getattr(exc, "message", None) or exc) or type(exc).__name__)
    if url.password:
        reason = reason.replace(str(url.password), HIDDEN)
    return f"ledger {url.render_as_string()}: {reason}"


def _origin(exc: BaseException) -> BaseException:
    """What the driver raised, below SQLAlchemy's wrappers."""
    if isinstance(exc, StatementError) and exc.orig is not None:
        return exc.orig.__cause__ or exc.orig
    return exc


def sqlstate_of(exc: BaseException) -> str:
    """The code the server gave; empty where the failure is none of its answers."""
    return getattr(_origin(exc), "sqlstate", None) or ""
