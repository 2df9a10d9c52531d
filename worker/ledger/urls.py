"""What `ledger.url` may be. Called by worker/settings_process.py when it is read, by worker/ledger/database.py when it is used."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from worker.redaction import is_secret_name

FORMS = "sqlite:////absolute/path/ledger.db or postgresql://user:password@host:5432/database"


def ledger_url(value: str) -> URL:
    """The URL without a driver's name: `sqlite` with one file, or `postgresql` with a host and a database.

    Parameters of a PostgreSQL URL are those of libpq (https://www.postgresql.org/docs/current/libpq-connect.html); `ssl`
    stands for `sslmode`. Raises `ValueError` with what to do; the message repeats no part of the URL that may be secret.
    """
    try:
        url = make_url(value)
    except (ArgumentError, ValueError) as exc:
        raise ValueError(f"not a database URL; use {FORMS}") from exc
    kind, _, driver = url.drivername.partition("+")
    if kind == "sqlite" and not driver:
        return _file(url)
    if kind in {"postgresql", "postgres"}:
        if driver not in {"", "asyncpg"}:
            raise ValueError(
                f"the ledger talks to PostgreSQL through asyncpg, not {driver!r}; write postgresql://…"
            )
        return _server(url.set(drivername="postgresql"))
    raise ValueError(f"the ledger cannot be {url.drivername!r}; use {FORMS}")


def _file(url: URL) -> URL:
    if url.host or url.query or not url.database or ":memory:" in url.database or url.database.endswith("/"):
        raise ValueError(
            "the ledger is one file and has no parameters; use sqlite:////absolute/path/ledger.db"
        )
    return url


def _server(url: URL) -> URL:
    if not url.database or not (url.host or "host" in url.query):
        raise ValueError(
            "the ledger's URL names a host and a database; use postgresql://user:password@host:5432/database"
        )
    if secret := next(filter(is_secret_name, url.query), None):
        # Parameters are shown in messages; the password before the host is not.
        raise ValueError(
            f"the ledger's URL has no parameter {secret!r}; write postgresql://user:password@host:5432/database"
        )
    if "ssl" in url.query and "sslmode" not in url.query:
        url = url.difference_update_query(["ssl"]).update_query_dict({"sslmode": url.query["ssl"]})
    return url
