"""Notifications of stores, written by hand after what their vendors say of them.

S3: https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html; EventBridge:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html; MinIO: https://github.com/minio/minio, its documentation of
bucket notifications, and `cmd/event-notification.go` for what it leaves out.
"""

from typing import Any

ETAG = "d41d8cd98f00b204e9800998ecf8427e"
SEQUENCER = "0055AED6DCD90281E5"


def record(key: str = "in/a.html", *, bucket: str = "drops", **changed: Any) -> dict[str, Any]:
    """One event of S3; `key` as it is written. What is `changed` is of the object, or of the event; None leaves it out."""
    event: dict[str, Any] = {
        "eventVersion": "2.5",
        "eventSource": "aws:s3",
        "awsRegion": "us-west-2",
        "eventTime": "2023-11-14T22:13:20.123Z",
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "AIDAJDPLRKLG7UEXAMPLE"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": "C3D13FE58DE4C810"},
    }
    stored = {"key": key, "size": 1024, "eTag": ETAG, "sequencer": SEQUENCER}
    for name, value in changed.items():
        (event if name in event else stored)[name] = value
    event["s3"] = {
        "s3SchemaVersion": "1.0",
        "configurationId": "drops",
        "bucket": {"name": bucket, "ownerIdentity": {"principalId": "A3NL1KOZZKExample"}},
        "object": {name: value for name, value in stored.items() if value is not None},
    }
    return {name: value for name, value in event.items() if value is not None}


def direct(key: str = "in/a.html", **changed: Any) -> dict[str, Any]:
    """What S3 sends to a queue; see `record`."""
    return {"Records": [record(key, **changed)]}


def minio(key: str = "in%2Fa.html", **changed: Any) -> dict[str, Any]:
    """What MinIO publishes to AMQP; see `record`."""
    named = {"eventName": "s3:ObjectCreated:Put", "contentType": "image/jpeg"} | changed
    event = record(key, **named) | {"eventVersion": "2.0", "eventSource": "minio:s3", "awsRegion": ""}
    event["source"] = {"host": "127.0.0.1", "port": "", "userAgent": "MinIO (linux; amd64)"}
    bucket = event["s3"]["bucket"]["name"]
    return {"EventName": event["eventName"], "Key": f"{bucket}/{key}", "Records": [event]}


def bridged(key: str = "in/a.html", **changed: Any) -> dict[str, Any]:
    """What EventBridge hands on. What is `changed` is of the object."""
    stored = {"key": key, "size": 1024, "etag": ETAG, "sequencer": SEQUENCER, **changed}
    return {
        "version": "0",
        "id": "17793124-05d4-b198-2fde-7ededc63b103",
        "detail-type": "Object Created",
        "source": "aws.s3",
        "account": "111122223333",
        "time": "2023-11-14T22:13:20.123Z",
        "region": "ca-central-1",
        "resources": ["arn:aws:s3:::drops"],
        "detail": {
            "version": "0",
            "bucket": {"name": "drops"},
            "object": {name: value for name, value in stored.items() if value is not None},
            "request-id": "N4N7GDK58NMKJ12R",
            "requester": "123456789012",
            "source-ip-address": "1.2.3.4",
            "reason": "PutObject",
        },
    }
