"""Objects as the JSON API describes them, and `Attributes` as it takes them. Used by backends/gcs*.py only.

https://cloud.google.com/storage/docs/json_api/v1/objects#resource
"""

import base64
from collections.abc import Mapping
from typing import Any

import google_crc32c

from backends.base import Attributes, ObjectStat, check_key
from backends.checksums import Algorithm, in_hex
from backends.errors import InvalidKey, Unavailable
from backends.header_metadata import decode_metadata, encode_content_type, encode_metadata

DIGEST = "transload-sha256"
"""Name of the metadata entry that holds the SHA-256 of what this adapter wrote: GCS computes none, and a copy has to be proven."""

_ESCAPED = f"%{ord(DIGEST[0]):02x}{DIGEST[1:]}"
"""What a caller's entry of that name is called."""

_METADATA_LIMIT = (8 << 10) - len(DIGEST) - 64 - (len(_ESCAPED) - len(DIGEST))
"""Bytes of all names and values, less that entry: https://cloud.google.com/storage/quotas#objects."""
_RESERVED = ".well-known/acme-challenge/"


def check_gcs_key(key: str) -> None:
    """Raise `InvalidKey` for what the port or https://cloud.google.com/storage/docs/objects#naming forbids."""
    check_key(key)
    if "\r" in key or "\n" in key:
        raise InvalidKey(f"key {key!a} holds a line break, which GCS refuses")
    if key.startswith(_RESERVED):
        raise InvalidKey(f"key {key!a} lies below {_RESERVED}, which GCS keeps for itself")


def resource_of(key: str, attributes: Attributes, sha256: str | None = None) -> dict[str, Any]:
    """What an upload or a copy says of the object to be.

    Names and values of metadata are percent-encoded UTF-8 where they are not ASCII, as they become headers of a download.
    """
    metadata = encode_metadata(attributes.metadata, _METADATA_LIMIT)
    if DIGEST in metadata:
        metadata[_ESCAPED] = metadata.pop(DIGEST)
    named = {"name": key, "metadata": {**metadata, **({DIGEST: sha256} if sha256 else {})}}
    if attributes.content_type:
        named["contentType"] = encode_content_type(attributes.content_type)
    return named


def described(document: object, doing: str) -> dict[str, Any]:
    """The document, if it describes an object. Raises `Unavailable` otherwise: a success without one is none."""
    if isinstance(document, dict):
        name, size, metadata = (document.get(each) for each in ("name", "size", "metadata"))
        whole = isinstance(name, str) and str(size).isdecimal() and document.get("generation")
        if whole and isinstance(metadata, dict | None):
            return document
    raise Unavailable(f"GCS could not {doing}: the answer describes no object")


def stat_of(resource: Mapping[str, Any]) -> ObjectStat:
    """The etag is the generation: GCS's own changes with the metadata as well."""
    metadata = {name: value for name, value in resource.get("metadata", {}).items() if name != DIGEST}
    return ObjectStat(
        resource["name"],
        int(resource["size"]),
        str(resource["generation"]),
        resource.get("contentType"),
        decode_metadata(metadata),
    )


def digest_of(resource: Mapping[str, Any]) -> str | None:
    """The SHA-256 this adapter noted when it wrote the object."""
    noted: str | None = resource.get("metadata", {}).get(DIGEST)
    return noted


def checksums_of(resource: Mapping[str, Any]) -> dict[Algorithm, str]:
    """What GCS itself computed of the object, in hex. Composed objects have no MD5."""
    named: dict[Algorithm, str | None] = {"crc32c": resource.get("crc32c"), "md5": resource.get("md5Hash")}
    return {algorithm: in_hex(algorithm, text) for algorithm, text in named.items() if text is not None}


class Crc32c:
    """A running CRC32C, in the form in which GCS writes it: base64 of four bytes, the highest first."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = google_crc32c.extend(self._value, data)

    def told(self) -> str:
        """The value so far."""
        return base64.b64encode(self._value.to_bytes(4, "big")).decode()


def crc32c_in(headers: Mapping[str, str]) -> str | None:
    """The CRC32C in the `x-goog-hash` of a download; None where there is none.

    The header may come several times or with several values: `crc32c=…,md5=…`.
    """
    get_all = getattr(headers, "getall", None)
    values = get_all("x-goog-hash", []) if get_all else [headers.get("x-goog-hash", "")]
    named = (each.strip().partition("=") for value in values for each in value.split(","))
    return next((value for name, _, value in named if name == "crc32c"), None)
