"""What must hold after any fault: the world one run left behind, checked against the invariants I1 to I8.

    world = World(published, ledger_url, targets, await completions(path), queued=…, dead=…, logs=…, canary=…)
    report = await check(world)
    assert not report.violations

The run has to be over: nothing works on the world any more, and what still lies in the queue counts as unfinished.

- I1 no ack before a durable row
- I2 each accepted bundle reaches exactly one terminal state
- I3 at least one notification per terminal bundle, all copies with the same id and bytes
- I4 a notification implies every object it names reads back with the stated size and SHA-256
- I5 no partial object under a final name
- I6 after a sweep no temporary files and no open uploads remain
- I7 a stale owner changes no row and no object
- I8 no secret in logs, database, metrics, dead letters or notifications
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import Connection, inspect, make_url, text

from backends.base import StorageBackend
from backends.errors import StorageError
from handlers.naming import resource_id
from worker.ledger.database import open_database
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.queues.base import Ack, Message, Queue, Retry

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""The ledger: every table's rows."""

_READABLE = 8 << 20
"""Bytes up to which an object's content is kept, to see whether it is a description."""


@dataclass(frozen=True, slots=True)
class Published:
    """A bundle as its producer announced it."""

    bid: str
    payloads: Mapping[str, bytes]
    """URL and exact bytes of each resource."""
    closed: bool = True
    late: frozenset[str] = frozenset()
    """URLs that came after the completion, and are in no manifest."""

    @property
    def message_ids(self) -> set[str]:
        """As worker/producer.py makes them."""
        ids = {f"{self.bid}/{resource_id(url)}" for url in self.payloads}
        return ids | {f"{self.bid}/closed"} if self.closed else ids


@dataclass(frozen=True, slots=True)
class Notified:
    """One notification as it was received."""

    body: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """What one run left behind."""

    published: Sequence[Published]
    ledger_url: str
    targets: Mapping[str, StorageBackend]
    notifications: Sequence[Notified]
    queued: Sequence[Message] = ()
    dead: Sequence[Message] = ()
    staging: Sequence[StorageBackend] = ()
    logs: Sequence[Path] = ()
    """Every file the processes wrote to, embedded queue and completions included."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Whatever else must not hold the canary, by a name for it: a page of metrics, what a command printed."""
    canary: str = ""
    """A secret of the settings; empty when there was none."""


@dataclass(slots=True)
class Report:
    """What was found. `lost` are bids without a notification, or whose objects do not read back."""

    violations: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    """Bids with a message among the dead letters."""
    unfinished: set[str] = field(default_factory=set)
    """Bids with a message still in the queue."""
    duplicates: int = 0
    """Notifications beyond the first of each event."""
    inconsistent: int = 0
    """Copies that differ from the first of their event."""
    swept: int = 0
    """Temporary files and open uploads that the sweep took."""

    def say(self, invariant: str, what: str) -> None:
        self.violations.append(f"{invariant}: {what}")


@dataclass(frozen=True, slots=True)
class _Found:
    """One object as it reads back."""

    size: int
    sha256: str
    etag: str | None
    content: bytes | None
    """None where it is too large to be a description."""
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows and objects at one moment."""

    rows: Rows
    objects: Mapping[tuple[str, str], tuple[int, str, str | None]]


async def check(world: World) -> Report:
    """Look at everything. The targets and the staging are swept."""
    report = Report()
    rows = await _rows(world.ledger_url)
    found = {name: await _objects(target) for name, target in world.targets.items()}
    _messages(world, rows, report)
    _states(world, rows, report)
    _copies(world, rows, report)
    _announced(world, found, report)
    _whole(world, found, report)
    _unchanged(rows, found, report)
    await _tidy(world, report)
    await asyncio.to_thread(_silent, world, rows, found, report)
    return report


async def completions(path: Path) -> list[Notified]:
    """What the embedded publisher's file holds."""
    publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=path))
    try:
        stored = await publisher.read(limit=1_000_000)
    finally:
        await publisher.aclose()
    return [Notified(each.notification.body, each.notification.attributes) for each in stored]


