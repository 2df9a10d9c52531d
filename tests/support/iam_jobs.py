"""What each policy of docs/iam is for, done: a job uses all that its policy allows, and fails in words when it may not.

A job runs with the policy under test and those `beside` it, all attached to the identity of the policy's name. `prepare` runs
before, as somebody who may do everything. Used by tests/e2e/test_least_privilege.py.
"""

import asyncio
import base64
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs

from backends.base import Attributes, Promise, single
from backends.s3 import S3Backend
from backends.s3_client import S3Options
from handlers.transforms.key_ring import KeyOptions, KeyRingOptions, KmsOptions, load_ring
from tests.support.iam_front import ACCOUNT
from tests.support.iam_world import (
    ADMIN,
    LARGE,
    PART,
    STAGING_PREFIX,
    TARGET_PREFIX,
    JobFailed,
    World,
)
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import s3_client
from worker import bootstrap, secrets_manager, stores
from worker.cloudwatch import sending
from worker.producer import BundleRef
from worker.provision.plan import Step
from worker.provision.run import planned
from worker.publishers.base import Notification
from worker.settings_process import CloudWatchSettings
from worker.settings_secrets import SecretsSettings, Unreadable, Version

Work = Callable[[World], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One policy's."""

    do: Work
    prepare: Work
    beside: tuple[str, ...] = ()
    costly: bool = False
    """Takes a second of computing and more, and shows little that the others do not."""


async def _nothing(_: World) -> None:
    """Nothing is made before."""


async def _made(world: World) -> None:
    await world.make()


async def _published(world: World) -> None:
    """A bundle is stored and announced."""
    await world.make()
    await world.stage(b"small")
    content = world.content(ADMIN)
    del content["targets"]["copies"], content["targets"]["lake"]["archive"]
    await world.work(world.settings(content))


async def _buried(world: World) -> None:
    """Two messages are among the dead letters."""
    await world.make()
    for body in ("no message", "none either"):
        await world.sqs.send_message(QueueUrl=world.url("resources"), MessageBody=body)
    await world.work(world.settings(world.content(ADMIN)))


async def _with_key(world: World) -> None:
    """As `_made`, and everything encrypted with a key of KMS."""
    await world.make()
    async with s3_client(world.endpoint, "kms") as kms:
        world.kms_key = (await kms.create_key())["KeyMetadata"]["KeyId"]
    for bucket in ("staging", "lake"):
        world.front.keys[f"arn:aws:s3:::{world.name(bucket)}"] = world.kms_arn
    for queue in ("resources", "dead", "completions"):
        world.front.keys[f"arn:aws:sqs:{world.endpoint.region}:{ACCOUNT}:{world.name(queue)}"] = world.kms_arn


async def _worker(world: World) -> None:
    """Small and large payloads, streamed and copied; a message that is retried and one that dies; archive, manifest; a sweep."""
    content = world.content("worker", publisher=ADMIN)
    await world.stage(b"small", LARGE)
    missing = {
        "type": "resource.fetched",
        "version": 1,
        "id": world.run,
        "bundle": {"bid": "test-missing", "recipe_id": "fr", "primary_url": "https://example.org/"},
        "resource": {"url": "https://example.org/missing"},
        "payload": {"location": f"s3://{world.name('staging')}/{STAGING_PREFIX}/missing"},
    }
    for body in ("no message", json.dumps(missing)):
        await world.sqs.send_message(QueueUrl=world.url("resources"), MessageBody=body)
    await world.work(world.settings(content))
    if (await world.depth("completions"), await world.depth("dead")) != (1, 2):
        raise JobFailed("the worker has not done its work")
    # A queue whose dead letters are named by URL is looked up by it, not by its redrive policy.
    content["queue"]["dead_letter_queue_url"] = world.url("dead")
    async with bootstrap.open_queue(world.settings(content)):
        pass
    await _swept(world, content)


async def _swept(world: World, content: Mapping[str, Any]) -> None:
    settings = world.settings(content)
    for bucket, prefix in (("staging", STAGING_PREFIX), ("lake", TARGET_PREFIX)):
        await world.s3.create_multipart_upload(Bucket=world.name(bucket), Key=f"{prefix}/left-behind")
    async with stores.open_staging(settings) as staging, stores.open_targets(settings) as targets:
        swept = [
            await staging["main"].sweep(0, f"{STAGING_PREFIX}/"),
            await targets["lake"].sweep(0, f"{TARGET_PREFIX}/"),
        ]
    if swept != [1, 1]:
        raise JobFailed(f"swept: {swept}")


async def _relay(world: World) -> None:
    async with bootstrap.open_publisher(world.settings(world.content("relay"))) as publisher:
        for outcome in await publisher.publish([Notification("id", "group", b"{}", {"bundle_id": "a"})]):
            if outcome is not None:
                raise JobFailed(str(outcome))


async def _publish(world: World) -> None:
    """A bundle is staged, announced and closed; all of that again after an error; a stream that breaks off."""
    content = world.content("publish")
    async with bootstrap.open_producer(world.settings(content)) as producer:
        for _ in range(2):
            bundle = await producer.start_bundle(BundleRef("https://example.org/", bid="test-bundle"), "fr")
            await bundle.add_resource("https://example.org/a", "text/plain", 200, single(b"small"))
            await bundle.add_resource("https://example.org/b", "text/plain", 200, single(LARGE))
            await bundle.complete({})
        try:
            broken = await producer.start_bundle(BundleRef("https://example.org/"), "fr")
            await broken.add_resource("https://example.org/c", "text/plain", 200, _broken())
        except _BrokenOffError as exc:
            if getattr(exc, "__notes__", []):
                raise JobFailed("".join(traceback.format_exception_only(exc))) from exc
    content["queue"]["dead_letter_queue_url"] = world.url("dead")
    async with bootstrap.open_queue(world.settings(content)):
        pass


class _BrokenOffError(Exception):
    """What a fetcher's connection raises."""


async def _broken() -> AsyncIterator[bytes]:
    yield LARGE
    raise _BrokenOffError


async def _keda(world: World) -> None:
    """As KEDA's scaler does: https://keda.sh/docs/latest/scalers/aws-sqs/."""
    endpoint = LocalStackEndpoint(world.front.url, world.endpoint.region, "keda", "secret")
    async with s3_client(endpoint, "sqs") as sqs:
        await sqs.get_queue_attributes(
            QueueUrl=world.url("resources"),
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesDelayed",
                "ApproximateNumberOfMessagesNotVisible",
            ],
        )


