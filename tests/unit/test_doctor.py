"""What the doctor makes of parts that are broken, slow, or cannot do everything."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import Attributes, BackendOptions, Features, Receipt, StorageBackend
from backends.errors import PermissionDenied, StorageError, Unavailable
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import new_bucket, s3_client
from tests.support.sqs import sqs_queues
from worker import doctor
from worker.doctor import Finding, Look, State, examine
from worker.secret_values import hiding
from worker.settings import Settings, load_settings

CANARY = "canary-secret-0123456789"


def load(home: Path, text: str) -> Settings:
    file = home / "t.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file=file, home=home, environ={"HOME": str(home)})


def of(found: Sequence[Finding], part: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in found if finding.part == part}


def look() -> Look:
    return Look("target t", str)


class Special(Wrapper):
    """A store with faults of its own."""

    def __init__(self, inner: StorageBackend, features: Features, refuse: dict[str, StorageError]) -> None:
        super().__init__(inner)
        self._features = features
        self._refuse = refuse

    @property
    def features(self) -> Features:
        return self._features

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        if isinstance(error := self._refuse.get("write"), PermissionDenied):
            raise error
        receipt = await self.inner.write(key, chunks, attributes)
        if error is not None:
            raise error
        return receipt

    async def delete(self, key: str) -> bool:
        if error := self._refuse.get("delete"):
            raise error
        return await self.inner.delete(key)


async def special(**refuse: StorageError) -> tuple[Special, MemoryBackend]:
    memory = await MemoryBackend.connect(MemoryOptions())
    return Special(memory, memory.features, refuse), memory


async def keys(backend: StorageBackend) -> list[str]:
    return [stat.key async for stat in backend.list()]


async def test_a_probe_leaves_nothing() -> None:
    backend, memory = await special()
    seen = look()
    await doctor._probe(seen, backend, "p/", is_target=True)
    (finding,) = seen.findings
    assert (finding.check, finding.state) == ("writable", State.OK)
    assert await keys(memory) == []


async def test_a_probe_whose_answer_was_lost_leaves_nothing() -> None:
    backend, memory = await special(write=Unavailable("lost"))
    with pytest.raises(Unavailable):
        await doctor._probe(look(), backend, "", is_target=True)
    assert await keys(memory) == []


async def test_a_probe_that_stays_is_named() -> None:
    backend, memory = await special(delete=PermissionDenied("no deletes"))
    seen = look()
    await doctor._probe(seen, backend, "p/", is_target=True)
    (key,) = await keys(memory)
    assert key.startswith("p/.transload-doctor-")
    (problem,) = [finding for finding in seen.findings if finding.state is State.PROBLEM]
    assert problem.check == "deletable"
    assert key in problem.text


async def test_staging_may_be_read_only_and_a_target_may_not() -> None:
    backend, _ = await special(write=PermissionDenied("read only"))
    seen = look()
    await doctor._probe(seen, backend, "", is_target=False)
    assert [finding.state for finding in seen.findings] == [State.NOTE]
    with pytest.raises(PermissionDenied):
        await doctor._probe(seen, backend, "", is_target=True)


async def test_nothing_is_written_where_nothing_can_be_deleted() -> None:
    backend, memory = await special()
    backend._features = replace(backend.features, deletes=False)
    seen = look()
    await doctor._probe(seen, backend, "", is_target=True)
    assert [finding.state for finding in seen.findings] == [State.NOTE]
    assert await keys(memory) == []


async def test_what_a_place_cannot_do() -> None:
    backend, _ = await special()
    backend._features = replace(backend.features, reads=False, create_only=False)
    for is_target, state in ((True, State.NOTE), (False, State.PROBLEM)):
        seen = look()
        doctor._features(seen, backend, is_target=is_target)
        assert [finding.state for finding in seen.findings] == [state]


@pytest.mark.parametrize(
    ("theirs", "state"), [(100.0, State.OK), (30.0, State.PROBLEM), (170.0, State.PROBLEM)]
)
def test_clocks(theirs: float, state: State) -> None:
    seen = look()
    seen.clock(theirs, 100.0)
    (finding,) = seen.findings
    assert finding.state is state


async def test_a_part_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = load(
        tmp_path,
        f"targets: {{s: {{backend: s3, bucket: silent, region: x, endpoint_url: 'http://127.0.0.1:{port}', "
        "access_key_id: x, secret_access_key: y}}",
    )
    found = await examine(settings, seconds=1.0)
    server.close()
    problem = of(found, "target s")["reachable"]
    assert (problem.state, problem.text) == (State.PROBLEM, "no answer within 1 s")


async def test_an_adapter_with_an_error_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: BackendOptions) -> MemoryBackend:
        raise ZeroDivisionError(f"of {CANARY}")

    monkeypatch.setattr(MemoryBackend, "connect", broken)
    text = f"targets: {{main: {{}}, m: {{backend: memory}}, s: {{backend: s3, bucket: bbb, region: x, access_key_id: x, secret_access_key: {CANARY}, endpoint_url: 'http://127.0.0.1:1'}}}}"
    found = await examine(load(tmp_path, text))
    problem = of(found, "target m")["reachable"]
    assert problem.state is State.PROBLEM
    assert "ZeroDivisionError: of ****" in problem.text
    assert CANARY not in str(found)
    assert of(found, "target main")["reachable"].state is State.OK


def test_secrets_are_taken_out_of_every_text(tmp_path: Path) -> None:
    text = f"ledger: {{url: 'postgresql://u:{CANARY}-db@h/d'}}"
    clean = hiding(load(tmp_path, text))
    assert CANARY not in clean(f"password {CANARY}-db of the ledger")
    assert clean("https://u:short@h/") == "https://**********@h/"


async def test_retention_of_dead_letters_on_sqs(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    async with sqs_queues(localstack) as queues:
        options = "".join(
            f", {name}: '{getattr(value, 'get_secret_value', lambda value=value: value)()}'"
            for name, value in queues.options().items()
        )
        settings = load(tmp_path, f"queue: {{type: sqs{options}}}")
        found = of(await examine(settings), "queue")
        assert found["reachable"].state is State.OK, found
        assert found["dead letters"].state is State.OK
        assert found["retention"].state is State.PROBLEM
        assert "4 days" in found["retention"].text
        assert "redrive policy" not in found
        await queues.client.set_queue_attributes(
            QueueUrl=queues.dead_url, Attributes={"MessageRetentionPeriod": "1209600"}
        )
        found = of(await examine(settings), "queue")
        assert (found["retention"].state, "14 days" in found["retention"].text) == (State.OK, True)


async def test_what_a_bucket_tells(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    bucket = await new_bucket(localstack)
    settings = load(tmp_path, f"targets: {{s: {{{s3(localstack, bucket)}}}}}")
    found = of(await examine(settings), "target s")
    assert found["unfinished uploads"].state is State.NOTE
    async with s3_client(localstack) as client:
        await client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        await client.put_bucket_lifecycle_configuration(
            Bucket=bucket,
            LifecycleConfiguration={
                "Rules": [
                    {
                        "ID": "uploads",
                        "Status": "Enabled",
                        "Filter": {"Prefix": ""},
                        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
                    }
                ]
            },
        )
    found = of(await examine(settings), "target s")
    assert found["versioning"].text == "versioning is on"
    assert found["unfinished uploads"].text == "a lifecycle rule ends them after 7 days"
    assert found["encryption"].text == "encrypted by default: AES256"
    assert found["clock"].state is State.OK


async def test_a_wrong_key_is_denied_and_not_shown(radosgw: LocalStackEndpoint, tmp_path: Path) -> None:
    bucket = await new_bucket(radosgw)
    wrong = replace(radosgw, secret_access_key=CANARY)
    text = f"targets: {{right: {{{s3(radosgw, bucket)}}}, wrong: {{{s3(wrong, bucket)}}}}}"
    found = await examine(load(tmp_path, text), write=True)
    denied = of(found, "target wrong")["reachable"]
    assert denied.state is State.PROBLEM
    assert "credentials" in denied.remedy
    assert CANARY not in str(found)
    assert of(found, "target right")["writable"].state is State.OK


def s3(endpoint: LocalStackEndpoint, bucket: str) -> str:
    return (
        f"backend: s3, bucket: {bucket}, region: {endpoint.region}, endpoint_url: '{endpoint.endpoint_url}', "
        f"access_key_id: {endpoint.access_key_id}, secret_access_key: '{endpoint.secret_access_key}'"
    )
