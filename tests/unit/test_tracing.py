"""What spans say, what they link to, and what they never do: disturb, show a secret, or let a copy of a completion differ."""

import ast
import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags, get_current_span
from structlog.contextvars import get_contextvars

from backends.base import single
from backends.errors import MissingExtra
from backends.measured import Observation
from backends.memory import MemoryBackend, MemoryOptions
from handlers.messages import Bundle, BundleClosed, ClosedBundle, Payload, Resource, ResourceFetched
from handlers.plan import StagingSource
from tests.conformance.ledgers import closing, entry
from tests.support.spans import Spans, attributes, id_of, trace_of, traceparent
from worker import notification
from worker.bootstrap import open_producer
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.producer import BundleRef, Producer
from worker.publishers.base import Notification, PublishError
from worker.queues.base import Message, OutgoingMessage, QueueUnavailable
from worker.queues.memory import MemoryOptions as MemoryQueueOptions
from worker.queues.memory import MemoryQueue
from worker.settings import load_settings
from worker.tracing import NO_CONTEXT

ROOT = Path(__file__).parents[2]
SENDER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CLOSED = BundleClosed(
    id="test-a/closed", bundle=ClosedBundle(bid="test-a", recipe_id="fr", resources_count=0)
)


def message(**own: str) -> Message:
    return Message("m-1", b"{}", "h", 3, own)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqlLedger]:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    made = SqlLedger(database)
    yield made
    await made.aclose()


@pytest.fixture
async def queue() -> AsyncIterator[MemoryQueue]:
    made = await MemoryQueue.connect(MemoryQueueOptions())
    yield made
    await made.aclose()


# A message's work.


def test_work_on_a_message_is_a_trace_that_links_to_its_sender() -> None:
    spans = Spans()
    with spans.tracing().processing(message(traceparent=SENDER, tracestate="a=b")):
        pass
    span = spans.one("process resources")
    assert span.kind is SpanKind.CONSUMER
    assert span.parent is None
    (link,) = span.links
    assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == tuple(SENDER.split("-")[1:3])
    assert link.context.trace_state.to_header() == "a=b"
    assert attributes(span) == {
        "messaging.system": "aws_sqs",
        "messaging.destination.name": "resources",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.message.id": "m-1",
        "transload.receive_count": 3,
    }


def test_work_on_a_message_may_be_a_part_of_its_senders_trace() -> None:
    spans = Spans()
    with spans.tracing(parent="child").processing(message(traceparent=SENDER)):
        pass
    span = spans.one("process resources")
    assert span.parent is not None
    assert f"{trace_of(span):032x}-{span.parent.span_id:016x}" == SENDER[3:-3]
    assert span.links == ()


@pytest.mark.parametrize("parent", ["link", "child"])
@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00-1",
        "x" * 600,
        SENDER.upper(),
        SENDER.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        SENDER.replace("b7ad6b7169203331", "0" * 16),
        f"ff{SENDER[2:]}",
        f"{SENDER}-more",
        "00-é\x00\ud800",
    ],
)
def test_a_malformed_traceparent_is_none(traceparent: str, parent: Literal["link", "child"]) -> None:
    spans = Spans()
    with spans.tracing(parent=parent).processing(message(traceparent=traceparent, tracestate="a=b")):
        pass
    span = spans.one("process resources")
    assert (span.parent, span.links) == (None, ())


def test_a_malformed_tracestate_spoils_no_traceparent() -> None:
    spans = Spans()
    with spans.tracing().processing(message(traceparent=SENDER, tracestate="é\n" * 9)):
        pass
    (link,) = spans.one("process resources").links
    assert not link.context.trace_state


def test_what_is_learned_of_a_message_is_said_without_its_secrets() -> None:
    spans = Spans()
    tracing = spans.tracing()
    resource = Resource(url="https://user:geheim@example.com/a?sig=geheim&page=1")
    fetched = ResourceFetched(
        id="test-a/1",
        bundle=Bundle(bid="test-a", recipe_id="fr"),
        resource=resource,
        payload=Payload(location="x"),
    )
    with tracing.processing(message()):
        tracing.about(fetched)
        tracing.note(route="default", outcome="retry")
        tracing.failed(QueueUnavailable("amqp://user:geheim@host is gone\nfor good " + "x" * 5000))
    span = spans.one("process resources")
    said = attributes(span)
    assert said["transload.bid"] == "test-a"
    assert said["transload.recipe_id"] == "fr"
    assert said["transload.message_id"] == "test-a/1"
    assert said["transload.route"] == "default"
    assert said["transload.outcome"] == "retry"
    assert said["transload.url"] == "https://**********@example.com/a?sig=**********&page=1"
    assert said["error.type"] == "QueueUnavailable"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is not None
    assert span.status.description.startswith("amqp://**********@host is gone\\nfor good x")
    assert len(span.status.description) == 1024


async def test_work_that_is_broken_off_says_so_and_leaves_nothing_behind() -> None:
    spans = Spans()
    with pytest.raises(asyncio.CancelledError), spans.tracing().processing(message()):
        raise asyncio.CancelledError
    assert attributes(spans.one("process resources"))["error.type"] == "CancelledError"
    assert not get_current_span().get_span_context().is_valid
    assert get_contextvars() == {}


