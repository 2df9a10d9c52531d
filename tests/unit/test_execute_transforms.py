"""Carrying out a plan with transforms: parts to targets one after the other, what is proven of the payload, what is told of it."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import Attributes, Receipt, StorageBackend, single
from backends.errors import Conflict, IntegrityError, Unavailable
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from handlers.errors import Refused
from handlers.execute import Executed, execute
from handlers.payload import Before
from handlers.plan import StorePlan
from handlers.transforms.base import Part, Transform, Work
from handlers.transforms.names import entry_path
from handlers.transforms.peek import peek
from tests.unit.test_execute import NOTHING, World, contents, sha256

LINES = b"a=one\nb=two\nc/d=three\n"


class Shout:
    """One to one: what begins with `#` is written in capitals, whatever else claims is noted."""

    name = "shout"
    early = False

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        first, chunks = await peek(part.chunks, 1)
        part = replace(part, chunks=chunks)
        if first != b"#":
            yield part.noted("not quiet") if part.content_type == "text/quiet" else part
            return
        entry = work.meter.entry(part.member)

        async def loud() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                entry.made(len(chunk))
                yield chunk.upper()

        yield part.changed("shout", loud(), drop=[".html"], add=".loud", content_type="text/loud")


class Lines:
    """One to many: each line of `name=content` is an entry; one without `=` is damage."""

    name = "lines"

    def __init__(self, *, early: bool = False) -> None:
        self.early = early

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        rest = b""
        async for chunk in part.chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                name, equals, content = line.decode().partition("=")
                if not equals:
                    raise Refused("payload_corrupt", f"line {name!a} has no '='")
                path = entry_path(name, work)
                yield replace(
                    part.changed("lines", single(content.encode())), path=path, member=name, label=path
                )


class Seal:
    """Stands in for the step that no payload goes without: writes it backwards."""

    name = "encrypt"
    early = False

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:  # noqa: ARG002 - the port's
        async def sealed() -> AsyncIterator[bytes]:
            yield b"".join([chunk async for chunk in part.chunks])[::-1]

        yield part.changed("encrypt", sealed(), add=".enc")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    first = await FileBackend.connect(FileOptions(root=tmp_path / "first"))
    second = await MemoryBackend.connect(MemoryOptions())
    staging = await MemoryBackend.connect(MemoryOptions())
    yield World(staging, first, second)
    await first.aclose()


async def prepared(
    world: World, data: bytes, *transforms: Transform, promised: bytes | None = None, kind: str = "text/plain"
) -> StorePlan:
    """A plan for the staged data, of which the size and SHA-256 of `promised` are promised."""
    await world.stage(data)
    digest = None if promised is None else sha256(promised)
    size = None if promised is None else len(promised)
    return replace(world.plan(size=size, digest=digest, content_type=kind), transforms=transforms)


async def run(world: World, plan: StorePlan, tmp_path: Path) -> Executed:
    return await execute(plan, world.staging, world.targets, None, tmp_path)


async def payloads(backend: StorageBackend) -> dict[str, bytes]:
    """What lies below the resource's own key."""
    found = await contents(backend)
    return {
        key[key.index("page") :]: data for key, data in found.items() if not key.endswith((".meta", ".json"))
    }


async def test_entries_lie_below_the_resource_in_every_target(world: World, tmp_path: Path) -> None:
    plan = await prepared(world, LINES, Lines(), promised=LINES)
    key = plan.writes[1].key
    executed = await run(world, plan, tmp_path)
    name = key[key.index("page") :]
    wanted = {f"{name}/a": b"one", f"{name}/b": b"two", f"{name}/c/d": b"three"}
    for target in world.targets.values():
        assert await payloads(target) == wanted
    told = [(each.target, each.member, each.receipt.size) for each in executed.placements]
    assert told == [
        (target, name, size) for target in world.targets for name, size in (("a", 3), ("b", 3), ("c/d", 5))
    ]
    assert executed.before == Before(len(LINES), sha256(LINES), ("lines",), ())
    again = await run(world, plan, tmp_path)
    assert [each.receipt for each in again.placements] == [
        replace(each.receipt, created=False) for each in executed.placements
    ]


