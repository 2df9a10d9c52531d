"""What requests to S3, SQS, KMS, CloudWatch, STS and Secrets Manager ask of IAM. Used by tests/support/iam_front.py only.

Actions, resources and condition keys as the Service Authorization Reference has them
(https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html), the
actions of S3's requests also by https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html#mpuAndPermissions, those of SQS's batches by
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html.

A request that is not known here raises: whatever Transload comes to send has to be judged before it is let through.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from tests.support.iam_policies import Ask

_SCOPE: Final = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")

_OF_BUCKETS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("HEAD", ""): "ListBucket",
        ("GET", "list-type"): "ListBucket",
        ("GET", "uploads"): "ListBucketMultipartUploads",
        ("PUT", ""): "CreateBucket",
        ("GET", "publicAccessBlock"): "GetBucketPublicAccessBlock",
        ("PUT", "publicAccessBlock"): "PutBucketPublicAccessBlock",
        ("GET", "policy"): "GetBucketPolicy",
        ("PUT", "policy"): "PutBucketPolicy",
        ("DELETE", "policy"): "DeleteBucketPolicy",
        ("GET", "encryption"): "GetEncryptionConfiguration",
        ("PUT", "encryption"): "PutEncryptionConfiguration",
        ("GET", "versioning"): "GetBucketVersioning",
        ("PUT", "versioning"): "PutBucketVersioning",
        ("GET", "lifecycle"): "GetLifecycleConfiguration",
        ("PUT", "lifecycle"): "PutLifecycleConfiguration",
        ("GET", "tagging"): "GetBucketTagging",
        ("PUT", "tagging"): "PutBucketTagging",
    }
)
_MORE_THAN_PUT: Final = (
    "x-amz-acl",
    "x-amz-grant",
    "x-amz-tagging",
    "x-amz-object-lock",
)
"""Headers of a write that need further actions (PutObjectAcl, PutObjectTagging, PutObjectRetention); Transload sends none."""
_OF_UPLOADS: Final = frozenset({"uploads", "uploadId", "partNumber"})
"""What a request about an object may have in its query; everything else is another action."""
_BY_NAME: Final = frozenset({"CreateQueue", "GetQueueUrl"})
"""Requests to SQS that name a queue, where the others have its URL."""


class UnknownRequest(Exception):
    """Nobody has said yet what this request needs."""


@dataclass(frozen=True, slots=True)
class Request:
    """A signed request, as it came."""

    method: str
    path: str
    """As it was sent, escapes and all."""
    raw_query: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes
    identity: str
    """Its access key."""
    region: str
    service: str
    """As the signature's scope names it."""

    @classmethod
    def of(cls, method: str, target: str, headers: Mapping[str, str], body: bytes) -> "Request":
        scope = _SCOPE.search(headers.get("authorization", ""))
        if scope is None:
            raise UnknownRequest(f"{method} {target} is not signed")
        path, _, query = target.partition("?")
        found = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        return cls(method, path, query, found, headers, body, scope[1], scope[2], scope[3])

    @property
    def operation(self) -> str:
        """What a protocol other than S3's calls the operation."""
        if self.service == "sts":
            return parse_qs(self.body.decode()).get("Action", ["?"])[0]
        return self.headers.get("x-amz-target", "?").rpartition(".")[2]

    @property
    def json(self) -> Mapping[str, Any]:
        loaded: Mapping[str, Any] = json.loads(self.body)
        return loaded

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and key of a request to S3, by path."""
        bucket, _, key = unquote(self.path.removeprefix("/")).partition("/")
        return bucket, key


def asks_of(request: Request, account: str, keys: Mapping[str, str]) -> list[Ask]:
    """All that it needs. `keys`: the KMS key that each bucket, queue or secret is encrypted with, all by their ARNs."""
    if request.service == "s3":
        return _encrypted(request, _of_s3(request, account), keys)
    if request.service == "sqs":
        return _encrypted(request, [_of_sqs(request, account)], keys)
    resource = _elsewhere(request, account)
    if request.service == "monitoring":
        return [
            Ask(
                f"cloudwatch:{request.operation}",
                resource,
                {"cloudwatch:namespace": request.json["Namespace"]},
            )
        ]
    return _encrypted(request, [Ask(f"{request.service}:{request.operation}", resource)], keys)


def list_bucket(bucket: str) -> Ask:
    """What decides whether S3 tells that an object is missing, or only that it is none of the caller's business.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html#API_HeadObject_RequestSyntax, "Permissions". There is no
    listing, and so no `s3:prefix` that a condition could be met by.
    """
    return Ask("s3:ListBucket", _bucket_arn(bucket))


def _of_s3(request: Request, account: str) -> list[Ask]:
    bucket, key = request.place
    account_fact = {"s3:resourceaccount": account}
    if not key:
        kind = next((name for _, name in _OF_BUCKETS if name and name in request.query), "")
        action = _OF_BUCKETS.get((request.method, kind))
        if action is None or (not kind and request.query):
            raise UnknownRequest(f"{request.method} {request.path} {dict(request.query)}")
        listing = (
            {f"s3:{name}": request.query[name] for name in ("prefix", "delimiter") if name in request.query}
            if action == "ListBucket"
            else {}
        )
        return [Ask(f"s3:{action}", _bucket_arn(bucket), {**account_fact, **listing})]
    resource = f"{_bucket_arn(bucket)}/{key}"
    if any(name.startswith(_MORE_THAN_PUT) for name in request.headers):
        raise UnknownRequest(f"{request.method} {request.path} {dict(request.headers)}")
    asks = [Ask(f"s3:{each}", resource, account_fact) for each in _on_object(request)]
    if asks[0].action == "s3:PutObject":
        asks = [Ask("s3:PutObject", resource, {**account_fact, **_write_facts(request)})]
    if source := request.headers.get("x-amz-copy-source"):
        copied, _, copied_key = unquote(source).removeprefix("/").partition("/")
        asks.append(Ask("s3:GetObject", f"{_bucket_arn(copied)}/{copied_key}", account_fact))
    return asks


def _on_object(request: Request) -> list[str]:
    if other := set(request.query) - _OF_UPLOADS:
        raise UnknownRequest(f"{request.method} {request.path} {sorted(other)}")
    of_upload = "uploadId" in request.query
    match request.method, of_upload, "uploads" in request.query:
        case (("GET" | "HEAD"), False, False):
            return ["GetObject"]
        case "PUT", False, False:
            # A copy in one request needs tagging besides where the source has tags; Transload makes none.
            if "x-amz-copy-source" not in request.headers:
                return ["PutObject"]
        case ("PUT", True, False) | ("POST", False, True) | ("POST", True, False):
            return ["PutObject"]
        case "DELETE", True, False:
            return ["AbortMultipartUpload"]
        case "GET", True, False:
            return ["ListMultipartUploadParts"]
        case "DELETE", False, False:
            # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-delete-enforce.html
            return ["DeleteObject", "GetObject"] if "if-match" in request.headers else ["DeleteObject"]
    raise UnknownRequest(f"{request.method} {request.path} {dict(request.query)}")


def _write_facts(request: Request) -> dict[str, str]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes-enforce.html."""
    of_parts = "uploads" in request.query or "partNumber" in request.query
    facts = {"s3:objectcreationoperation": str(not of_parts).lower()}
    if "if-none-match" in request.headers:
        facts["s3:if-none-match"] = request.headers["if-none-match"]
    return facts


