"""What an answer of AWS means: nothing that may pass is called refused, nothing that never passes is tried for ever."""

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    MetadataRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.parsers import ResponseParserError
from hypothesis import given
from hypothesis import strategies as st

from worker.aws import SDK_ERRORS, Trouble, classify, classify_code, objection, readable, short_code
from worker.publishers.base import PublishRefused
from worker.publishers.sqs import _translate

ENDPOINT = "http://127.0.0.1:9/"

ANSWERS = [
    # What a person, a role or a clock mends while messages wait.
    ("ExpiredToken", 403, Trouble.DENIED),
    ("ExpiredTokenException", 400, Trouble.DENIED),
    ("InvalidClientTokenId", 403, Trouble.DENIED),
    ("UnrecognizedClientException", 400, Trouble.DENIED),
    ("InvalidAccessKeyId", 403, Trouble.DENIED),
    ("SignatureDoesNotMatch", 403, Trouble.DENIED),
    ("AccessDenied", 403, Trouble.DENIED),
    ("AccessDeniedException", 400, Trouble.DENIED),
    ("OptInRequired", 403, Trouble.DENIED),
    ("KmsAccessDenied", 400, Trouble.DENIED),
    ("AWS.SimpleQueueService.KmsAccessDenied", 400, Trouble.DENIED),
    # The key behind the queue.
    ("KmsDisabled", 400, Trouble.UNAVAILABLE),
    ("KmsInvalidState", 400, Trouble.UNAVAILABLE),
    ("KmsNotFound", 400, Trouble.UNAVAILABLE),
    ("KmsOptInRequired", 403, Trouble.DENIED),
    ("KmsThrottled", 400, Trouble.UNAVAILABLE),
    # A skewed clock.
    ("RequestExpired", 400, Trouble.UNAVAILABLE),
    ("RequestTimeTooSkewed", 403, Trouble.DENIED),
    # Too much, too slow, broken.
    ("Throttling", 400, Trouble.UNAVAILABLE),
    ("ThrottlingException", 400, Trouble.UNAVAILABLE),
    ("RequestThrottled", 403, Trouble.UNAVAILABLE),
    ("RequestLimitExceeded", 503, Trouble.UNAVAILABLE),
    ("OverLimit", 403, Trouble.UNAVAILABLE),
    ("TooManyRequestsException", 429, Trouble.UNAVAILABLE),
    ("", 429, Trouble.UNAVAILABLE),
    ("InternalFailure", 500, Trouble.UNAVAILABLE),
    ("InternalError", 500, Trouble.UNAVAILABLE),
    ("ServiceUnavailable", 503, Trouble.UNAVAILABLE),
    ("", 502, Trouble.UNAVAILABLE),
    ("RequestTimeout", 408, Trouble.UNAVAILABLE),
    ("AWS.SimpleQueueService.QueueDeletedRecently", 400, Trouble.UNAVAILABLE),
    ("NobodyKnowsThisOne", 400, Trouble.UNAVAILABLE),
    # The queue is not there.
    ("AWS.SimpleQueueService.NonExistentQueue", 400, Trouble.MISSING),
    ("QueueDoesNotExist", 400, Trouble.MISSING),
    ("com.amazonaws.sqs.QueueDoesNotExist", 400, Trouble.MISSING),
    ("InvalidAddress", 404, Trouble.MISSING),
    # The message, and it alone.
    ("MessageTooLong", 400, Trouble.REFUSED),
    ("InvalidMessageContents", 400, Trouble.REFUSED),
    ("AWS.SimpleQueueService.BatchRequestTooLong", 400, Trouble.REFUSED),
    ("InvalidParameterValue", 400, Trouble.REFUSED),
    ("InvalidAttributeValue", 400, Trouble.REFUSED),
    ("MissingParameter", 400, Trouble.REFUSED),
    ("UnsupportedOperation", 400, Trouble.REFUSED),
    ("AWS.SimpleQueueService.UnsupportedOperation", 400, Trouble.REFUSED),
    ("ValidationError", 400, Trouble.REFUSED),
]

