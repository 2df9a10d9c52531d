"""Notifications of stores are no messages yet; a dead letter says so, instead of speaking of a type that nobody wrote."""

import json
from typing import Any

import pytest

from handlers.errors import Refused
from handlers.messages import decode

RECORD = {
    "eventVersion": "2.1",
    "eventSource": "aws:s3",
    "eventName": "ObjectCreated:Put",
    "s3": {"bucket": {"name": "staging"}, "object": {"key": "a%2Fb.html", "size": 3, "eTag": "x"}},
}
MINIO = {
    "EventName": "s3:ObjectCreated:Put",
    "Key": "staging/a%2Fb.html",
    "Records": [RECORD | {"eventSource": "minio:s3", "eventName": "s3:ObjectCreated:Put"}],
}


@pytest.mark.parametrize(
    "content",
    [
        {"Records": [RECORD]},
        MINIO,
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "staging"},
        {"version": "0", "source": "aws.s3", "detail-type": "Object Created", "detail": {}},
        {"Type": "Notification", "Message": json.dumps({"Records": [RECORD]})},
    ],
)
def test_a_notification_of_a_store_is_refused_by_its_name(content: Any) -> None:
    with pytest.raises(Refused, match="a notification of S3 or MinIO") as refused:
        decode(json.dumps(content).encode())
    assert refused.value.reason == "unknown_type"


@pytest.mark.parametrize(
    "content", [{"Records": []}, {"Records": ["s3"]}, {"Records": [{"eventSource": None}]}, {"Records": {}}]
)
def test_what_only_looks_like_one_is_told_its_type(content: Any) -> None:
    with pytest.raises(Refused, match="type is None"):
        decode(json.dumps(content).encode())