async def contents(queue: Queue, *, take: bool = False, patience: float = 60.0) -> list[Message]:
    """Every message of a queue of any kind, waited for where dead workers' leases still hide some.

    They are given back, or with `take` removed.
    """
    held: dict[str, Message] = {}
    async with asyncio.timeout(patience):
        while True:
            received = await queue.receive(10, 0.2)
            held |= {message.id: message for message in received}
            depth = await queue.depth()
            if not (received or depth.visible or depth.delayed) and depth.in_flight <= len(held):
                break
    for message in held.values():
        await queue.settle(message, Ack() if take else Retry())
    return list(held.values())


async def received(queue: Queue) -> list[Notified]:
    """The notifications in a queue, taken for good: one only looked at would come back and pass for a second one."""
    return [Notified(each.body, each.attributes) for each in await contents(queue, take=True)]


async def snapshot(world: World) -> Snapshot:
    """Rows and objects now, for `changes`."""
    objects = {
        (name, key): (found.size, found.sha256, found.etag)
        for name, target in world.targets.items()
        for key, found in (await _objects(target)).items()
    }
    return Snapshot(await _rows(world.ledger_url), objects)


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    """I7: what was there before and is there no more, or otherwise. Additions are none."""
    found = []
    for table, rows in before.rows.items():
        now = list(after.rows.get(table, ()))
        found += [f"I7: a row of {table} is not as it was: {dict(row)}" for row in rows if row not in now]
    for (target, key), facts in before.objects.items():
        if (now_there := after.objects.get((target, key))) != facts:
            found.append(f"I7: {target} {key} was {facts} and is {now_there}")
    return found


def _messages(world: World, rows: Rows, report: Report) -> None:
    recorded = {row["id"] for row in rows["messages"]}
    queued = {_id_of(message.body) for message in world.queued}
    dead = {_id_of(message.body) for message in world.dead}
    for bundle in world.published:
        report.unfinished |= {bundle.bid} if bundle.message_ids & queued else set()
        report.dead |= {bundle.bid} if bundle.message_ids & dead else set()
        for id_ in sorted(bundle.message_ids - recorded - queued - dead):
            report.say("I1", f"message {id_} is in no queue and has no row")
        for id_ in sorted(bundle.message_ids & recorded & dead):
            report.say("I2", f"message {id_} is recorded and a dead letter as well")


def _states(world: World, rows: Rows, report: Report) -> None:
    bundles = {row["bid"]: row for row in rows["bundles"]}
    outbox: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows["outbox"]:
        outbox[row["bid"]].append(row["state"])
    for bundle in world.published:
        if bundle.bid in report.unfinished | report.dead:
            continue
        known = bundles.get(bundle.bid, {"state": "unknown", "stored_count": 0})
        if known["state"] != "published" or outbox[bundle.bid] != ["published"]:
            report.say(
                "I2", f"bundle {bundle.bid} is {known['state']}, its outbox rows are {outbox[bundle.bid]}"
            )
        elif known["stored_count"] != len(bundle.payloads.keys() - bundle.late):
            report.say(
                "I2",
                f"bundle {bundle.bid} counts {known['stored_count']} of {len(bundle.payloads)} resources",
            )
    for bid, states in sorted(outbox.items()):
        state = bundles[bid]["state"] if bid in bundles else "unknown"
        if len(states) > 1 or (states and state in {"unknown", "open"}):
            report.say("I2", f"bundle {bid} is {state} and has outbox rows {states}")


