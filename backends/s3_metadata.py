"""`Attributes` in botocore's and obstore's words, and ETags in ours. Used by backends/s3.py and backends/s3_bucket.py only."""

from typing import Any

from backends.base import Attributes
from backends.header_metadata import encode_content_type, encode_metadata

METADATA_LIMIT = 2048
"""Bytes of all names and values: https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html"""


def headers_for(attributes: Attributes) -> dict[str, Any]:
    """`ContentType`, where there is one, and `Metadata`."""
    kind = attributes.content_type
    content_type = {"ContentType": encode_content_type(kind)} if kind else {}
    return {**content_type, "Metadata": encode_metadata(attributes.metadata, METADATA_LIMIT)}


def fields_for(attributes: Attributes, storage_class: str | None) -> dict[str, str]:
    """The same as obstore takes them for a PUT, and the storage class with them."""
    headers = headers_for(attributes)
    fields = {"Content-Type": headers["ContentType"]} if "ContentType" in headers else {}
    if storage_class is not None:
        fields["Storage-Class"] = storage_class
    return {**fields, **headers["Metadata"]}


def etag_of(value: str | None) -> str | None:
    """An ETag without its quotes."""
    return value.strip('"') if value else None
