"""The audit trail outside the database: who acts, and what an export of it looks like.

worker/bootstrap.py asks for the actors, worker/cli_audit.py writes the exports. docs/audit.md describes both.
"""

import csv
import hashlib
import io
import json
import os
import pwd
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal

from worker.ledger.base import Ledger
from worker.ledger.values import AuditQuery, AuditRow, AuditSpan
from worker.redaction import one_line, redact

Format = Literal["csv", "jsonl"]

COLUMNS: Final = (
    "id",
    "at",
    "actor",
    "action",
    "bid",
    "recipe_id",
    "url",
    "target",
    "key",
    "size",
    "sha256",
    "detail",
)

_FORMULA: Final = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
"""What makes a spreadsheet take a cell for a formula: https://owasp.org/www-community/attacks/CSV_Injection."""


def worker() -> str:
    """`worker@host`; in a container the host is the pod."""
    return f"worker@{socket.gethostname()}"


def operator() -> str:
    """`cli:user@host`. The user is who the process runs as, which no environment variable changes."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        # Containers run as users that no file names.
        user = str(uid)
    return f"cli:{user}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds: all rows that were asked for, among those with ids above `after` and up to `last`."""

    rows: int
    after: int
    last: int
    trimmed: int
    """Rows up to this id had been deleted by retention."""
    sha256: str
    """Of all bytes written, in hex."""


async def export(
    ledger: Ledger, query: AuditQuery, form: Format, write: Callable[[bytes], object]
) -> Exported:
    """Write the rows that are asked for in the order of their ids, up to where the trail is complete.

    Raises `LedgerError`, and what `write` raises.
    """
    span: AuditSpan = await ledger.audit_span()
    query = replace(query, after=max(query.after, span.trimmed), through=min(query.through, span.last))
    digest, rows, line = hashlib.sha256(), 0, _LINES[form]

    def out(content: bytes) -> None:
        digest.update(content)
        write(content)

    if form == "csv":
        out(_csv(dict.fromkeys(COLUMNS), header=True))
    async for row in ledger.audit_trail(query):
        out(line(_facts(row)))
        rows += 1
    return Exported(rows, query.after, max(query.through, query.after), span.trimmed, digest.hexdigest())


def _facts(row: AuditRow) -> dict[str, Any]:
    at = datetime.fromtimestamp(row.at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    facts = {"id": row.id, "at": at, "actor": row.actor, **asdict(row.record)}
    # An export leaves the house; the ledger holds URLs as they were announced.
    return facts | {name: facts[name] and redact(facts[name]) for name in ("url", "detail")}


def _jsonl(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts).encode() + b"\n"


def _csv(facts: Mapping[str, Any], *, header: bool = False) -> bytes:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    else:
        writer.writerow({name: _cell(value) for name, value in facts.items()})
    return lines.getvalue().encode()


def _cell(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula, on one line."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text


_LINES: Final[Mapping[Format, Callable[[Mapping[str, Any]], bytes]]] = MappingProxyType(
    {"csv": _csv, "jsonl": _jsonl}
)
