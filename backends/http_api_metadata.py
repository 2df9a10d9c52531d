"""`Attributes` as headers of HTTP, and back. Used by backends/http_api.py and backends/http_api_reading.py only."""

import re
from collections.abc import Mapping

from backends.base import Attributes
from backends.header_metadata import decode_metadata, encode_content_type, encode_metadata

_STRONG = re.compile(r'"?[\x21\x23-\x7e]{1,256}"?')
"""Many servers leave out the quotes."""
METADATA_LIMIT = 4096
"""Bytes of all names and values: with the other headers they fit the 8 KiB that servers commonly take."""


def headers_for(attributes: Attributes, prefix: str | None) -> dict[str, str]:
    """The content type, and the metadata where there is a `prefix` for it."""
    content_type = attributes.content_type
    named = {"Content-Type": encode_content_type(content_type)} if content_type else {}
    if prefix is None:
        return named
    encoded = encode_metadata(attributes.metadata, METADATA_LIMIT)
    return named | {prefix + name: value for name, value in encoded.items()}


def attributes_of(headers: Mapping[str, str], prefix: str | None) -> tuple[str | None, dict[str, str]]:
    """Content type and metadata of an answer; nothing where there is no `prefix`: then they are not the API's to keep."""
    if prefix is None:
        return None, {}
    found = {
        name[len(prefix) :].lower(): value
        for name, value in headers.items()
        if name.lower().startswith(prefix.lower())
    }
    return headers.get("Content-Type"), decode_metadata(found)


def etag_of(headers: Mapping[str, str]) -> str | None:
    """A weak one does not promise equal bytes, so it is none; neither is what no entity tag can be (RFC 9110, section 8.8.3)."""
    value = headers.get("ETag", "")
    return value.strip('"') or None if _STRONG.fullmatch(value) and not value.startswith("W/") else None