FAILURES = [
    (NoCredentialsError(), Trouble.DENIED),
    (CredentialRetrievalError(provider="role", error_msg="expired"), Trouble.DENIED),
    (UnauthorizedSSOTokenError(), Trouble.DENIED),
    (SSOTokenLoadError(error_msg="no token"), Trouble.DENIED),
    (TokenRetrievalError(provider="sso", error_msg="expired"), Trouble.DENIED),
    (MetadataRetrievalError(error_msg="no answer"), Trouble.DENIED),
    (ParamValidationError(report="MessageBody: wrong type"), Trouble.REFUSED),
    (EndpointConnectionError(endpoint_url=ENDPOINT), Trouble.UNAVAILABLE),
    (ConnectTimeoutError(endpoint_url=ENDPOINT), Trouble.UNAVAILABLE),
    (ReadTimeoutError(endpoint_url=ENDPOINT), Trouble.UNAVAILABLE),
    (ConnectionClosedError(endpoint_url=ENDPOINT), Trouble.UNAVAILABLE),
    (ResponseParserError("no JSON"), Trouble.UNAVAILABLE),
    (BotoCoreError(), Trouble.UNAVAILABLE),
    (ConnectionResetError("peer"), Trouble.UNAVAILABLE),
    (TimeoutError(), Trouble.UNAVAILABLE),
]


def answer(code: str, status: int) -> ClientError:
    response = {
        "Error": {"Code": code, "Message": "why"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "SendMessageBatch")


@pytest.mark.parametrize(("code", "status", "trouble"), ANSWERS)
def test_an_answer_means(code: str, status: int, trouble: Trouble) -> None:
    assert classify(answer(code, status)) is trouble


@pytest.mark.parametrize(("error", "trouble"), FAILURES, ids=lambda value: type(value).__name__)
def test_a_failure_without_an_answer_means(error: Exception, trouble: Trouble) -> None:
    assert isinstance(error, SDK_ERRORS)
    assert classify(error) is trouble


@pytest.mark.parametrize(
    ("error", "trouble"),
    [*((answer(code, status), trouble) for code, status, trouble in ANSWERS), *FAILURES],
    ids=str,
)
def test_a_publisher_gives_up_only_what_is_refused(error: Exception, trouble: Trouble) -> None:
    translated = _translate(error, "https://queue")
    assert translated.retryable is (trouble is not Trouble.REFUSED)
    assert isinstance(translated, PublishRefused) is (trouble is Trouble.REFUSED)
    assert trouble.value in str(translated)


def test_an_answer_without_code_or_status_may_pass() -> None:
    assert classify(ClientError({}, "SendMessageBatch")) is Trouble.UNAVAILABLE


@given(st.text(), st.one_of(st.sampled_from([429]), st.integers(500, 599)))
def test_a_server_in_trouble_refuses_nothing(code: str, status: int) -> None:
    assert classify_code(code, status) in {Trouble.UNAVAILABLE, Trouble.MISSING}


@pytest.mark.parametrize(
    ("code", "short"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", "NonExistentQueue"),
        ("Throttling", "Throttling"),
        ("", ""),
    ],
)
def test_codes_lose_their_prefix(code: str, short: str) -> None:
    assert short_code({"Code": code}) == short


@given(st.text(min_size=1))
def test_what_is_made_readable_is_not_objected_to(text: str) -> None:
    assert objection(readable(text).encode(), {}, 1 << 20) is None


@pytest.mark.parametrize(
    ("body", "attributes", "why"),
    [
        (b"", {}, "no empty body"),
        (b"\xff", {}, "not UTF-8"),
        (b"a\x00b", {}, r"has '\x00'"),
        (b"x" * 101, {}, "100 bytes at most"),
        (b"x" * 90, {"name": "value"}, "this message has 105"),
        (b"x", {str(number): "" for number in range(11)}, "10 attributes"),
    ],
)
def test_what_no_queue_carries_is_objected_to(body: bytes, attributes: dict[str, str], why: str) -> None:
    objected = objection(body, attributes, 100)
    assert objected is not None
    assert why in objected
