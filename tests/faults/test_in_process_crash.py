"""A fetcher with a storage of its own is killed, and the next one goes on from there."""

import asyncio
import subprocess
import sys
from pathlib import Path

from tests.support.services import ROOT
from tests.support.storages import Recipe, announced, files, ledger_states, stream
from worker.storage import BundleRef, FileStorage

FETCHER = """
import asyncio, sys
from tests.support.storages import Recipe, stream
from worker import settings_in_process
from worker.failpoints import arm, parse
from worker.storage import BundleRef, FileStorage

async def main():
    # The one who comes after a killed one waits no longer than that.
    settings_in_process.CLAIM_SECONDS = 0.2
    storage = FileStorage(sys.argv[1])
    bundle = await storage.start_bundle(BundleRef("https://example.com", bid="test-killed"), Recipe())
    arm(parse(sys.argv[2]))
    for name in "ab":
        await bundle.add_resource(f"https://example.com/{name}", None, 200, stream(name.encode()))
    await bundle.complete({"source": "us-fl"})

asyncio.run(main())
"""


async def killed(out: Path, place: str) -> None:
    """A fetcher that dies there."""
    command = [sys.executable, "-c", FETCHER, str(out), f"{place}=kill"]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -9, done.stderr


async def test_a_completion_outlives_its_fetcher(tmp_path: Path) -> None:
    await killed(tmp_path, "ledger.mark.before")
    state = tmp_path / ".transload"
    assert ledger_states(state) == {"test-killed": "complete"}
    (before,) = announced(state)

    recipe = Recipe()
    async with FileStorage(tmp_path) as storage:
        await storage.on_run_start(None, recipe)
    assert [name for name, _ in recipe.heard] == ["loader", "first", "second"]
    assert ledger_states(state) == {"test-killed": "published"}
    assert announced(state) == [before], "what was out already went out again as it was"
    assert before["metadata"] == {"source": "us-fl", "resources_count": 2}


async def test_a_resource_on_its_way_is_added_again_and_leaves_nothing(tmp_path: Path) -> None:
    await killed(tmp_path, "ledger.record.before")
    state = tmp_path / ".transload"
    left = files(tmp_path)
    assert b"a" in left.values(), "written, not recorded"
    staged = [path for path in (state / "staging").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path.read_bytes() for path in staged] == [b"a"], "nobody was there to remove it"
    async with FileStorage(tmp_path) as storage:
        bundle = await storage.start_bundle(BundleRef("https://example.com", bid="test-killed"), Recipe())
        for name in "ab":
            await bundle.add_resource(f"https://example.com/{name}", None, 200, stream(name.encode()))
        await bundle.complete({"source": "us-fl"})
    assert left.items() <= files(tmp_path).items(), "found, not written again"
    assert announced(state)[0]["resources_count"] == 2
    assert list((state / "staging").iterdir()) == []