def _copies(world: World, rows: Rows, report: Report) -> None:
    frozen = {row["event_id"]: (row["bid"], bytes(row["body"])) for row in rows["outbox"]}
    copies: defaultdict[str, list[Notified]] = defaultdict(list)
    for notification in world.notifications:
        content = _json(notification.body) or {}
        copies[str(content.get("event_id"))].append(notification)
    for event_id, received_ in sorted(copies.items()):
        different = [copy for copy in received_ if copy != received_[0]]
        report.duplicates += len(received_) - 1
        report.inconsistent += len(different)
        if different:
            report.say("I3", f"event {event_id} has copies with other bytes or attributes")
        bid = (_json(received_[0].body) or {}).get("bundle_id")
        if frozen.get(event_id) != (bid, received_[0].body):
            report.say("I3", f"event {event_id} of bundle {bid} is not what the outbox holds")
    announced = {bid for event_id, (bid, _) in frozen.items() if event_id in copies}
    terminal = {row["bid"] for row in rows["bundles"] if row["state"] == "published"}
    for bid in sorted(terminal - announced):
        report.say("I3", f"bundle {bid} is published and no notification came")
    expected = {bundle.bid for bundle in world.published} - report.unfinished - report.dead
    report.lost |= expected - announced


def _announced(world: World, found: Mapping[str, Mapping[str, _Found]], report: Report) -> None:
    published = {bundle.bid: bundle for bundle in world.published}
    for body in sorted({notification.body for notification in world.notifications}):
        content = _json(body) or {}
        bid = str(content.get("bundle_id"))
        bundle = published.get(bid)
        problems = ["nobody published it"] if bundle is None else list(_named(content, bundle, found))
        for problem in problems:
            report.say("I4", f"the notification of bundle {bid}: {problem}")
        if problems and bundle is not None:
            report.lost.add(bid)


def _named(
    content: Mapping[str, Any], bundle: Published, found: Mapping[str, Mapping[str, _Found]]
) -> Iterator[str]:
    """What is wrong with what one notification names."""
    places = content.get("targets")
    if not isinstance(places, list) or not places:
        yield "it names no target"
        return
    due = {url: data for url, data in bundle.payloads.items() if url not in bundle.late}
    for place in places:
        objects = found.get(place["target"], {})
        manifest = objects.get(place["manifest_key"])
        listed = (_json(manifest.content or b"") or {}).get("resources") if manifest else None
        if listed is None:
            yield f"no manifest {place['manifest_key']} in {place['target']}"
            continue
        yield from _archived(manifest, objects)
        urls = [entry["url"] for entry in listed]
        if sorted(urls) != sorted(due) or content.get("resources_count") != len(urls):
            yield (
                f"it counts {content.get('resources_count')} resources, its manifest {len(urls)}, the producer {len(due)}"
            )
        for entry in listed:
            there, stated = objects.get(entry["key"]), (entry["size"], entry["sha256"])
            data = due.get(entry["url"], b"")
            if there is None:
                yield f"{entry['key']} is not there"
            elif (there.size, there.sha256) != stated:
                yield f"{entry['key']} is {(there.size, there.sha256)}, stated was {stated}"
            elif stated != (len(data), sha256(data).hexdigest()):
                yield f"{entry['key']} holds other bytes than the producer staged"


def _archived(manifest: _Found | None, objects: Mapping[str, _Found]) -> Iterator[str]:
    """What is wrong with the archive that a manifest lists, if it lists one."""
    archive = (_json((manifest and manifest.content) or b"") or {}).get("archive")
    if archive is not None:
        there = objects.get(archive["key"])
        if there is None or (there.size, there.sha256) != (archive["size"], archive["sha256"]):
            yield f"the archive {archive['key']} is missing or not what its manifest says"


def _whole(world: World, found: Mapping[str, Mapping[str, _Found]], report: Report) -> None:
    payloads = {sha256(data).hexdigest() for bundle in world.published for data in bundle.payloads.values()}
    for name, objects in found.items():
        manifests = [_json(there.content or b"") or {} for there in objects.values()]
        archives = {
            each["archive"]["key"]: each["archive"]["sha256"] for each in manifests if "archive" in each
        }
        for key, there in objects.items():
            if there.sha256 in payloads or there.sha256 == archives.get(key):
                continue
            content = _json(there.content or b"") or {}
            if "resources" in content:
                continue
            described = objects.get(str(content.get("key")))
            if described is None or (content.get("size"), content.get("sha256")) != (
                described.size,
                described.sha256,
            ):
                report.say(
                    "I5",
                    f"{name} {key} ({there.size} bytes) is no payload, no manifest and describes no object",
                )


