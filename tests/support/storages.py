"""For the tests of worker/storage: recipes that listen, streams, a look at what lies there, and the seed's examples run as code."""

import ast
import inspect
import json
import re
import sqlite3
from collections.abc import AsyncGenerator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.storage import BundleRef

_IMPORT = re.compile(r"^from data_fetcher_core(\.\w+)* import ", re.MULTILINE)


@dataclass(slots=True)
class Listener:
    """A loader or locator of the seed; while `down`, its hook fails."""

    name: str
    heard: list[tuple[str, BundleRef]]
    down: bool = False

    async def on_bundle_complete_hook(self, bundle_ref: BundleRef) -> None:
        self.heard.append((self.name, bundle_ref))
        if self.down:
            raise RuntimeError(f"{self.name} is down")


@dataclass(slots=True)
class Recipe:
    """A recipe of the seed, with a loader and two locators that listen."""

    recipe_id: str = "fr"
    heard: list[tuple[str, BundleRef]] = field(default_factory=list)
    bundle_loader: Listener = field(init=False)
    bundle_locators: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.bundle_loader = Listener("loader", self.heard)
        # The one between wants to hear of nothing.
        self.bundle_locators = [Listener("first", self.heard), object(), Listener("second", self.heard)]


async def stream(*chunks: bytes) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk


def files(folder: Path) -> dict[str, bytes]:
    """What was stored there, by its path; the storage's own state is not shown."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".transload" not in path.parts
    }


def announced(state: Path) -> list[dict[str, Any]]:
    """The bodies of the completions that stayed on this machine, in order."""
    return [json.loads(body) for body in _column(state / "completions.db", "SELECT body FROM completions")]


def ledger_states(state: Path) -> dict[str, str]:
    """The state of each bundle, by its bid."""
    with closing(sqlite3.connect(state / "ledger.db")) as ledger:
        return dict(ledger.execute("SELECT bid, state FROM bundles").fetchall())


def _column(file: Path, statement: str) -> list[Any]:
    if not file.exists():
        return []
    with closing(sqlite3.connect(file)) as database:
        return [row[0] for row in database.execute(statement)]


async def run_example(text: str, names: Mapping[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """Run one of the seed's examples with only its import lines changed; the names it has in the end.

    `names` are those an example takes for granted; `changes` replace places that only its author has: queues, buckets, paths.
    """
    code = _IMPORT.sub("from worker.storage import ", text)
    for there, here in changes.items():
        code = code.replace(there, here)
    scope = dict(names)
    compiled = compile(code, "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(compiled, scope)  # noqa: S307 - the examples of this repository's own tests
    if inspect.isawaitable(running):
        await running
    return scope
