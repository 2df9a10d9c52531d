"""The section `provision`, and the documents that are made of it. No service is asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from pydantic import SecretStr, ValidationError

from worker.provision.calls import ask
from worker.provision.plan import NONE, Lacking, ProvisionError, ProvisionRefused, Verdict, compared
from worker.provision.policies import (
    described,
    is_public,
    lifecycle_rules,
    rules_described,
    split,
    statements_of,
)
from worker.provision.settings import ProvisionedBucket, ProvisionSettings
from worker.provision.wanted import wanted_buckets, wanted_queues
from worker.settings import Settings, SettingsError, load_settings

ROLE = "arn:aws:iam::123456789012:role/Provisioner"

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(**sections: Any) -> Settings:
        file = tmp_path / "transload.yaml"
        file.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return load_settings(file=file, home=tmp_path / "home", environ={"SECRET": "s3cr3t"})

    return loaded


def policy(preset: object) -> str:
    given: dict[str, Any] = {"lifecycle_policy": preset}
    return rules_described(lifecycle_rules(ProvisionedBucket(**given).lifecycle_policy, 7)[1:])


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("archive-after-30-days", "GLACIER after 30 days"),
        ("archive-after-1-day", "GLACIER after 1 days"),
        ("expire-after-365-days", "expire after 365 days"),
    ],
)
def test_presets(preset: str, said: str) -> None:
    assert policy(preset) == f"transload-lifecycle: {said}"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("archive-after-0-days", "no preset"),
        ("archive", "no preset"),
        ({}, "says nothing"),
        ({"transitions": [{"days": 29, "storage_class": "STANDARD_IA"}]}, "from their 30th day"),
        ({"transitions": [{"days": 1, "storage_class": "COLD"}]}, "storage_class"),
        (
            {
                "transitions": [
                    {"days": 90, "storage_class": "GLACIER"},
                    {"days": 30, "storage_class": "STANDARD_IA"},
                ]
            },
            "not in the order",
        ),
        (
            {"transitions": [{"days": 90, "storage_class": "GLACIER"}], "expiration": {"days": 90}},
            "expire before",
        ),
    ],
)
def test_a_lifecycle_s3_would_refuse_is_refused(wrong: object, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        policy(wrong)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"buckets": {"a": {"bucket": "lake-{environment}"}}}, "set environment"),
        ({"buckets": {"a": {"bucket": "Lake"}}}, "no name of a bucket"),
        ({"buckets": {"a": {"bucket": "lake-{stage}"}}}, "is not known"),
        ({"environment": "x", "bucket_name": "{stage}"}, "is not known"),
        ({"environment": "x", "buckets": {"a": {}, "b": {}}}, "the same name"),
        ({"environment": "UPPER"}, "pattern"),
        ({"buckets": {"lake": {"kms_key_id": "k"}}}, "needs encryption"),
        ({"buckets": {"lake": {"bucket_policy": "public-read"}}}, "allow_public: true"),
        ({"queues": {"q": {"retention": 600, "dead_letter_retention": 600}}}, "expire unseen"),
        ({"queues": {"q": {"retention": 1_209_600}}}, "retention"),
        ({"queues": {"q": {"name": "q.fifo"}}}, "FIFO"),
        ({"queues": {"q": {"fifo": True, "dead_letter_queue": "dead"}}}, "FIFO"),
        ({"queues": {"q": {"max_receive_count": 1001}}}, "max_receive_count"),
        ({"access": {"external_id": "ours"}}, "needs role_arn"),
    ],
)
def test_what_makes_no_sense_is_refused(load: Load, section: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load(provision=section)


def test_names(load: Load) -> None:
    given = load(
        provision={
            "environment": "staging",
            "buckets": {"main": {}, "raw": {"bucket": "raw-{environment}"}},
            "queues": {"work": {}, "ordered": {"fifo": True}},
        }
    ).provision
    assert set(given.named_buckets) == {"oc-fetcher-staging", "raw-staging"}
    assert set(given.named_queues) == {"work", "ordered.fifo"}
    assert set(ProvisionSettings(buckets={"lake": ProvisionedBucket()}).named_buckets) == {"lake"}


def test_a_policy_file_lies_beside_the_settings(load: Load, tmp_path: Path) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ROLE},
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::{bucket}/*",
    }
    (tmp_path / "policy.json").write_text(json.dumps({"Statement": [statement]}), encoding="utf-8")
    (wanted,) = wanted_buckets(load(provision={"buckets": {"lake": {"bucket_policy": "policy.json"}}}))
    assert wanted.bucket.statements == (
        {**statement, "Sid": "Transload0", "Resource": "arn:aws:s3:::lake/*"},
    )
    (tmp_path / "policy.json").unlink()
    with pytest.raises(ProvisionRefused, match=r"policy\.json cannot be used"):
        wanted_buckets(load(provision={"buckets": {"lake": {"bucket_policy": "policy.json"}}}))


def test_who_provisions_may_be_somebody_else(load: Load) -> None:
    reached = {"region": "eu-central-1", "endpoint_url": "http://127.0.0.1:1"}
    target = {"backend": "s3", "bucket": "lake", "profile": "worker", **reached}
    queue = {"type": "sqs", "queue_url": "http://127.0.0.1:1/1/work", "profile": "worker", **reached}
    access = {
        "access_key_id": "AKIA",
        "secret_access_key_env": "SECRET",
        "role_arn": ROLE,
        "region": "us-east-1",
    }
    given = load(targets={"main": target}, queue=queue, provision={"access": access})
    (bucket,), (work,) = wanted_buckets(given), wanted_queues(given)
    for options in (bucket.options, work.options):
        assert options.endpoint_url == "http://127.0.0.1:1"
        assert options.region == "us-east-1"
        assert options.profile is None
        assert options.role_arn == ROLE
        assert options.secret_access_key == SecretStr("s3cr3t")
    assert "s3cr3t" not in str(given.redacted())

    given = load(targets={"main": target}, queue=queue, provision={"buckets": {"more": {}}})
    assert [each.options.profile for each in wanted_buckets(given)] == ["worker", "worker"]
    assert [each.bucket.name for each in wanted_buckets(given)] == ["lake", "more"]


def test_uploads_are_given_the_time_housekeeping_gives_them(load: Load) -> None:
    given = {"provision": {"buckets": {"lake": {"abort_incomplete_after_days": 1}}}}
    with pytest.raises(ProvisionRefused, match=r"housekeeping\.sweep_after"):
        wanted_buckets(load(**given))
    wanted_buckets(load(**given, housekeeping={"sweep_after": 86_399}))


@pytest.mark.parametrize(
    ("statement", "public"),
    [
        ({"Effect": "Allow", "Principal": "*"}, True),
        ({"Effect": "Allow", "Principal": {"AWS": "*"}}, True),
        ({"Effect": "Allow", "Principal": {"AWS": [ROLE, "*"]}}, True),
        ({"Effect": "Allow", "NotPrincipal": {"AWS": ROLE}}, True),
        (
            {"Effect": "Allow", "Principal": "*", "Condition": {"Bool": {"aws:SecureTransport": "true"}}},
            False,
        ),
        ({"Effect": "Allow", "Principal": {"AWS": ROLE}}, False),
        ({"Effect": "Allow", "Principal": {"Service": "logging.s3.amazonaws.com"}}, False),
        ({"Effect": "Deny", "Principal": "*"}, False),
    ],
    ids=str,
)
def test_who_a_statement_lets_in(statement: dict[str, Any], public: bool) -> None:
    assert is_public(statement) is public


def test_what_s3_rewrites_is_the_same() -> None:
    given = statements_of('{"Statement": [{"Sid": "A", "Action": ["s3:Put", "s3:Get"], "Resource": ["x"]}]}')
    stored = [{"Sid": "TransloadA", "Action": ["s3:Get", "s3:Put"], "Resource": "x"}]
    assert described(given) == described(stored)
    assert split(stored) == (stored, [])
    with pytest.raises(ValueError, match="same Sid"):
        statements_of('{"Statement": [{"Sid": "A"}, {"Sid": "TransloadA"}]}')


@pytest.mark.parametrize(
    "changed",
    [
        {"Status": "Disabled"},
        {"Filter": {"Prefix": "a/"}},
        {"Transitions": [{"Days": 31, "StorageClass": "GLACIER"}]},
        {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
        {"Expiration": {"ExpiredObjectDeleteMarker": True}},
    ],
    ids=str,
)
def test_a_rule_of_ours_that_was_changed_reads_otherwise(changed: dict[str, Any]) -> None:
    bucket = ProvisionedBucket(lifecycle_policy="archive-after-30-days")
    rule = lifecycle_rules(bucket.lifecycle_policy, 7)[1]
    assert rules_described([{**rule, **changed}]) != rules_described([rule])
    assert rules_described([{**rule, "Filter": {}, "Prefix": ""}]) == rules_described([rule])


async def test_a_step_does_only_what_it_says() -> None:
    done: list[int] = []

    async def change() -> None:
        done.append(1)

    for old, new, verdict in (
        ("a", "a", Verdict.OK),
        ("a", "b", Verdict.CHANGE),
        (NONE, "b", Verdict.CREATE),
    ):
        step = compared("bucket x", "y", old, new, change)
        assert step.verdict is verdict
        await step.apply()
    assert len(done) == 2
    await compared("bucket x", "y", "a", "b", None).apply()
    assert compared("bucket x", "y", "a", "b", None).verdict is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("operation", "code", "status", "said"),
    [
        ("head_bucket", "403", 403, "needs s3:ListBucket on it"),
        ("put_bucket_policy", "AccessDenied", 403, "needs s3:PutBucketPolicy on it"),
        ("create_queue", "AuthorizationError", 400, "needs sqs:CreateQueue on it"),
        ("set_queue_attributes", "AccessDeniedException", 400, "needs sqs:SetQueueAttributes on it"),
        ("get_queue_url", "InvalidAddress", 404, r"failed: InvalidAddress \(HTTP 404\)"),
        ("get_public_access_block", "NotImplemented", 501, "this store does not have it"),
    ],
)
async def test_what_a_refusal_means(operation: str, code: str, status: int, said: str) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            async def refuse(**_: Any) -> None:
                answer = {
                    "Error": {"Code": code, "Message": "token=x"},
                    "ResponseMetadata": {"HTTPStatusCode": status},
                }
                raise ClientError(answer, name)

            return refuse

    with pytest.raises(ProvisionError, match=said) as caught:
        await ask(Refusing(), "bucket lake", operation)
    assert "token=x" not in str(caught.value)
    assert isinstance(caught.value, Lacking) is (code == "NotImplemented")
    assert await ask(Refusing(), "bucket lake", operation, absent={code}) is None
