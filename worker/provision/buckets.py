"""One S3 bucket: how it is, how it should be, and the requests between. Called by worker/provision/wanted.py.

Every request that replaces a whole (policy, lifecycle, tags) reads it right before and keeps what is not ours.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from worker.provision.calls import ask
from worker.provision.plan import NONE, Lacking, ProvisionError, Step, Verdict, compared
from worker.provision.policies import (
    Rule,
    Statement,
    described,
    is_public,
    lifecycle_rules,
    public_read,
    rules_described,
    split,
    split_rules,
)
from worker.provision.settings import PUBLIC_READ, ProvisionedBucket

_BLOCKS: Final = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_BLOCKS_FOR_POLICIES: Final = frozenset(_BLOCKS[2:])

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as it should be."""

    name: str
    wanted: ProvisionedBucket
    statements: tuple[Statement, ...] = ()
    """What a policy document says, as statements of ours."""

    @property
    def title(self) -> str:
        """What steps call it."""
        return f"bucket {self.name}"


async def plan_bucket(client: Any, bucket: Bucket) -> list[Step]:
    """Look at it, and say what there is to do, in the order to do it. Changes nothing. Raises `ProvisionError`."""
    return await _Planner(client, bucket).steps()


class _Planner:
    def __init__(self, client: Any, bucket: Bucket) -> None:
        self._client = client
        self._bucket = bucket
        self._wanted = bucket.wanted
        public = bucket.wanted.bucket_policy == PUBLIC_READ
        self._statements = (public_read(bucket.name, client.meta.partition),) if public else bucket.statements
        self._new = False

    async def steps(self) -> list[Step]:
        existence = await self._existence()
        if existence.verdict is Verdict.DIFFERS:
            return [existence]
        self._new = existence.verdict is Verdict.CREATE
        aspects: list[tuple[str, Callable[[], Awaitable[Step | None]]]] = [
            # First what keeps the public out, so that nothing lies open in between.
            ("public_access_block", self._public_access),
            ("bucket_policy", self._policy),
            ("encryption", self._encryption),
            ("versioning", self._versioning),
            ("lifecycle_policy", self._lifecycle),
            ("tags", self._tags),
        ]
        found = [existence]
        for name, look in aspects:
            try:
                step = await look()
            except Lacking as exc:
                step = Step(
                    self._bucket.title, name, f"not to be had: {exc}", "as configured", Verdict.DIFFERS
                )
            if step is not None:
                found.append(step)
        return found

    async def _existence(self) -> Step:
        there = await self._ask("head_bucket", absent={"404", "NoSuchBucket"})
        region = self._client.meta.region_name
        if there is not None:
            lies = there.get("BucketRegion") or region
            return self._step("create_bucket", f"in {lies}", f"in {lies}", None)
        create = self._create if self._wanted.create_bucket else None
        return self._step("create_bucket", NONE, f"in {region}", create)

    async def _create(self) -> None:
        region = self._client.meta.region_name
        # The one region that may not be named.
        where = {} if region in {None, "us-east-1", "aws-global"} else {"LocationConstraint": region}
        made = await self._ask(
            "create_bucket",
            absent={"BucketAlreadyOwnedByYou", "BucketAlreadyExists"},
            **({"CreateBucketConfiguration": where} if where else {}),
        )
        if made is None and await self._ask("head_bucket", absent={"403", "404"}) is None:
            raise ProvisionError(
                f"{self._bucket.title}: another account has a bucket of that name; choose another"
            )

    async def _public_access(self) -> Step:
        answer = await self._look("get_public_access_block", {"NoSuchPublicAccessBlockConfiguration"})
        found = answer.get("PublicAccessBlockConfiguration", {})
        public = any(is_public(statement) for statement in self._statements)
        blocks = {name: not (public and name in _BLOCKS_FOR_POLICIES) for name in _BLOCKS}
        return self._step(
            "public_access_block",
            _blocked({name: bool(found.get(name)) for name in _BLOCKS}),
            _blocked(blocks),
            partial(self._ask, "put_public_access_block", PublicAccessBlockConfiguration=blocks),
        )

    async def _policy(self) -> Step:
        ours, others = split(await self._statements_there())
        kept = f" (and {len(others)} of others, kept)" if others else ""
        return self._step(
            "bucket_policy",
            f"{described(ours)}{kept}",
            f"{described(self._statements)}{kept}",
            self._put_policy,
        )

    async def _statements_there(self) -> list[Statement]:
        answer = await self._look("get_bucket_policy", {"NoSuchBucketPolicy"})
        found = json.loads(answer.get("Policy") or "{}").get("Statement", [])
        return [found] if isinstance(found, dict) else list(found)

    async def _put_policy(self) -> None:
        self._new = False
        _, others = split(await self._statements_there())
        statements = [*others, *self._statements]
        if statements:
            document = {"Version": "2012-10-17", "Statement": statements}
            await self._ask("put_bucket_policy", Policy=json.dumps(document))
        else:
            await self._ask("delete_bucket_policy")

    async def _encryption(self) -> Step | None:
        wanted = self._wanted
        if wanted.encryption is None:
            return None
        answer = await self._look("get_bucket_encryption", {"ServerSideEncryptionConfigurationNotFoundError"})
        rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        defaults = [each.get("ApplyServerSideEncryptionByDefault", {}) for each in rules]
        default = defaults[0] if defaults else {}
        rule: dict[str, Any] = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": wanted.encryption}}
        if wanted.encryption == "aws:kms":
            # One request to KMS for many objects instead of one each.
            rule["BucketKeyEnabled"] = True
        if wanted.kms_key_id is not None:
            rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"] = wanted.kms_key_id
        return self._step(
            "encryption",
            _encrypted(default.get("SSEAlgorithm"), default.get("KMSMasterKeyID")),
            _encrypted(wanted.encryption, wanted.kms_key_id),
            partial(self._ask, "put_bucket_encryption", ServerSideEncryptionConfiguration={"Rules": [rule]}),
        )

    async def _versioning(self) -> Step | None:
        if self._wanted.versioning is None:
            return None
        found = (await self._look("get_bucket_versioning")).get("Status", NONE)
        wanted = "Enabled" if self._wanted.versioning else "Suspended"
        if found == NONE and not self._wanted.versioning:
            # Never had versions: as good as suspended.
            wanted = NONE
        return self._step(
            "versioning",
            found,
            wanted,
            partial(self._ask, "put_bucket_versioning", VersioningConfiguration={"Status": wanted}),
        )

    async def _lifecycle(self) -> Step:
        ours, others = split_rules((await self._rules()).get("Rules", []))
        kept = (
            f"; kept: {', '.join(str(rule.get('ID', 'a rule without ID')) for rule in others)}"
            if others
            else ""
        )
        return self._step(
            "lifecycle_policy",
            f"{rules_described(ours)}{kept}",
            f"{rules_described(self._own_rules())}{kept}",
            self._put_lifecycle,
        )

    def _own_rules(self) -> list[Rule]:
        return lifecycle_rules(self._wanted.lifecycle_policy, self._wanted.abort_incomplete_after_days)

    async def _rules(self) -> Answer:
        return await self._look("get_bucket_lifecycle_configuration", {"NoSuchLifecycleConfiguration"})

    async def _put_lifecycle(self) -> None:
        self._new = False
        found = await self._rules()
        _, others = split_rules(found.get("Rules", []))
        name = "TransitionDefaultMinimumObjectSize"
        await self._ask(
            "put_bucket_lifecycle_configuration",
            LifecycleConfiguration={"Rules": [*others, *self._own_rules()]},
            **({name: found[name]} if name in found else {}),
        )

    async def _tags(self) -> Step | None:
        wanted = self._wanted.tags
        if not wanted:
            return None
        found = await self._tags_there()
        return self._step(
            "tags",
            _tagged({name: value for name, value in found.items() if name in wanted}),
            _tagged(wanted),
            self._put_tags,
        )

    async def _tags_there(self) -> dict[str, str]:
        answer = await self._look("get_bucket_tagging", {"NoSuchTagSet"})
        return {each["Key"]: each["Value"] for each in answer.get("TagSet", ())}

    async def _put_tags(self) -> None:
        self._new = False
        tags = {**await self._tags_there(), **self._wanted.tags}
        await self._ask(
            "put_bucket_tagging",
            Tagging={"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]},
        )

    def _step(self, aspect: str, old: str, new: str, change: Callable[[], Awaitable[object]] | None) -> Step:
        return compared(self._bucket.title, aspect, old, new, change)

    async def _look(self, operation: str, absent: frozenset[str] | set[str] = frozenset()) -> Answer:
        """What is there; nothing where it is absent, or the bucket itself is still to be made."""
        return {} if self._new else await self._ask(operation, absent=absent) or {}

    async def _ask(
        self, operation: str, absent: frozenset[str] | set[str] = frozenset(), **request: Any
    ) -> Answer | None:
        return await ask(
            self._client, self._bucket.title, operation, absent, Bucket=self._bucket.name, **request
        )


def _blocked(blocks: Mapping[str, bool]) -> str:
    held = [name for name, on in blocks.items() if on]
    return "all blocked" if len(held) == len(_BLOCKS) else ", ".join(held) or NONE


def _encrypted(algorithm: str | None, key: str | None) -> str:
    return " ".join(filter(None, (algorithm, key))) or NONE


def _tagged(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(tags.items())) or NONE