def _of_sqs(request: Request, account: str) -> Ask:
    operation, asked = request.operation, request.json
    if operation in _BY_NAME:
        owner, name = asked.get("QueueOwnerAWSAccountId", account), asked["QueueName"]
    else:
        owner, name = asked["QueueUrl"].rstrip("/").split("/")[-2:]
    return Ask(f"sqs:{operation.removesuffix('Batch')}", f"arn:aws:sqs:{request.region}:{owner}:{name}")


def _elsewhere(request: Request, account: str) -> str:
    """The resource of a request to another service."""
    place = f"{request.region}:{account}"
    match request.service, request.operation:
        case "monitoring", "PutMetricData":
            return "*"
        case "kms", "Decrypt":
            named = str(request.json["KeyId"])
            return named if named.startswith("arn:") else f"arn:aws:kms:{place}:key/{named}"
        case "sts", "AssumeRole":
            return parse_qs(request.body.decode())["RoleArn"][0]
        case "secretsmanager", "GetSecretValue":
            named = str(request.json["SecretId"])
            return (
                named if named.startswith("arn:") else f"arn:aws:secretsmanager:{place}:secret:{named}-AbCdEf"
            )
    raise UnknownRequest(f"{request.service} {request.operation}")


def _encrypted(request: Request, asks: list[Ask], keys: Mapping[str, str]) -> list[Ask]:
    """What the service asks KMS in the caller's name.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html#mpuAndPermissions,
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
    """
    via = {"kms:viaservice": f"{request.service}.{request.region}.amazonaws.com"}
    more: list[Ask] = []
    for ask in asks:
        key = keys.get(ask.resource.partition("/")[0])
        if key is not None:
            more += [Ask(f"kms:{each}", key, via) for each in _of_key(request, ask.action)]
    return [*asks, *more]


def _of_key(request: Request, action: str) -> tuple[str, ...]:
    match action:
        case "s3:PutObject":
            return ("Decrypt",) if "uploadId" in request.query else ("GenerateDataKey",)
        case "s3:GetObject" if request.method == "GET" or "x-amz-checksum-mode" in request.headers:
            return ("Decrypt",)
        case "s3:GetObject" if "x-amz-copy-source" in request.headers:
            return ("Decrypt",)
        case "sqs:SendMessage":
            return ("GenerateDataKey", "Decrypt")
        case "sqs:ReceiveMessage" | "secretsmanager:GetSecretValue":
            return ("Decrypt",)
    return ()


def _bucket_arn(bucket: str) -> str:
    return f"arn:aws:s3:::{bucket}"