async def _read(world: World) -> None:
    content = world.content("read")
    await world.command(content, "status")
    printed = await world.command(content, "ls", "lake")
    staged = (await world.command(content, "ls", "staging:main")).splitlines()[0]
    await world.command(content, "get", f"staging:main:{staged}", "-o", str(world.folder))
    key = next(line for line in printed.splitlines() if line.endswith(".bin"))
    await world.command(content, "get", f"lake:{key}", "-o", str(world.folder), "--force")
    (bid,) = [part for part in key.split("/") if part.count("-") == 4]
    await world.command(content, "verify", bid)
    doctor = await world.command(content, "doctor", "--json")
    if "not known" in doctor or '"problem"' in doctor:
        raise JobFailed(doctor)


async def _dead_letters(world: World) -> None:
    content = world.content("dead-letters")
    await world.command(content, "dlq", "ls")
    await world.command(content, "dlq", "redrive", "--all", "--limit", "1")
    await world.command(content, "dlq", "purge", "--all", "--yes")


def _provisioning(world: World, identity: str, **bucket: Any) -> dict[str, Any]:
    described = {"versioning": True, "encryption": "AES256", "tags": {"team": "data"}, **bucket}
    content = world.content(identity)
    del content["targets"]["copies"]
    return {
        **content,
        "provision": {
            "buckets": {name: {"bucket": world.name(name), **described} for name in ("lake", "staging")},
            "queues": {
                world.name("resources"): {
                    "dead_letter_queue": world.name("dead"),
                    "visibility_timeout": bucket.get("expire", 30),
                }
            },
        },
    }


