"""`Attributes` and the digest of a blob as Azure keeps them, and back. Used by the backends/azure*.py modules only.

Names have to be C# identifiers, of which the case is not kept:
https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from azure.storage.blob import BlobProperties, ContentSettings

from backends.base import Attributes
from backends.header_metadata import encode_content_type, encode_metadata

DIGEST = "transload_digest"
"""The name under which every blob carries the SHA-256 and the MD5 of its bytes, in hex, with a dot between."""

_FOLDER = "hdi_isfolder"
"""What a directory of an account with a hierarchical namespace looks like through the Blob API."""

DISCARDED = "application/x-transload-discarded"
"""The content type of the empty blob that lies for a moment where blocks are being dropped."""

METADATA_LIMIT = 8192 - len(DIGEST) - 64 - 1 - 32
"""Bytes of all other names and values."""


def metadata_for(attributes: Attributes, sha256: str, md5: bytes) -> dict[str, str]:
    """The metadata of a blob with this content: what the caller wants kept, cut to the limit, and the digest."""
    named = {_encode_name(name): value for name, value in attributes.metadata.items() if name}
    return {**encode_metadata(named, METADATA_LIMIT), DIGEST: f"{sha256}.{md5.hex()}"}


def settings_for(attributes: Attributes, md5: bytes) -> ContentSettings:
    """Content type and Content-MD5."""
    kind = encode_content_type(attributes.content_type) if attributes.content_type else None
    if kind is not None and kind.strip().lower() == DISCARDED:
        # Whoever serves the resource chooses its type, and by this one the object would be cleared away.
        kind = None
    return ContentSettings(content_type=kind, content_md5=bytearray(md5))


def decode_metadata(encoded: Mapping[str, str] | None) -> dict[str, str]:
    """What the caller wanted kept."""
    return {
        _decode_name(name): unquote(value)
        for name, value in (encoded or {}).items()
        if name.lower() != DIGEST
    }


def recorded_sha256(blob: BlobProperties) -> str | None:
    """The SHA-256 that was committed together with the blob's bytes; None where there is none, or no longer of them.

    A tool that replaces the bytes and keeps the metadata also replaces Content-MD5, which the service computes itself
    for a blob written by one request.
    """
    sha256, _, md5 = (blob.metadata or {}).get(DIGEST, "").partition(".")
    return sha256 if md5 and md5 == content_md5(blob).hex() else None


def content_md5(blob: BlobProperties) -> bytes:
    """The blob's Content-MD5; empty where it has none."""
    return bytes(blob.content_settings.content_md5 or b"")


def is_object(blob: BlobProperties) -> bool:
    """Whether this is a whole object: no directory, no copy that is still under way or failed, no remains of a sweep."""
    copied: Any = blob.copy.status
    folder = (blob.metadata or {}).get(_FOLDER, "").lower() == "true"
    return copied in {None, "success"} and not folder and not is_discarded(blob)


def is_discarded(blob: BlobProperties) -> bool:
    """Whether it is the empty blob of a sweep."""
    return blob.size == 0 and blob.content_settings.content_type == DISCARDED


def _encode_name(name: str) -> str:
    # Escapes look like those of XML names: `_x2d_` for `-`. What looks like one without being one is escaped itself.
    encoded = "".join(
        chr(octet) if chr(octet) in "abcdefghijklmnopqrstuvwxyz0123456789_" else f"\0{octet:02x}"
        for octet in name.encode(errors="replace")
    )
    encoded = re.sub(r"_(?=x[0-9a-f]{2})", "\0" + "5f", encoded)
    if encoded[0].isdigit() or encoded in {DIGEST, _FOLDER}:
        encoded = f"\0{ord(encoded[0]):02x}{encoded[1:]}"
    return re.sub("\0(..)", r"_x\1_", encoded)


def _decode_name(encoded: str) -> str:
    octets = re.sub(rb"_x([0-9a-f]{2})_", lambda found: bytes.fromhex(found[1].decode()), encoded.encode())
    return octets.decode(errors="replace")
