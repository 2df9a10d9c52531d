"""Tells the notifications of stores from messages, so that whoever wired a bucket to the queue reads why nothing happens.

Called by handlers/messages.py for what has no known type. Structures: S3's own, with `s3:TestEvent`
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html), MinIO's, which puts `minio:s3` there and
`s3:` before event names, and EventBridge's (https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html).
"""

from collections.abc import Mapping
from typing import Any


def is_storage_notification(content: Mapping[str, Any]) -> bool:
    """Whether S3, or a store that does as S3, sent this."""
    if content.get("Event") == "s3:TestEvent" or content.get("source") == "aws.s3":
        return True
    records = content.get("Records")
    first = records[0] if isinstance(records, list) and records else None
    return isinstance(first, dict) and str(first.get("eventSource")).endswith(":s3")