async def _steps(world: World, content: Mapping[str, Any], *, change: bool) -> list[Step]:
    async with planned(world.settings(content)) as steps:
        if change:
            for step in steps:
                await step.apply()
        return list(steps)


async def _provision(world: World) -> None:
    """Everything is made, then changed, then a policy of ours is taken away again."""
    document = world.folder / "policy.json"
    document.write_text(
        '{"Version": "2012-10-17", "Statement": [{"Sid": "Read", "Effect": "Allow", "Action": "s3:GetObject", '
        '"Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "Resource": "arn:aws:s3:::{bucket}/*"}]}',
        encoding="utf-8",
    )
    content = _provisioning(world, "provision", bucket_policy=str(document))
    await _steps(world, content, change=True)
    queue = content["provision"]["queues"][world.name("resources")]
    queue["visibility_timeout"] = 60
    for bucket in content["provision"]["buckets"].values():
        bucket["bucket_policy"] = "private"
    await _steps(world, content, change=True)
    # Somebody took the allowance from the queue of dead letters: who sends there has to be asked for.
    await world.sqs.set_queue_attributes(QueueUrl=world.url("dead"), Attributes={"RedriveAllowPolicy": ""})
    await _steps(world, content, change=True)


async def _provisioned(world: World) -> None:
    await _steps(world, _provisioning(world, ADMIN), change=True)
    await world.sqs.set_queue_attributes(QueueUrl=world.url("dead"), Attributes={"RedriveAllowPolicy": ""})


async def _provision_check(world: World) -> None:
    await _steps(world, _provisioning(world, "provision-check"), change=False)


async def _delete_staged(world: World) -> None:
    content = world.content("delete-staged")
    content["staging"]["main"]["delete_published"] = True
    with capture_logs() as logs:
        async with bootstrap.open_housekeeping(world.settings(content)) as housekeeping:
            swept = await housekeeping.sweep_once()
    if swept.failures or not swept.staged:
        raise JobFailed("\n".join(str(line.get("error", "")) for line in logs))


async def _delete_stored(world: World) -> None:
    content = world.content("delete-stored")
    printed = await world.command(content, "ls", "lake")
    await world.command(content, "rm", f"lake:{printed.splitlines()[0]}", "--force", "--yes")


def _options(world: World, identity: str, bucket: str, **changes: Any) -> S3Options:
    return S3Options(bucket=world.name(bucket), part_size=PART, **world.access(identity), **changes)


async def _start_probe(world: World) -> None:
    options = _options(world, "start-probe", "lake", encryption="AES256")
    await (await S3Backend.connect(options)).aclose()


async def _kms_s3(world: World) -> None:
    """Objects in one and in several parts, written, read and copied."""
    async with AsyncExitStack() as stack:
        target = await S3Backend.connect(_options(world, "kms-s3", "lake"))
        stack.push_async_callback(target.aclose)
        staging = await S3Backend.connect(_options(world, "kms-s3", "staging"))
        stack.push_async_callback(staging.aclose)
        attributes = Attributes("text/plain")
        await world.s3.put_object(
            Bucket=world.name("staging"), Key=f"{STAGING_PREFIX}/a", Body=bytes(1 << 20)
        )
        async with staging.open(f"{STAGING_PREFIX}/a") as chunks:
            async for _ in chunks:
                pass
        await target.write(f"{TARGET_PREFIX}/small", single(b"small"), attributes)
        await target.write(f"{TARGET_PREFIX}/large", single(LARGE), attributes)
        await target.copy_from(
            staging, f"{STAGING_PREFIX}/a", f"{TARGET_PREFIX}/copied", attributes, Promise()
        )


