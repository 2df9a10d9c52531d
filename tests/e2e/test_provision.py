"""`transload provision` on LocalStack: buckets and queues made, changed, left alone. The names are those of the seed's documents."""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from tests.support.cli import Transload
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import s3_client
from tests.support.s3_front import front_of
from worker import bootstrap, stores
from worker.cli import app
from worker.provision.calls import PERMISSIONS
from worker.settings import SettingsError, load_settings

BLOCKED = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
DAY = 86_400


@dataclass(slots=True)
class World:
    """Names of one test, the command, and clients to look behind its back."""

    endpoint: LocalStackEndpoint
    folder: Path
    s3: Any
    sqs: Any
    run_id: str = field(default_factory=lambda: secrets.token_hex(6))

    def access(self) -> dict[str, Any]:
        return {
            "region": self.endpoint.region,
            "endpoint_url": self.endpoint.endpoint_url,
            "access_key_id": self.endpoint.access_key_id,
            "secret_access_key": self.endpoint.secret_access_key,
        }

    def configure(self, **sections: Any) -> None:
        """Write the settings; without more they name one bucket, as a target."""
        target = {"main": {"backend": "s3", "bucket": f"lake-{self.run_id}", **self.access()}}
        content = {"targets": target, **sections}
        (self.folder / "transload.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def described(self, **bucket: Any) -> None:
        """Describe that bucket in the section `provision`."""
        self.configure(provision={"buckets": {"lake": {"bucket": f"lake-{self.run_id}", **bucket}}})

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run it in this process, on a loop of its own: exit status, what it printed, what it said."""
        command = ["--config", str(self.folder / "transload.yaml"), "--home", str(self.folder), "provision"]
        done = await asyncio.to_thread(CliRunner().invoke, app, [*command, *arguments])
        if isinstance(done.exception, SettingsError):
            return 2, done.stdout, str(done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    async def provision(self, *arguments: str, status: int = 0) -> list[tuple[str, str, str, str, str]]:
        """Run it; its steps: verdict, resource without this test's suffix, aspect, old and new."""
        found, printed, said = await self.run("--json", *arguments)
        assert found == status, f"{printed}\n{said}"
        lines = [json.loads(line) for line in printed.replace(self.run_id, "X").splitlines()]
        return [tuple(line.values()) for line in lines]

    async def refused(self, status: int, *arguments: str) -> str:
        """Run it and see it fail; what it says."""
        found, printed, said = await self.run(*arguments)
        assert found == status, f"{printed}\n{said}"
        return said

    @property
    def bucket(self) -> str:
        return f"lake-{self.run_id}"

    async def buckets(self) -> set[str]:
        found = (await self.s3.list_buckets())["Buckets"]
        return {each["Name"] for each in found if self.run_id in each["Name"]}

    async def queues(self) -> set[str]:
        found = (await self.sqs.list_queues(MaxResults=1000)).get("QueueUrls", [])
        return {url.rpartition("/")[2] for url in found if self.run_id in url}

    async def facts(self, name: str) -> dict[str, str]:
        url = (await self.sqs.get_queue_url(QueueName=f"{name}-{self.run_id}"))["QueueUrl"]
        facts: dict[str, str] = (await self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]))[
            "Attributes"
        ]
        return facts

    async def rules(self) -> dict[str, Any]:
        answer = await self.s3.get_bucket_lifecycle_configuration(Bucket=self.bucket)
        return {rule["ID"]: rule for rule in answer["Rules"]}


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """The command sends logs to where its own process would; here that stream ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def world(localstack: LocalStackEndpoint, tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        s3 = await stack.enter_async_context(s3_client(localstack))
        sqs = await stack.enter_async_context(s3_client(localstack, "sqs"))
        yield World(localstack, tmp_path, s3, sqs)


def verdicts(steps: list[tuple[str, str, str, str, str]]) -> set[str]:
    return {step[0] for step in steps}


async def test_what_the_settings_name_is_made_and_found_as_it_should_be(world: World) -> None:
    url = f"{world.endpoint.endpoint_url}/queue/us-east-1/000000000000"
    world.configure(
        staging={"main": {"backend": "s3", "bucket": f"staging-{world.run_id}", **world.access()}},
        queue={"type": "sqs", "queue_url": f"{url}/resources-{world.run_id}", **world.access()},
        publisher={"type": "sqs", "queue_url": f"{url}/completions-{world.run_id}", **world.access()},
        targets={
            "main": {"backend": "s3", "bucket": world.bucket, **world.access()},
            "local": {"backend": "file"},
        },
    )
    planned = await world.provision("--dry-run")
    assert "create" in verdicts(planned) <= {"create", "ok"}
    assert await world.buckets() == set()
    assert await world.queues() == set()
    await world.provision("--check", status=1)
    assert await world.buckets() == set()

    assert await world.provision() == planned
    assert await world.buckets() == {world.bucket, f"staging-{world.run_id}"}
    assert await world.queues() == {
        f"{name}-{world.run_id}{suffix}"
        for name, suffix in (("resources", ""), ("resources", "-dead"), ("completions", ""))
    }
    for bucket in await world.buckets():
        block = await world.s3.get_public_access_block(Bucket=bucket)
        assert block["PublicAccessBlockConfiguration"] == BLOCKED
    abort = (await world.rules())["transload-abort-incomplete"]
    assert abort["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert abort["Status"] == "Enabled"

    assert verdicts(await world.provision()) == {"ok"}
    assert verdicts(await world.provision("--check")) == {"ok"}


async def test_the_worker_starts_on_what_was_made(world: World) -> None:
    url = f"{world.endpoint.endpoint_url}/queue/us-east-1/000000000000"
    world.configure(
        queue={"type": "sqs", "queue_url": f"{url}/resources-{world.run_id}", "lease": 5, **world.access()},
        publisher={"type": "sqs", "queue_url": f"{url}/completions-{world.run_id}", **world.access()},
    )
    await world.provision()
    settings = load_settings(file=world.folder / "transload.yaml", home=world.folder, environ={})
    async with AsyncExitStack() as stack:
        with capture_logs() as logged:
            queue = await stack.enter_async_context(bootstrap.open_queue(settings))
            await stack.enter_async_context(bootstrap.open_publisher(settings))
            await stack.enter_async_context(stores.open_targets(settings))
        # Nothing of what the queue warns of when it is badly made.
        assert logged == []
        assert (await queue.depth()).dead == 0


async def test_environment_names_the_bucket(world: World) -> None:
    world.configure(
        targets={},
        provision={
            "environment": world.run_id,
            "access": world.access(),
            "buckets": {"main": {"create_bucket": True}, "archive": {"bucket": "oc-{name}-{environment}"}},
        },
    )
    await world.provision()
    assert await world.buckets() == {f"oc-fetcher-{world.run_id}", f"oc-archive-{world.run_id}"}


async def test_create_bucket_false_makes_none(world: World) -> None:
    world.described(create_bucket=False)
    assert await world.provision("--dry-run") == [
        ("differs", "bucket lake-X", "create_bucket", "none", "in us-east-1")
    ]
    await world.provision(status=1)
    assert await world.buckets() == set()
    await world.s3.create_bucket(Bucket=world.bucket)
    await world.provision()


async def test_bucket_policy_public_read_wants_a_flag(world: World) -> None:
    world.described(bucket_policy="public-read")
    assert "allow_public: true" in await world.refused(2)
    assert await world.buckets() == set()

    world.described(bucket_policy="public-read", allow_public=True)
    await world.provision()
    policy = json.loads((await world.s3.get_bucket_policy(Bucket=world.bucket))["Policy"])
    assert policy["Statement"] == [
        {
            "Sid": "TransloadPublicRead",
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": f"arn:aws:s3:::{world.bucket}/*",
        }
    ]
    block = await world.s3.get_public_access_block(Bucket=world.bucket)
    assert block["PublicAccessBlockConfiguration"] == {
        **BLOCKED,
        "BlockPublicPolicy": False,
        "RestrictPublicBuckets": False,
    }
    assert verdicts(await world.provision()) == {"ok"}

    world.described(bucket_policy="private")
    await world.provision()
    with pytest.raises(world.s3.exceptions.ClientError, match="NoSuchBucketPolicy"):
        await world.s3.get_bucket_policy(Bucket=world.bucket)
    block = await world.s3.get_public_access_block(Bucket=world.bucket)
    assert block["PublicAccessBlockConfiguration"] == BLOCKED


async def test_bucket_policy_from_a_file_joins_what_others_wrote(world: World) -> None:
    theirs = {
        "Sid": "Theirs",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{world.bucket}/*",
    }
    await world.s3.create_bucket(Bucket=world.bucket)
    await world.s3.put_bucket_policy(
        Bucket=world.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [theirs]})
    )
    ours = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:*"],
        "Resource": ["arn:aws:s3:::{bucket}/*", "arn:aws:s3:::{bucket}"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    file = world.folder / "policy.json"
    file.write_text(json.dumps({"Statement": [ours]}), encoding="utf-8")
    world.described(bucket_policy="policy.json")
    await world.provision()
    policy = json.loads((await world.s3.get_bucket_policy(Bucket=world.bucket))["Policy"])
    assert {each["Sid"]: each["Action"] for each in policy["Statement"]} == {
        "Theirs": "s3:DeleteObject",
        "TransloadTlsOnly": ["s3:*"],
    }
    assert verdicts(await world.provision()) == {"ok"}

    file.write_text(json.dumps({"Statement": {**ours, "Effect": "Allow", "Condition": {}}}), encoding="utf-8")
    assert "lets everybody in" in await world.refused(2)
    file.write_text("[]", encoding="utf-8")
    assert "is no policy document" in await world.refused(2)
    world.described()
    await world.provision()
    policy = json.loads((await world.s3.get_bucket_policy(Bucket=world.bucket))["Policy"])
    assert policy["Statement"] == [theirs]


async def test_versioning(world: World) -> None:
    world.described(versioning=False)
    await world.provision()
    assert "Status" not in await world.s3.get_bucket_versioning(Bucket=world.bucket)
    world.described(versioning=True)
    (step,) = [step for step in await world.provision() if step[2] == "versioning"]
    assert step == ("create", "bucket lake-X", "versioning", "none", "Enabled")
    assert (await world.s3.get_bucket_versioning(Bucket=world.bucket))["Status"] == "Enabled"
    world.described()
    assert verdicts(await world.provision()) == {"ok"}
    world.described(versioning=False)
    (step,) = [step for step in await world.provision() if step[2] == "versioning"]
    assert step == ("change", "bucket lake-X", "versioning", "Enabled", "Suspended")


async def test_lifecycle_policy_preset_and_full_form(world: World) -> None:
    world.described(lifecycle_policy="archive-after-30-days")
    await world.provision()
    rule = (await world.rules())["transload-lifecycle"]
    assert rule["Transitions"] == [{"Days": 30, "StorageClass": "GLACIER"}]
    assert verdicts(await world.provision("--check")) == {"ok"}

    transitions = [{"days": 30, "storage_class": "STANDARD_IA"}, {"days": 90, "storage_class": "GLACIER"}]
    world.described(lifecycle_policy={"transitions": transitions, "expiration": {"days": 365}})
    (step,) = [step for step in await world.provision("--dry-run") if step[0] != "ok"]
    abort = "transload-abort-incomplete: abort incomplete uploads after 7 days"
    assert step == (
        "change",
        "bucket lake-X",
        "lifecycle_policy",
        f"{abort}; transload-lifecycle: GLACIER after 30 days",
        f"{abort}; transload-lifecycle: STANDARD_IA after 30 days, GLACIER after 90 days, expire after 365 days",
    )
    assert (await world.rules())["transload-lifecycle"] == rule
    await world.provision()
    rule = (await world.rules())["transload-lifecycle"]
    assert rule["Transitions"] == [
        {"Days": 30, "StorageClass": "STANDARD_IA"},
        {"Days": 90, "StorageClass": "GLACIER"},
    ]
    assert rule["Expiration"] == {"Days": 365}
    assert verdicts(await world.provision()) == {"ok"}

    world.described(lifecycle_policy="expire-after-10-days", abort_incomplete_after_days=2)
    await world.provision()
    rules = await world.rules()
    assert rules["transload-lifecycle"]["Expiration"] == {"Days": 10}
    assert "Transitions" not in rules["transload-lifecycle"]
    assert rules["transload-abort-incomplete"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}


async def test_what_others_have_put_there_stays(world: World) -> None:
    await world.s3.create_bucket(Bucket=world.bucket)
    theirs = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 1}}
    old = {"ID": "transload-old", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 5}}
    await world.s3.put_bucket_lifecycle_configuration(
        Bucket=world.bucket, LifecycleConfiguration={"Rules": [theirs, old]}
    )
    tags = [{"Key": "team", "Value": "theirs"}, {"Key": "stage", "Value": "old"}]
    await world.s3.put_bucket_tagging(Bucket=world.bucket, Tagging={"TagSet": tags})
    world.described(lifecycle_policy="archive-after-30-days", tags={"stage": "production"})
    steps = await world.provision()
    (step,) = [step for step in steps if step[2] == "lifecycle_policy"]
    assert step[3].endswith("; kept: theirs")
    rules = await world.rules()
    assert rules["theirs"] == theirs
    assert set(rules) == {"theirs", "transload-abort-incomplete", "transload-lifecycle"}
    found = (await world.s3.get_bucket_tagging(Bucket=world.bucket))["TagSet"]
    assert {each["Key"]: each["Value"] for each in found} == {"team": "theirs", "stage": "production"}
    assert verdicts(await world.provision()) == {"ok"}


async def test_drift_is_shown_and_mended(world: World) -> None:
    world.described(versioning=True)
    await world.provision()
    rule = {**(await world.rules())["transload-abort-incomplete"], "Status": "Disabled"}
    await world.s3.put_bucket_lifecycle_configuration(
        Bucket=world.bucket, LifecycleConfiguration={"Rules": [rule]}
    )
    await world.s3.delete_public_access_block(Bucket=world.bucket)
    steps = [step for step in await world.provision("--check", status=1) if step[0] != "ok"]
    assert [(step[0], step[2]) for step in steps] == [
        ("create", "public_access_block"),
        ("change", "lifecycle_policy"),
    ]
    assert "disabled" in steps[1][3]
    await world.provision()
    assert verdicts(await world.provision("--check")) == {"ok"}


async def test_encryption_and_kms_key_id(world: World) -> None:
    world.described(encryption="AES256")
    await world.provision()
    assert await default_encryption(world) == {"SSEAlgorithm": "AES256"}
    async with s3_client(world.endpoint, "kms") as kms:
        key = (await kms.create_key())["KeyMetadata"]["Arn"]
    world.described(encryption="aws:kms", kms_key_id=key)
    (step,) = [step for step in await world.provision() if step[2] == "encryption"]
    assert step == ("change", "bucket lake-X", "encryption", "AES256", f"aws:kms {key}")
    assert await default_encryption(world) == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    assert verdicts(await world.provision()) == {"ok"}


async def test_a_bucket_encrypts_as_its_target_asks(world: World) -> None:
    target = {"backend": "s3", "bucket": world.bucket, "encryption": "aws:kms", **world.access()}
    world.configure(targets={"main": target})
    await world.provision()
    assert (await default_encryption(world))["SSEAlgorithm"] == "aws:kms"


async def default_encryption(world: World) -> dict[str, str]:
    answer = await world.s3.get_bucket_encryption(Bucket=world.bucket)
    (rule,) = answer["ServerSideEncryptionConfiguration"]["Rules"]
    default: dict[str, str] = rule["ApplyServerSideEncryptionByDefault"]
    return default


async def test_queues_are_made_with_their_dead_letters(world: World) -> None:
    name = f"work-{world.run_id}"
    given = {
        "name": name,
        "visibility_timeout": 77,
        "retention": 4 * DAY,
        "dead_letter_queue": f"letters-{world.run_id}",
        "dead_letter_retention": 10 * DAY,
        "max_receive_count": 150,
        "encryption": "sqs",
    }
    world.configure(targets={}, provision={"access": world.access(), "queues": {"work": given}})
    await world.provision()
    source, dead = await world.facts("work"), await world.facts("letters")
    assert source["VisibilityTimeout"] == "77"
    assert source["MessageRetentionPeriod"] == str(4 * DAY)
    assert source["SqsManagedSseEnabled"] == "true"
    assert json.loads(source["RedrivePolicy"]) == {
        "deadLetterTargetArn": dead["QueueArn"],
        "maxReceiveCount": 150,
    }
    assert dead["MessageRetentionPeriod"] == str(10 * DAY)
    assert json.loads(dead["RedriveAllowPolicy"]) == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [source["QueueArn"]],
    }
    assert verdicts(await world.provision()) == {"ok"}

    changed = {**given, "visibility_timeout": 60, "max_receive_count": 200, "encryption": "aws:kms"}
    world.configure(targets={}, provision={"access": world.access(), "queues": {"work": changed}})
    steps = [step[2:] for step in await world.provision() if step[0] != "ok"]
    assert ("VisibilityTimeout", "77", "60") in steps
    assert ("RedrivePolicy", "letters-X after 150 receives", "letters-X after 200 receives") in steps
    assert (await world.facts("work"))["KmsMasterKeyId"] == "alias/aws/sqs"
    assert verdicts(await world.provision()) == {"ok"}
    world.configure(targets={}, provision={"access": world.access(), "queues": {"work": given}})
    await world.provision()
    assert not (await world.facts("work")).get("KmsMasterKeyId")
    assert verdicts(await world.provision()) == {"ok"}


async def test_a_fifo_queue(world: World) -> None:
    given = {
        "fifo": True,
        "name": f"work-{world.run_id}.fifo",
        "dead_letter_queue": f"dead-{world.run_id}.fifo",
    }
    world.configure(targets={}, provision={"access": world.access(), "queues": {"work": given}})
    await world.provision()
    assert await world.queues() == {f"work-{world.run_id}.fifo", f"dead-{world.run_id}.fifo"}
    assert verdicts(await world.provision()) == {"ok"}


async def test_dead_letters_that_would_expire_unseen_are_refused(world: World) -> None:
    queue = {"name": f"work-{world.run_id}", "dead_letter_queue": f"dead-{world.run_id}"}
    given = {**queue, "retention": 2 * DAY, "dead_letter_retention": 2 * DAY}
    world.configure(targets={}, provision={"access": world.access(), "queues": {"work": given}})
    assert "dead letters would expire unseen" in await world.refused(2)

    # What the queue itself has counts where the settings say nothing.
    await world.sqs.create_queue(
        QueueName=f"work-{world.run_id}", Attributes={"MessageRetentionPeriod": str(14 * DAY)}
    )
    world.configure(targets={}, provision={"access": world.access(), "queues": {"work": queue}})
    assert "they would expire unseen" in await world.refused(2)
    assert await world.queues() == {f"work-{world.run_id}"}


async def test_the_dead_letters_of_other_queues_stay_welcome(world: World) -> None:
    dead = await world.sqs.create_queue(QueueName=f"dead-{world.run_id}")
    facts = await world.sqs.get_queue_attributes(QueueUrl=dead["QueueUrl"], AttributeNames=["QueueArn"])
    policy = {"deadLetterTargetArn": facts["Attributes"]["QueueArn"], "maxReceiveCount": 3}
    await world.sqs.create_queue(
        QueueName=f"theirs-{world.run_id}", Attributes={"RedrivePolicy": json.dumps(policy)}
    )
    given = {"name": f"work-{world.run_id}", "dead_letter_queue": f"dead-{world.run_id}"}
    world.configure(targets={}, provision={"access": world.access(), "queues": {"work": given}})
    await world.provision()
    allowed = json.loads((await world.facts("dead"))["RedriveAllowPolicy"])["sourceQueueArns"]
    assert [arn.rpartition(":")[2] for arn in allowed] == [f"theirs-{world.run_id}", f"work-{world.run_id}"]
    assert verdicts(await world.provision()) == {"ok"}


async def test_a_queue_of_another_account_differs(world: World) -> None:
    url = f"{world.endpoint.endpoint_url}/queue/us-east-1/111111111111/work-{world.run_id}"
    world.configure(targets={}, publisher={"type": "sqs", "queue_url": url, **world.access()})
    await world.sqs.create_queue(QueueName=f"work-{world.run_id}")
    (step,) = await world.provision(status=1)
    assert step[0] == "differs"
    assert step[4].replace("X", world.run_id) == url


async def test_a_run_that_was_killed_is_finished_by_the_next(world: World) -> None:
    world.described(versioning=True, lifecycle_policy="archive-after-30-days")
    transload = Transload(
        world.folder / "home",
        world.folder / "transload.yaml",
        {"TRANSLOAD_FAILPOINTS": "provision.step.after=kill@2"},
    )
    done = await asyncio.to_thread(transload.run, "provision")
    assert done.returncode == -9
    assert await world.buckets() == {world.bucket}
    steps = {step[2]: step[0] for step in await world.provision()}
    assert steps["create_bucket"] == "ok"
    assert steps["versioning"] == "create"
    assert verdicts(await world.provision()) == {"ok"}


async def test_lines_for_a_person(world: World) -> None:
    world.described(versioning=True)
    _, printed, said = await world.run("--dry-run")
    lines = printed.replace(world.run_id, "X").splitlines()
    assert lines[0] == "create  bucket lake-X  create_bucket: none -> in us-east-1"
    assert "create  bucket lake-X  versioning: none -> Enabled" in lines
    assert said.splitlines()[-1].endswith("nothing was changed")
    await world.provision()
    _, printed, said = await world.run()
    assert "ok      bucket lake-X  versioning: Enabled" in printed.replace(world.run_id, "X").splitlines()
    assert said.splitlines()[-1].endswith(" ok")


@pytest.mark.parametrize(
    ("request_line", "permission"),
    [
        (r"^GET \S+\?policy", "s3:GetBucketPolicy"),
        (r"^PUT \S+\?versioning", "s3:PutBucketVersioning"),
    ],
)
async def test_a_permission_that_is_missing_is_named(
    world: World, request_line: str, permission: str
) -> None:
    await world.s3.create_bucket(Bucket=world.bucket)
    async with front_of(world.endpoint.endpoint_url) as front:
        target = {"backend": "s3", "bucket": world.bucket, **world.access(), "endpoint_url": front.url}
        entry = {"bucket": world.bucket, "versioning": True}
        world.configure(targets={"main": target}, provision={"buckets": {"lake": entry}})
        front.fail_next(request_line, "denied")
        said = await world.refused(1)
        assert f"bucket {world.bucket}: " in said
        assert f"who provisions needs {permission} on it" in said
        await world.provision()


def test_the_permissions_are_in_the_policy() -> None:
    """docs/iam/provision.json allows what every operation needs."""
    policy = (Path(__file__).parents[2] / "docs" / "iam" / "provision.json").read_text(encoding="utf-8")
    assert [each for each in PERMISSIONS.values() if f'"{each}"' not in policy] == []
