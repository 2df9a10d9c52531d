"""Keys as HDFS paths and back, and the names of unfinished writes. Used by backends/hdfs.py only.

A path is the key itself, so that Spark, Hive and `hdfs dfs` find what they expect, except for what HDFS refuses or keeps for
itself: `:`, control characters and reserved names. Those become `~` and two hex digits for each byte, and so does `~`. Two
keys never share a path.
"""

import re
import secrets

from backends.base import check_key
from backends.errors import InvalidKey

SEGMENT_LIMIT = 255
"""Bytes of a name: `dfs.namenode.fs-limits.max-component-length` where nobody changed it
(https://hadoop.apache.org/docs/current/hadoop-project-dist/hadoop-hdfs/hdfs-default.xml)."""

PARTS = ".transload-parts"
"""The directory of unfinished writes, directly below the root."""

_RESERVED = frozenset({".snapshot", ".reserved", PARTS})
_REFUSED = re.compile(r"[\x00-\x1f\x7f:~]")
_ESCAPED = re.compile("~([0-9A-F]{2})")
_TOKEN = 24


def path_of(key: str) -> str:
    """The path below the root. Raises `InvalidKey`."""
    segments = [_segment(segment) for segment in check_key(key).split("/")]
    longest = max(len(segment.encode()) for segment in segments)
    if longest > SEGMENT_LIMIT:
        raise InvalidKey(
            f"key {key[:60]!a} has a segment of {longest} bytes as HDFS stores it; {SEGMENT_LIMIT} are allowed"
        )
    return "/".join(segments)


def key_of(path: str) -> str | None:
    """The key (or a part of one) that lies at a path below the root; None where no key would."""
    key = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), path)
    return key if "/".join(map(_segment, key.split("/"))) == path else None


def temporary_of(key: str) -> str:
    """A path below the root that no other write uses, with as much of the key in it as fits."""
    name = secrets.token_hex(_TOKEN // 2) + "-"
    for character in key:
        piece = "~2F" if character == "/" else _escaped(character)
        if len(name.encode()) + len(piece.encode()) > SEGMENT_LIMIT:
            break
        name += piece
    return f"{PARTS}/{name}"


def key_of_temporary(name: str) -> str:
    """The key that a file of the directory `PARTS` was begun for, or its beginning where it did not fit."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name[_TOKEN + 1 :])


def _segment(segment: str) -> str:
    escaped = _escaped(segment)
    return f"~2E{escaped[1:]}" if segment in _RESERVED else escaped


def _escaped(text: str) -> str:
    return _REFUSED.sub(lambda found: f"~{ord(found[0]):02X}", text)