async def _kms_sqs(world: World) -> None:
    """A message is received, and dies."""
    await world.sqs.send_message(QueueUrl=world.url("resources"), MessageBody="no message")
    keys, world.front.keys = world.front.keys, {k: v for k, v in world.front.keys.items() if ":sqs:" in k}
    await world.work(world.settings(world.content("kms-sqs", publisher=ADMIN)))
    world.front.keys = keys
    if await world.depth("dead") != 1:
        raise JobFailed("no dead letter")


async def _kms_keys(world: World) -> None:
    async with s3_client(world.endpoint, "kms") as kms:
        made = await kms.generate_data_key(KeyId=world.kms_key, KeySpec="AES_256")
    file = world.folder / "wrapped.key"
    file.write_bytes(base64.b64encode(made["CiphertextBlob"]))
    asked = KmsOptions(**world.access("kms-keys"))
    key = KeyOptions(kms_wrapped_file=file, kms_key_id=world.kms_key)
    await load_ring(KeyRingOptions(keys={"k1": key}, primary="k1", kms=asked))


async def _secret(world: World) -> None:
    """A secret, encrypted with a key of KMS."""
    await _with_key(world)
    async with s3_client(world.endpoint, "secretsmanager") as manager:
        await manager.create_secret(Name=world.name("secret"), SecretString="hush")
    arn = f"arn:aws:secretsmanager:{world.endpoint.region}:{ACCOUNT}:secret:{world.name('secret')}-AbCdEf"
    world.front.keys[arn] = world.kms_arn


async def _secrets_as(identity: str, world: World) -> None:
    version = Version(world.name("secret"), "")
    found = (await secrets_manager.read(SecretsSettings(**world.access(identity)), [version]))[version]
    if isinstance(found, Unreadable):
        raise found


async def _cloudwatch(world: World) -> None:
    registry = CollectorRegistry()
    Counter("transload_jobs", "Jobs.", registry=registry).inc()
    settings = CloudWatchSettings(enabled=True, **world.access("cloudwatch"))
    with capture_logs() as logs:
        async with sending(settings, registry):
            await asyncio.sleep(0)
    if logs:
        raise JobFailed(str(logs))


async def _assume_role(world: World) -> None:
    """Whoever may only become the role does what the role may."""
    world.front.roles["arn:aws:iam::000000000000:role/storing"] = ADMIN
    options = _options(
        world,
        "assume-role",
        "lake",
        role_arn="arn:aws:iam::000000000000:role/storing",
        sts_endpoint_url=world.front.url,
    )
    await (await S3Backend.connect(options)).aclose()


JOBS: Final[Mapping[str, Job]] = MappingProxyType(
    {
        "worker": Job(_worker, _made),
        "relay": Job(_relay, _made),
        "publish": Job(_publish, _made),
        "keda": Job(_keda, _made),
        "read": Job(_read, _published),
        "dead-letters": Job(_dead_letters, _buried, costly=True),
        "provision": Job(_provision, _nothing),
        "provision-check": Job(_provision_check, _provisioned),
        "delete-staged": Job(_delete_staged, _published, beside=("worker",), costly=True),
        "delete-stored": Job(_delete_stored, _published, beside=("read",), costly=True),
        "start-probe": Job(_start_probe, _made, beside=("worker",)),
        "kms-s3": Job(_kms_s3, _with_key, beside=("worker",)),
        "kms-sqs": Job(_kms_sqs, _with_key, beside=("worker",)),
        "kms-keys": Job(_kms_keys, _with_key),
        "secrets": Job(partial(_secrets_as, "secrets"), _secret, beside=("kms-secrets",)),
        "kms-secrets": Job(partial(_secrets_as, "kms-secrets"), _secret, beside=("secrets",)),
        "cloudwatch": Job(_cloudwatch, _nothing),
        "assume-role": Job(_assume_role, _made),
    }
)
"""By the name of the policy's file."""