def _unchanged(rows: Rows, found: Mapping[str, Mapping[str, _Found]], report: Report) -> None:
    for row in rows["objects"]:
        there = found.get(row["target"], {}).get(row["key"])
        receipt = (row["size"], row["sha256"], row["etag"])
        now = there and (there.size, there.sha256, there.etag if row["etag"] else None)
        if now != receipt:
            report.say("I7", f"{row['target']} {row['key']} is {now}, its receipt said {receipt}")


async def _tidy(world: World, report: Report) -> None:
    for backend in (*world.targets.values(), *world.staging):
        report.swept += await backend.sweep(0.0)
        if again := await backend.sweep(0.0):
            report.say("I6", f"{backend.location}: {again} more after a sweep")
        if (address := urlsplit(backend.location)).scheme == "file":
            listed = {stat.key async for stat in backend.list()}
            for left in sorted(_files(Path(unquote(address.path))) - listed):
                report.say("I6", f"{backend.location}{left} is left after a sweep")


def _silent(world: World, rows: Rows, found: Mapping[str, Mapping[str, _Found]], report: Report) -> None:
    if not world.canary:
        return
    canary = world.canary.encode()
    for where, data in (*_said(world), *_kept(world, rows, found)):
        if canary in data:
            report.say("I8", f"the canary is in {where}")


def _said(world: World) -> Iterator[tuple[str, bytes]]:
    """All that the processes said, by a name for it."""
    for path in world.logs:
        yield f"the log {path.name}", path.read_bytes()
    for name, page in world.texts.items():
        yield name, page.encode()
    for notification in world.notifications:
        yield "a notification", notification.body + repr(dict(notification.attributes)).encode()
    for kind, messages in (("the queue", world.queued), ("a dead letter", world.dead)):
        for message in messages:
            yield kind, message.body + repr(dict(message.attributes)).encode()


def _kept(world: World, rows: Rows, found: Mapping[str, Mapping[str, _Found]]) -> Iterator[tuple[str, bytes]]:
    """All that they left in the ledger and in the targets."""
    for table, lines in rows.items():
        yield f"the ledger's {table}", repr([dict(line) for line in lines]).encode()
    ledger = make_url(world.ledger_url)
    if ledger.get_backend_name() == "sqlite" and ledger.database:
        # What was deleted or overwritten may still lie in a free page.
        file = Path(ledger.database)
        for path in sorted(file.parent.glob(f"{file.name}*")):
            yield f"the file {path.name}", path.read_bytes()
    for name, objects in found.items():
        for key, there in objects.items():
            yield f"{name} {key}", (there.content or b"") + repr(dict(there.metadata)).encode()


def _files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


async def _objects(backend: StorageBackend) -> dict[str, _Found]:
    """Every object read back whole; one that cannot be read is left out."""
    objects: dict[str, _Found] = {}
    async for listed in backend.list():
        digest, size, kept = sha256(), 0, bytearray()
        try:
            async with backend.open(listed.key) as chunks:
                async for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    if size <= _READABLE:
                        kept += chunk
            stat = await backend.stat(listed.key)
        except StorageError:
            continue
        content = bytes(kept) if size <= _READABLE else None
        objects[listed.key] = _Found(
            size, digest.hexdigest(), stat.etag if stat else None, content, stat.metadata if stat else {}
        )
    return objects


async def _rows(url: str) -> Rows:
    """Every table, whatever its release calls it."""

    def dump(conn: Connection) -> Rows:
        return {
            name: [dict(row) for row in conn.execute(text(f'SELECT * FROM "{name}"')).mappings()]  # noqa: S608 - a name the database gave
            for name in inspect(conn).get_table_names()
        }

    database = open_database(url)
    try:
        return await database.read(dump)
    finally:
        await database.aclose()


def _json(data: bytes) -> Mapping[str, Any] | None:
    try:
        content = json.loads(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _id_of(body: bytes) -> str:
    return str((_json(body) or {}).get("id"))