def test_log_lines_carry_the_trace() -> None:
    spans = Spans()
    with spans.tracing().processing(message()):
        logged = get_contextvars()
    span = spans.one("process resources")
    assert logged == {"trace_id": f"{trace_of(span):032x}", "span_id": f"{id_of(span):016x}"}
    assert get_contextvars() == {}


# What is received.


async def test_a_receive_is_one_span_that_links_to_every_sender(queue: MemoryQueue) -> None:
    spans = Spans()
    await queue.send([OutgoingMessage(b"1", {"traceparent": SENDER}), OutgoingMessage(b"2")])
    received = await spans.tracing().receive(queue, 10, 0)
    span = spans.one("receive resources")
    assert span.kind is SpanKind.CLIENT
    assert attributes(span)["messaging.batch.message_count"] == 2
    (link,) = span.links
    assert dict(link.attributes or {}) == {"messaging.message.id": received[0].id}


async def test_a_receive_that_brings_nothing_is_no_span(queue: MemoryQueue) -> None:
    spans = Spans()
    assert not await spans.tracing().receive(queue, 10, 0)
    assert spans.all == ()


# The producer.


async def test_a_message_carries_the_context_of_its_sending(queue: MemoryQueue) -> None:
    spans = Spans()
    tracing = spans.tracing()
    within = tracing.begin_bundle(CLOSED.bundle)
    await tracing.send(queue, OutgoingMessage(b"{}", {"own": "1"}), CLOSED, within)
    (received,) = await queue.receive(1, 0)
    span = spans.one("send resources")
    assert span.kind is SpanKind.PRODUCER
    assert span.parent is not None
    assert span.parent.span_id == id_of(spans.one("start bundle"))
    assert received.attributes == {"own": "1", "traceparent": traceparent(span)}
    assert attributes(span)["transload.message_id"] == "test-a/closed"


async def test_a_fetchers_own_trace_goes_on(queue: MemoryQueue) -> None:
    spans = Spans()
    staging = await MemoryBackend.connect(MemoryOptions())
    producer = Producer(
        queue=queue,
        staging=staging,
        source=StagingSource("main", staging.location),
        tracing=spans.tracing(),
    )
    with spans.provider.get_tracer("a fetcher").start_as_current_span("fetch"):
        bundle = await producer.start_bundle(BundleRef("https://example.com/"), "fr")
        await bundle.add_resource("https://example.com/a", None, 200, single(b"a"))
        await bundle.complete({})
    assert spans.tree() == "fetch\n  start bundle\n  PRODUCER send resources\n  PRODUCER send resources"


async def test_a_message_that_was_not_sent_says_so(queue: MemoryQueue) -> None:
    spans = Spans()
    await queue.aclose()
    with pytest.raises(QueueUnavailable):
        await spans.tracing().send(queue, OutgoingMessage(b"{}"), CLOSED, NO_CONTEXT)
    assert attributes(spans.one("send resources"))["error.type"] == "QueueUnavailable"


# Storage.


def test_calls_of_a_backend_are_spans_of_the_work_they_belong_to() -> None:
    spans = Spans()
    tracing = spans.tracing()
    tracing.observed("main", Observation("stat", key="a"))
    with tracing.processing(message()):
        tracing.observed("staging-main", Observation("open", seconds=0.5, size=7, key="a"))
        tracing.observed("main", Observation("write", "Unavailable", 0.25, 0, "b?sig=geheim"))
        tracing.observed("main", Observation("health"))
    assert {span.name for span in spans.all} == {"process resources", "read staging-main", "write main"}
    read, write = spans.one("read staging-main"), spans.one("write main")
    assert attributes(read) == {
        "transload.backend": "staging-main",
        "transload.key": "a",
        "transload.size": 7,
    }
    assert (read.end_time or 0) - (read.start_time or 0) == 500_000_000
    assert attributes(write)["error.type"] == "Unavailable"
    assert attributes(write)["transload.key"] == "b?sig=**********"
    assert write.status.status_code is StatusCode.ERROR


# The completion.


async def test_the_completion_carries_the_record_that_completed_it(ledger: SqlLedger) -> None:
    spans = Spans()
    tracing = spans.tracing()
    with tracing.processing(message()):
        assert not (await tracing.record(ledger, entry("a", 0))).completed
    with tracing.processing(message()):
        assert (await tracing.record(ledger, closing("a", 1))).completed
    (row,) = await ledger.claim(1, 60)
    first, last = spans.named("record")
    assert notification.trace(row.body) == {"traceparent": traceparent(last)}
    assert "transload.completed" not in attributes(first)
    assert attributes(last)["transload.completed"] is True


