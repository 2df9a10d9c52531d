"""Which keys can be names of blobs. Used by backends/azure.py only."""

from backends.base import check_key
from backends.errors import InvalidKey

_SEGMENTS = 254


def check_name(key: str) -> str:
    """Return `key` if Azure keeps it as it is, else raise `InvalidKey`.

    Keys with a backslash are refused, because the service takes it for a slash; so are segments that end in a dot, which
    it may drop, control characters, and more than 254 segments
    (https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata).
    """
    check_key(key)
    if "\\" in key or any(character < " " or character == "\x7f" for character in key):
        raise InvalidKey(f"key {key!a} holds a backslash or a control character, which Azure does not keep")
    segments = key.split("/")
    if len(segments) > _SEGMENTS or any(segment.endswith(".") for segment in segments):
        raise InvalidKey(f"key {key[:60]!a} has more than {_SEGMENTS} segments, or one that ends in a dot")
    return key