async def test_the_facts_beside_it_tell_what_became_of_the_payload(world: World, tmp_path: Path) -> None:
    plan = await prepared(world, LINES, Lines())
    await run(world, plan, tmp_path)
    sidecar = plan.writes[0].sidecar_key
    assert sidecar is not None
    facts = json.loads((await contents(world.targets["first"]))[sidecar])
    assert facts["payload"] == {"size": len(LINES), "sha256": sha256(LINES)}
    assert (facts["transforms"], facts["notes"]) == (["lines"], [])
    key = plan.writes[0].key
    assert [(each["member"], each["key"], each["size"]) for each in facts["objects"]] == [
        ("a", f"{key}/a", 3),
        ("b", f"{key}/b", 3),
        ("c/d", f"{key}/c/d", 5),
    ]
    assert facts["objects"][0]["sha256"] == sha256(b"one")


async def test_a_step_applies_to_every_part_of_the_one_before(world: World, tmp_path: Path) -> None:
    plan = await prepared(world, b"a=#one\nb.html=#two\nc=three\n", Lines(), Shout())
    executed = await run(world, plan, tmp_path)
    found = await payloads(world.targets["second"])
    assert {key.partition("/")[2]: data for key, data in found.items()} == {
        "a.loud": b"#ONE",
        "b.loud": b"#TWO",
        "c": b"three",
    }
    assert executed.before is not None
    assert executed.before.steps == ("lines", "shout")


async def test_a_changed_payload_changes_the_end_of_its_key_and_its_type(
    world: World, tmp_path: Path
) -> None:
    plan = await prepared(world, b"#quiet", Shout(), promised=b"#quiet")
    executed = await run(world, plan, tmp_path)
    assert [each.receipt.key for each in executed.placements] == [
        write.key.removesuffix(".html") + ".loud" for write in plan.writes
    ]
    first = executed.placements[0].receipt.key
    assert sorted(await contents(world.targets["first"])) == [first, f"{first}.meta"]
    stat = await world.targets["second"].stat(executed.placements[1].receipt.key)
    assert stat is not None
    assert (stat.content_type, stat.metadata["content_type"]) == ("text/loud", "text/plain")


async def test_what_is_not_what_it_claims_is_stored_unchanged_with_a_note(
    world: World, tmp_path: Path
) -> None:
    plan = await prepared(world, b"loud", Shout(), kind="text/quiet")
    executed = await run(world, plan, tmp_path)
    assert [each.receipt.key for each in executed.placements] == [write.key for write in plan.writes]
    assert executed.before == Before(4, sha256(b"loud"), (), ("not quiet",))
    sidecar = plan.writes[0].sidecar_key
    assert sidecar is not None
    facts = json.loads((await contents(world.targets["first"]))[sidecar])
    assert (facts["sha256"], facts["notes"], "payload" in facts) == (sha256(b"loud"), ["not quiet"], False)


async def test_nothing_in_it_is_stored_as_it_is(world: World, tmp_path: Path) -> None:
    plan = await prepared(world, b"no line ends", Lines(), promised=b"no line ends")
    executed = await run(world, plan, tmp_path)
    assert [each.receipt.sha256 for each in executed.placements] == [sha256(b"no line ends")] * 2
    assert executed.before is not None
    assert executed.before.notes == ("nothing is in it: stored unchanged",)


async def test_nothing_in_it_is_encrypted_all_the_same(world: World, tmp_path: Path) -> None:
    plan = await prepared(world, b"no line ends", Lines(), Shout(), Seal())
    executed = await run(world, plan, tmp_path)
    for write, target in zip(plan.writes, world.targets.values(), strict=True):
        key = f"{write.key}.enc"
        assert await payloads(target) == {key[key.index("page") :]: b"sdne enil on"}
    assert executed.before == Before(
        12, sha256(b"no line ends"), ("encrypt",), ("nothing is in it: stored unchanged",)
    )