async def test_of_entries_that_share_a_transaction_the_last_one_is_the_completions(ledger: SqlLedger) -> None:
    spans = Spans()
    tracing = spans.tracing()
    await asyncio.gather(
        tracing.record(ledger, entry("a", 0)),
        tracing.record(ledger, entry("a", 1)),
        tracing.record(ledger, closing("a", 2)),
    )
    (row,) = await ledger.claim(1, 60)
    (completing,) = (span for span in spans.named("record") if "transload.completed" in attributes(span))
    assert notification.trace_ids(row.body)["span_id"] == f"{id_of(completing):016x}"


async def test_whatever_is_done_again_the_context_of_a_completion_stays(ledger: SqlLedger) -> None:
    tracing = Spans().tracing()
    for _ in range(2):
        await tracing.record(ledger, entry("a", 0))
        await tracing.record(ledger, closing("a", 1))
    (first,) = await ledger.claim(1, 0)
    (again,) = await ledger.claim(1, 0)
    await ledger.mark_published([again])
    await ledger.replay("a")
    (replayed,) = await ledger.claim(1, 60)
    assert first.body == again.body == replayed.body
    assert notification.trace(first.body)


async def test_without_tracing_a_completion_is_what_it_was(ledger: SqlLedger) -> None:
    await ledger.record(closing("a", 0))
    (row,) = await ledger.claim(1, 60)
    assert b"trace" not in row.body
    assert notification.trace(row.body) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'"traceparent"',
        b'["traceparent"]',
        b'{"metadata": {"traceparent": "00-1"}}',
        b'{"traceparent": 1}',
        b'{"traceparent": ',
        b'{"traceparent": ' + b"[" * 100_000,
    ],
)
def test_a_body_without_a_context_of_ours_has_none(body: bytes) -> None:
    assert notification.trace(body) == {}
    assert notification.trace_ids(body) == {}


async def test_a_publication_is_a_span_for_each_completion_below_what_completed_it() -> None:
    spans = Spans()
    ours = Notification("e-1", "fr", b"", {"bundle_id": "a", "traceparent": SENDER})
    untraced = Notification("e-2", "fr", b"", {"bundle_id": "b"})
    with spans.tracing().publishing([ours, untraced]) as answered:
        answered([None, PublishError("no")])
    first, second = spans.named("publish completions")
    assert first.parent is not None
    assert f"{trace_of(first):032x}-{first.parent.span_id:016x}" == SENDER[3:-3]
    assert first.kind is SpanKind.PRODUCER
    assert attributes(first) == {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": "completions",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.message.id": "e-1",
        "transload.bid": "a",
        "transload.recipe_id": "fr",
    }
    assert second.parent is None
    assert attributes(second)["error.type"] == "PublishError"


async def test_a_publication_that_breaks_off_ends_its_spans() -> None:
    spans = Spans()
    sent: Sequence[Notification] = [Notification("e-1", "fr", b"", {})]
    with pytest.raises(OSError, match="gone"), spans.tracing().publishing(sent):
        raise OSError("gone")
    assert attributes(spans.one("publish completions"))["error.type"] == "OSError"


async def test_what_is_not_sampled_is_carried_on_as_not_sampled(
    ledger: SqlLedger, queue: MemoryQueue
) -> None:
    spans = Spans(ratio=0.0)
    tracing = spans.tracing(parent="child")
    await tracing.send(queue, OutgoingMessage(b"{}"), CLOSED, tracing.begin_bundle(CLOSED.bundle))
    (received,) = await tracing.receive(queue, 1, 0)
    with tracing.processing(received):
        tracing.observed("main", Observation("write"))
        await tracing.record(ledger, closing("a", 0))
    (row,) = await ledger.claim(1, 60)
    with tracing.finalizing(row):
        pass
    assert spans.all == ()
    before, after = received.attributes["traceparent"], notification.trace(row.body)["traceparent"]
    assert before[:36] == after[:36]
    assert not int(before[-2:], 16) & TraceFlags.SAMPLED
    assert not int(after[-2:], 16) & TraceFlags.SAMPLED


# Off.


def test_off_nothing_of_opentelemetry_is_imported() -> None:
    """A process of its own: others in this one have imported it."""
    code = "import sys, worker.cli; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_opentelemetry_is_imported_where_tracing_is_switched_on_and_nowhere_else() -> None:
    found = {
        (path.name, in_function)
        for room in ("backends", "handlers", "worker")
        for path in (ROOT / room).rglob("*.py")
        if "opentelemetry" in (text := path.read_text(encoding="utf-8"))
        for name, in_function in imports(ast.parse(text))
        if name.startswith(("opentelemetry", "worker.opentelemetry_"))
    }
    assert found == {
        ("telemetry.py", "open_tracing"),
        ("opentelemetry_export.py", ""),
        ("opentelemetry_tracing.py", ""),
    }


def imports(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    """The modules a source imports, and in which function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", function
        yield from imports(
            node, node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        )


async def test_a_missing_extra_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "worker.opentelemetry_export", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    on = load_settings(file=None, home=tmp_path, environ={"TRANSLOAD_TRACING__ENABLED": "true"})
    with pytest.raises(MissingExtra, match=r"opentelemetry.*pip install 'transload\[tracing\]'"):
        async with open_producer(on):
            pass
