"""`Attributes` in botocore's words. Used by backends/s3.py only."""

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
