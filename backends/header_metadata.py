"""`Attributes` as headers of HTTP carry them, and back. Used by every adapter whose store keeps them in headers."""

from collections.abc import Mapping
from urllib.parse import quote, unquote

_NAME_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
_VALUE_SAFE = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_TAKEN_NAMES = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "storage-class",
    }
)


def encode_content_type(content_type: str) -> str:
    """As ASCII; what is a content type already stays as it is."""
    return quote(content_type, safe=_VALUE_SAFE + " %", errors="replace")


def encode_metadata(metadata: Mapping[str, str], limit: int) -> dict[str, str]:
    """Names and values as headers take them: ASCII, names in lower case, at most `limit` bytes in all.

    What does not fit the alphabet is percent-encoded UTF-8, which `unquote` reverses. The longest values are cut, at a
    whole character; names are left out, last ones first, only where they alone exceed the limit.
    """
    named = {_encode_name(name): value for name, value in metadata.items()}
    while sum(map(len, named)) > limit:
        named.popitem()
    room = limit - sum(map(len, named))
    encoded = {name: _encode_value(value) for name, value in named.items()}
    # The largest cap under which all values fit: shortest first, each leaves what it does not use to the longer ones.
    cap = room
    for left, length in zip(range(len(encoded), 0, -1), sorted(map(len, encoded.values())), strict=True):
        cap = room // left
        if length > cap:
            break
        room -= length
        cap = max(cap, length)
    return {name: text if len(text) <= cap else _cut(named[name], cap) for name, text in encoded.items()}


def decode_metadata(encoded: Mapping[str, str]) -> dict[str, str]:
    """What `encode_metadata` was given."""
    return {unquote(name): unquote(value) for name, value in encoded.items()}


def _encode_name(name: str) -> str:
    # Stores lower upper case, and SDKs take a few names for the standard headers: both are escaped.
    if name in _TAKEN_NAMES:
        return f"%{ord(name[0]):02x}{name[1:]}"
    octets = name.encode(errors="replace")
    return "".join(chr(octet) if octet in _NAME_SAFE else f"%{octet:02x}" for octet in octets)


def _encode_value(value: str) -> str:
    return quote(value, safe=_VALUE_SAFE, errors="replace")


def _cut(value: str, cap: int) -> str:
    """As many whole characters as fit into `cap` bytes once encoded."""
    pieces: list[str] = []
    for character in value:
        piece = _encode_value(character)
        if len(piece) > cap:
            break
        cap -= len(piece)
        pieces.append(piece)
    return "".join(pieces)
