"""What is told of AWS's refusals: the permission, and nothing else of an answer's text."""

import pytest
from botocore.exceptions import ClientError

from backends.aws_refusals import said_missing
from backends.errors import PermissionDenied
from backends.s3_errors import translated
from worker.aws import denial_of

USER = "User: arn:aws:sts::123456789012:assumed-role/worker/canary is not authorized to perform:"
WHY = "because no identity-based policy allows the action"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f'{USER} s3:PutObject on resource: "arn:aws:s3:::lake/a b" {WHY}',
            "s3:PutObject on arn:aws:s3:::lake/a",
        ),
        (
            f"<Message>{USER} kms:Decrypt on resource: arn:aws:kms:eu-west-1:123456789012:key/1 {WHY}</Message>",
            "kms:Decrypt on arn:aws:kms:eu-west-1:123456789012:key/1",
        ),
        (
            f"<Message>{USER} s3:GetObject on resource: &quot;arn:aws:s3:::lake/a&quot; {WHY}</Message>",
            "s3:GetObject on arn:aws:s3:::lake/a",
        ),
        (
            f"{USER} sqs:receivemessage on resource: arn:aws:sqs:x:1:q",
            "sqs:receivemessage on arn:aws:sqs:x:1:q",
        ),
        ("Access Denied", None),
        (f"{USER} something else on resource: arn:aws:sqs:x:1:q", None),
        (f"{USER} s3:PutObject on resource: canary", None),
    ],
)
def test_the_permission_is_found(text: str, expected: str | None) -> None:
    assert said_missing(text) == expected


def refusal(code: str, text: str, status: int = 403, operation: str = "PutObject") -> ClientError:
    error = {"Code": code, "Message": text}
    return ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}}, operation)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canary", "s3:PutObject on arn:aws:s3:::lake/a"),
        (
            f"{USER} kms:GenerateDataKey on resource: arn:aws:kms:x:1:key/2 {WHY}",
            "kms:GenerateDataKey on arn:aws:kms:x:1:key/2",
        ),
    ],
)
def test_s3s_refusal_says_what_is_missing(text: str, expected: str) -> None:
    with (
        pytest.raises(PermissionDenied) as raised,
        translated("write s3://lake/a", "s3:PutObject on arn:aws:s3:::lake/a"),
    ):
        raise refusal("AccessDenied", text)
    assert (
        str(raised.value)
        == f"S3 could not write s3://lake/a: AccessDenied (HTTP 403); the credentials need {expected}"
    )


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidAccessKeyId", "RequestTimeTooSkewed"])
def test_trouble_with_the_credentials_themselves_is_no_missing_permission(code: str) -> None:
    with (
        pytest.raises(PermissionDenied) as raised,
        translated("write s3://lake/a", "s3:PutObject on arn:aws:s3:::lake/a"),
    ):
        raise refusal(code, "canary")
    assert "PutObject" not in str(raised.value)


def test_sqs_names_the_action_of_a_batch() -> None:
    denied = refusal("AccessDenied", "Access to the resource is denied.", operation="DeleteMessageBatch")
    assert "sqs:DeleteMessage on https://q" in denial_of(denied, "https://q")
    said = refusal(
        "AccessDenied",
        f"{USER} kms:Decrypt on resource: arn:aws:kms:x:1:key/2 {WHY}",
        operation="ReceiveMessage",
    )
    assert "kms:Decrypt on arn:aws:kms:x:1:key/2" in denial_of(said, "https://q")
    assert denial_of(OSError("no"), "https://q") == "look at the credentials"
