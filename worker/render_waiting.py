"""How it looks what waits for a person: dead letters, and completions that are not out.

Called by worker/cli_dead_letters.py and worker/cli_outbox.py. What letters hold is untrusted: nothing of it may steer a
terminal, so it is escaped for a person and exact in JSON.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from worker.dead_letters import NOTHING, Letter
from worker.ledger.values import OutboxEntry
from worker.notification import timestamp
from worker.redaction import one_line
from worker.redrive import FAILED, Outcome
from worker.render import out, print_json, say, size

NAMED: Final = 20
"""Letters named when a run ends; the rest is counted."""

_SUMMARY: Final[Mapping[Outcome, str]] = MappingProxyType(
    {
        Outcome.REDRIVEN: "redriven",
        Outcome.PURGED: "deleted",
        Outcome.SELECTED: "selected",
        Outcome.OVER_CAP: "over the cap",
        Outcome.OTHER_QUEUE: "from another queue",
        Outcome.REFUSED: "refused by the queue",
        Outcome.LEASE_LOST: "taken by another consumer",
        Outcome.KEPT: "sent but not removed",
        Outcome.DIED_MEANWHILE: "died meanwhile",
        Outcome.NOT_MATCHING: "not matching",
    }
)


def letters(found: Sequence[Letter], *, as_json: bool) -> None:
    """A list of dead letters, one line each."""
    if as_json:
        for letter in found:
            print_json(_facts(letter))
        return
    if not found:
        say("no dead letters")
        return
    table = Table(box=None)
    # An id is there to be copied: it is never cut.
    table.add_column("id", no_wrap=True, min_width=max(len(_cell(letter.id)) for letter in found))
    for name in ("reason", "error", "died", "received", "redrives", "source", "bid"):
        table.add_column(name, no_wrap=True)
    for letter in found:
        cells = (letter.id, letter.reason, letter.error, letter.died_at, letter.receive_count)
        more = (letter.redrives, letter.source, letter.bid)
        table.add_row(*(escape(_cell(value)) for value in (*cells, *more)))
    out().print(table)


def letter(found: Letter, *, as_json: bool) -> None:
    """One dead letter with everything in it."""
    text = _text(found.body)
    if as_json:
        print_json(
            {
                **_facts(found),
                "attempts": found.attempts,
                "attributes": found.attributes,
                "body": base64.b64encode(found.body).decode() if text is None else text,
                "body_encoding": "base64" if text is None else "utf-8",
            }
        )
        return
    console = out()
    for name, value in _facts(found).items():
        console.print(f"{name:16}{_cell(value)}", markup=False, soft_wrap=True)
    console.print("attempts" if found.attempts else f"{'attempts':16}{NOTHING}")
    for attempt in found.attempts:
        parts = (_cell(attempt.get(name)) for name in ("at", "error", "detail"))
        console.print(f"  {'  '.join(parts)}", markup=False, soft_wrap=True)
    console.print("attributes" if found.attributes else f"{'attributes':16}{NOTHING}")
    for name, value in found.attributes.items():
        console.print(f"  {_cell(name)}: {_cell(value)}", markup=False, soft_wrap=True)
    how = "as base64, because it is not UTF-8" if text is None else "as text"
    console.print(f"body, {size(len(found.body))}, {how}", markup=False)
    shown = base64.b64encode(found.body).decode() if text is None else text
    for line in shown.split("\n"):
        console.print(one_line(line), markup=False, soft_wrap=True)


def told(found: Letter, outcome: Outcome) -> None:
    """What became of one letter of a run, for a program."""
    print_json(
        {
            "id": found.id,
            "outcome": outcome.value,
            "reason": found.reason,
            "bid": found.bid,
            "redrives": found.redrives,
        }
    )


def selected(found: Letter) -> None:
    """What a run would do something with."""
    words = "  ".join(_cell(value) for value in (found.id, found.reason, found.bid, found.detail))
    out().print(words, markup=False, soft_wrap=True)


def ended(
    outcomes: Mapping[Outcome, int],
    left: Sequence[tuple[Letter, Outcome]],
    missing: Sequence[str],
    *,
    main: Outcome,
    as_json: bool,
) -> None:
    """What a run did, in counts; what was asked for and not done is named. `main` is what was asked for."""
    if as_json:
        counts = {outcome.value: outcomes.get(outcome, 0) for outcome in Outcome}
        print_json({"summary": {**counts, "missing": missing}})
        return
    counted = [
        f"{words} {outcomes.get(outcome, 0)}"
        for outcome, words in _SUMMARY.items()
        if outcome in {main, Outcome.NOT_MATCHING} or outcomes.get(outcome)
    ]
    out().print(", ".join(counted))
    for found, outcome in left[:NAMED]:
        say(f"left {_cell(found.id)}: {_why(found, outcome)}")
    if (more := sum(outcomes.get(outcome, 0) for outcome in FAILED) - NAMED) > 0:
        say(f"and {more} more; --json names all")
    for each in missing:
        say(f"not found: {_cell(each)}; `transload dlq ls` lists what is there and no other consumer holds")


def unseen(count: int) -> None:
    """The queue says it has letters that it does not give."""
    if count:
        say(
            f"about {count} more wait, which the queue does not give while these are held, or which look like them; deal with these, then look again"
        )


def completions(found: Sequence[OutboxEntry], *, as_json: bool) -> None:
    """A list of completions."""
    if as_json:
        for entry in found:
            print_json(asdict(entry))
        return
    if not found:
        say("no such completions")
        return
    table = Table(box=None)
    table.add_column("event id", no_wrap=True, min_width=36)
    for name in ("bid", "recipe", "state", "when", "attempts", "replays", "error"):
        table.add_column(name, no_wrap=True)
    for entry in found:
        out_at = entry.published_at if entry.state == "published" else entry.due_at
        when = "" if entry.state == "parked" or out_at is None else timestamp(out_at)
        cells = (entry.event_id, entry.bid, entry.recipe_id, entry.state, when)
        more = (entry.attempts, entry.replays, entry.error or "")
        table.add_row(*(escape(_cell(value)) for value in (*cells, *more)))
    out().print(table)


def _facts(found: Letter) -> dict[str, Any]:
    return {
        "id": found.id,
        "reason": found.reason,
        "error": found.error,
        "detail": found.detail,
        "died_at": found.died_at,
        "first_tried_at": found.first_tried_at,
        "receive_count": found.receive_count,
        "redrives": found.redrives,
        "source": found.source,
        "bid": found.bid,
        "recipe": found.recipe,
        "url": found.url,
    }


def _why(found: Letter, outcome: Outcome) -> str:
    if outcome is Outcome.OVER_CAP:
        return f"it was redriven {found.redrives} times already; mend the cause, then raise --max-redrives"
    if outcome is Outcome.OTHER_QUEUE:
        name = _cell(found.source)
        return f"it came from {name!r}; use that queue's settings, or say --where source={name}"
    if outcome is Outcome.KEPT:
        return "its message is back in the queue, but the letter is still there; delete it, or redrive it: a worker knows the message"
    if outcome is Outcome.REFUSED:
        return "the queue does not take its message; the log line above says why"
    return "another consumer took it meanwhile; try again"


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _cell(value: object) -> str:
    return NOTHING if value is None else one_line(str(value))
