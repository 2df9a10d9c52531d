"""Whatever messages and stores say, there are as many series, and as many names of spans, as the settings make."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import backends.errors
import handlers.errors
from backends.base import Attributes, single
from backends.errors import StorageError, Unavailable
from backends.measured import MeasuredBackend, Observation
from backends.memory import MemoryBackend, MemoryOptions
from tests.support.processes import free_port
from tests.support.services import fetch
from tests.support.spans import Spans
from worker.bootstrap import open_producer, open_queue, open_service
from worker.cloudwatch import Rounds
from worker.disposition import Failure, RetryPolicy, counted_as, decide, reason_for
from worker.metrics import Metrics
from worker.producer import BundleRef
from worker.queues.base import Dead, OutgoingMessage
from worker.settings import Settings, load_settings

MANY = 100_000
SOURCES = [
    path
    for room in ("backends", "handlers", "worker")
    for path in Path(__file__).parents[2].joinpath(room).rglob("*.py")
]


def series(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_case_101_series_are_constant_under_100_000_keys_and_classes_of_errors() -> None:
    metrics = Metrics()

    def once(number: int) -> None:
        # A transfer has a histogram besides, which takes its time.
        op = "stat" if number % 10 else "write"
        metrics.observe_backend(
            "main", Observation(op, f"AccessDenied{number}", 0.1, 1, f"host-{number}/key")
        )
        reason = counted_as(f"payload_{number}")
        metrics.dead_letters.labels(queue="q", reason=reason).inc()

    once(0)
    once(1)
    before, data = series(metrics.render().decode()), len(Rounds(metrics.registry).read(datetime.now(UTC)))
    for number in range(2, MANY):
        once(number)
    assert series(metrics.render().decode()) == before
    assert len(Rounds(metrics.registry).read(datetime.now(UTC))) == data
    assert (
        f'transload_backend_requests_total{{backend="main",op="stat",outcome="other"}} {MANY * 0.9}'
        in metrics.render().decode()
    )
    assert (
        f'transload_dead_letters_total{{queue="q",reason="other"}} {float(MANY)}' in metrics.render().decode()
    )


def test_case_101_known_errors_and_reasons_keep_their_names() -> None:
    metrics = Metrics()
    for tree in (backends.errors, handlers.errors):
        for name, each in vars(tree).items():
            if isinstance(each, type) and issubclass(each, Exception):
                metrics.observe_backend("main", Observation("stat", name))
                assert f'outcome="{name}"' in metrics.render().decode()
    for reason in handlers.errors.REASONS:
        assert counted_as(reason) == reason
    assert counted_as(reason_for(KeyError("nobody foresaw"))) == "internal_error"
    assert counted_as(reason_for(Unavailable("down"))) == "storage_failed"


def test_case_101_every_reason_in_the_sources_is_a_known_one() -> None:
    named = {
        reason
        for path in SOURCES
        for reason in re.findall(
            r'(?:\bRefused\(\s*|reason=)"([a-z_]+)"|"(payload_[a-z]+)"', path.read_text(encoding="utf-8")
        )
        for reason in reason
        if reason
    }
    assert named - {"payload_missing", "payload_digests"} <= handlers.errors.REASONS
    assert named >= handlers.errors.REASONS


def test_case_101_ten_thousand_classes_of_errors_end_in_one_reason() -> None:
    policy = RetryPolicy(max_attempts=1)
    reasons = set()
    for number in range(10_000):
        error = type(f"Error{number % 1000}", (Exception,), {})(f"host-{number}")
        fate = decide(Failure.of(error, 0.0), (), 1, policy, lambda: 0.0)
        assert isinstance(fate, Dead)
        reasons.add(fate.reason)
    assert reasons == {"internal_error"}


async def test_case_101_an_adapters_own_errors_count_as_what_they_are() -> None:
    class Throttled(Unavailable):
        pass

    class Odd(StorageError):
        pass

    seen: list[str] = []
    backend = MeasuredBackend(
        await MemoryBackend.connect(MemoryOptions()), lambda observation: seen.append(observation.outcome)
    )

    async def breaking(error: Exception) -> AsyncIterator[bytes]:
        raise error
        yield b""

    for error in (Throttled("t"), Odd("o"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            await backend.write("k", breaking(error), Attributes())
    await backend.write("k", single(b"x"), Attributes())
    assert seen == ["Unavailable", "StorageError", "ZeroDivisionError", "ok"]


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    # Each failure is its message's last: what is counted of a try is counted at once.
    environ = {
        "TRANSLOAD_ADMIN__PORT": str(free_port()),
        "TRANSLOAD_WORKER__MAX_ATTEMPTS": "1",
        "TRANSLOAD_WORKER__MAX_OUTAGE_ATTEMPTS": "1",
        "TRANSLOAD_RELAY__POLL_INTERVAL": "0.05",
    }
    return load_settings(file=None, home=tmp_path, environ=environ)


def hostile(number: int, staged: str) -> Iterator[OutgoingMessage]:
    """One of each kind of what a message can have wrong, and nothing twice."""
    bundle = {
        "bid": f"test-{number}-x",
        "recipe_id": f"recipe-{number}",
        "primary_url": f"https://p{number}.example/",
    }
    resource = {
        "url": f"https://host-{number}.example/{number}",
        "content_type": f"text/x-{number}",
        "status_code": 200,
    }

    def fetched(**changes: object) -> dict[str, object]:
        return {
            "type": "resource.fetched",
            "version": 1,
            "id": f"id-{number}-{'-'.join(changes)}",
            "bundle": bundle,
            "resource": resource,
            "payload": {"location": staged},
            **changes,
        }

    bodies = (
        f"no json {number}".encode(),
        *(
            json.dumps(each).encode()
            for each in (
                fetched(type=f"resource.kind{number}"),
                fetched(version=number + 2),
                fetched(payload={"location": f"{staged}-{number}"}),
                fetched(payload={"location": f"s3://bucket-{number}/key"}),
                fetched(payload={"location": f"https://host-{number}.example/key"}),
                fetched(payload={"location": staged, "sha256": f"{number:064x}"}),
                fetched(resource={**resource, "status_code": f"{number}"}),
                {"Type": f"Notification{number}", "Message": str(number)},
            )
        ),
    )
    for place, body in enumerate(bodies):
        attributes = {"traceparent": f"00-{number + 1:032x}-{place + 1:016x}-01", f"x-{number}": str(number)}
        yield OutgoingMessage(body, attributes=attributes, group=f"group-{number}")


async def test_case_101_series_and_spans_are_constant_under_what_a_worker_is_sent(chosen: Settings) -> None:
    spans, sent, url = Spans(), 0, f"http://127.0.0.1:{chosen.admin.port}/metrics"

    async def shown() -> str:
        return (await asyncio.to_thread(fetch, url)).decode()

    async def settled() -> tuple[int, int]:
        families = {family.name: family for family in text_string_to_metric_families(await shown())}
        return tuple(  # type: ignore[return-value]  # of two
            int(
                sum(
                    sample.value
                    for sample in families[name].samples
                    if sample.name == f"{name}_total" and sample.labels.get("result", "ok") == "ok"
                )
            )
            for name in ("transload_messages_settled", "transload_outbox_publish")
        )

    async with (
        open_service(chosen, tracing=spans.tracing(chosen)) as service,
        open_producer(chosen) as producer,
        open_queue(chosen) as queue,
    ):
        running = asyncio.create_task(service.run())

        async def send(numbers: range) -> None:
            nonlocal sent
            for number in numbers:
                ref = BundleRef(f"https://host-{number}.example/", bid=f"test-{number}")
                bundle = await producer.start_bundle(ref, f"recipe-{number}")
                await bundle.add_resource(
                    f"https://host-{number}.example/a{number}", f"a/b{number}", number, single(b"x")
                )
                await bundle.complete({"number": number})
                bad = list(hostile(number, producer._source.location_of(f"test-{number}/nothing")))
                await queue.send(bad)
                sent += 2 + len(bad)
            async with asyncio.timeout(30):
                while await settled() != (sent, numbers.stop):  # noqa: ASYNC110 - it is asked as a scraper asks
                    await asyncio.sleep(0.05)

        try:
            await send(range(1))
            before, names = series(await shown()), {span.name for span in spans.all}
            await send(range(1, 12))
            assert series(await shown()) == before
            assert {span.name for span in spans.all} == names
            assert len(spans.all) > 12 * len(names)
        finally:
            running.cancel()
            await asyncio.wait([running])