async def test_entries_that_a_step_gives_the_name_of_another_stay_apart(world: World, tmp_path: Path) -> None:
    data = b"a.html=#one\na.loud=two\nA.LOUD=three\nb/c=four\nb.loud/d=five\nb.html=#six\ne.html=#7\ne.loud/f=8\n"
    plan = await prepared(world, data, Lines(), Shout())
    executed = await run(world, plan, tmp_path)
    for target in world.targets.values():
        found = await payloads(target)
        assert sorted(found.values()) == sorted(
            [b"#ONE", b"two", b"three", b"four", b"five", b"#SIX", b"#7", b"8"]
        )
    keys = [placed.receipt.key.partition(".html/")[2] for placed in executed.placements[:8]]
    assert [keys[0], keys[3], keys[4], keys[6]] == ["a.loud", "b/c", "b.loud/d", "e.loud"]
    assert [re.sub(r"~[0-9a-f]{8}", "~", keys[place]) for place in (1, 2, 5, 7)] == [
        "a~.loud",
        "A~.LOUD",
        "b~.loud",
        "e~.loud/f",
    ]
    again = await run(world, plan, tmp_path)
    assert [each.receipt.key for each in again.placements] == [
        each.receipt.key for each in executed.placements
    ]


@pytest.mark.parametrize("transform", [Shout(), Lines(early=True)])
async def test_case_67_nothing_is_stored_of_a_payload_that_breaks_its_promise(
    world: World, tmp_path: Path, transform: Transform
) -> None:
    data = b"#a=one\nb=two\n"
    plan = await prepared(world, data, transform, promised=data.replace(b"one", b"own"))
    with pytest.raises(IntegrityError, match="promised"):
        await run(world, plan, tmp_path)
    assert await world.nothing_is_left()


async def test_damage_ends_it_and_leaves_whole_entries_only(world: World, tmp_path: Path) -> None:
    plan = await prepared(world, b"a=one\ndamage\nb=two\n", Lines())
    with pytest.raises(Refused, match="payload_corrupt: line 'damage'"):
        await run(world, plan, tmp_path)
    for target in world.targets.values():
        assert list((await contents(target)).values()) == [b"one"]


async def test_a_target_that_fails_at_one_entry_gets_no_more_and_the_other_all(
    world: World, tmp_path: Path
) -> None:
    plan = await prepared(world, LINES, Lines())
    await world.targets["first"].write(f"{plan.writes[0].key}/b", single(b"older"), NOTHING)
    executed = await run(world, plan, tmp_path)
    assert [(miss.write.target, type(miss.error)) for miss in executed.misses] == [("first", Conflict)]
    assert {each.target for each in executed.placements} == {"second"}
    assert [each.member for each in executed.placements] == ["a", "b", "c/d"]
    first = await contents(world.targets["first"])
    assert plan.writes[0].sidecar_key not in first
    assert len(first) == 2


class Held:
    """One to one; tells when the stream it made was closed."""

    name = "held"
    early = False

    def __init__(self) -> None:
        self.closed = False

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:  # noqa: ARG002 - the port's
        async def held() -> AsyncIterator[bytes]:
            try:
                async for chunk in part.chunks:
                    yield chunk
                    yield chunk
            finally:
                self.closed = True

        yield part.changed("held", held())


class Leaving(MemoryBackend):
    """Fails after the first chunk."""

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:  # noqa: ARG002 - the port's
        await anext(chunks)
        raise Unavailable("no more")


async def test_what_a_target_did_not_read_is_closed(world: World, tmp_path: Path) -> None:
    held = Held()
    plan = await prepared(world, LINES, held)
    plan = replace(plan, writes=plan.writes[:1])
    targets = {**world.targets, plan.writes[0].target: await Leaving.connect(MemoryOptions())}
    executed = await execute(plan, world.staging, targets, None, tmp_path)
    assert [type(miss.error) for miss in executed.misses] == [Unavailable]
    assert held.closed


async def test_when_every_target_has_failed_nothing_more_is_read(world: World, tmp_path: Path) -> None:
    plan = await prepared(world, b"a=one\ndamage\n", Lines())
    for write in plan.writes:
        await world.targets[write.target].write(f"{write.key}/a", single(b"older"), NOTHING)
    executed = await run(world, plan, tmp_path)
    assert [type(miss.error) for miss in executed.misses] == [Conflict, Conflict]
    assert executed.before is None
