"""Paths of archive entries that are safe below a key, on every store and file system. Used by unzip, untar and execute.py.

What could lead out of its place is refused; what some file system cannot hold, or could not tell from another entry, gets a
name of its own: `~` and eight hex digits of its SHA-256 before the suffix. The same archive gives the same paths every time.
"""

import re
import unicodedata
from dataclasses import replace
from hashlib import sha256

from handlers.errors import Refused
from handlers.transforms.base import Part, Work, exceeded

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|clock\$|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])( *\.|$)")
"""https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file"""
_NOWHERE = re.compile(r'[<>:"|?*]')
_SEGMENT = 200
"""Bytes of one segment: file systems end at 255, and adapters add to names while they write."""


def entry_path(name: str, work: Work, below: str = "") -> str:
    """The path for an entry of that name; it is taken from then on. `below`: the path of the archive it is in.

    Raises `Refused("payload_unsafe")` for what is absolute, has a drive, `..`, `.` or empty segments, backslashes or control
    characters, for a name that was there before, and for one that is a file here and a folder there;
    `Refused("payload_limit")` for one that is too long.
    """
    # An archive that is taken apart is a folder.
    work.files.discard(_folded(below))
    full = f"{below}/{name}" if below else name
    check_name(name, work, full)
    if full in work.names:
        raise Refused("payload_unsafe", f"duplicate: two entries are called {full[:200]!a}")
    work.names.add(full)
    segments = [segment if _portable(segment) else _apart(segment, segment) for segment in name.split("/")]
    path = "/".join(filter(None, [below, *segments]))
    if _folded(path) in work.files:
        path = "/".join(filter(None, [below, *segments[:-1], _apart(segments[-1], name)]))
    folders = {_folded(folder) for folder in _folders(path)}
    folded = _folded(path)
    if folded in work.files or folded in work.folders or folders & work.files:
        raise Refused("payload_unsafe", f"collision: another entry is in the way of {full[:200]!a}")
    work.files.add(folded)
    work.folders.update(folders)
    if len(work.folders) > work.limits.entries:
        # A path of many segments is in many folders, and all of them are kept.
        raise exceeded("entries", work.limits.entries, full[:200])
    return path


class Paths:
    """Where the parts of one payload end up. A step after `unzip` may rename an entry to what another is called: `a.gz` beside `a`."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def settle(self, part: Part) -> Part:
        """The part, under a path that no part before it has; that path is taken from then on.

        Raises `Refused("payload_unsafe")` where even the name that sets it apart is taken.
        """
        if not part.path or part.settled:
            return part
        segments = part.path.split("/")
        for place in range(len(segments) - 1):
            folder = "/".join(segments[: place + 1])
            if _folded(folder) in self._files:
                segments[place] = _apart(segments[place], folder)
        if (wanted := _folded("/".join(segments))) in self._files or wanted in self._folders:
            segments[-1] = _apart(segments[-1], part.member)
        path = "/".join(segments)
        folders = {_folded(folder) for folder in _folders(path)}
        folded = _folded(path)
        if folded in self._files or folded in self._folders or folders & self._files:
            raise Refused("payload_unsafe", f"collision: another entry is in the way of {path[:200]!a}")
        self._files.add(folded)
        self._folders |= folders
        return replace(part, path=path, settled=True)


def check_name(name: str, work: Work, full: str = "") -> None:
    """Refuse what `entry_path` would refuse of the name alone: for folders, which are not stored."""
    try:
        length = len((full or name).encode())
    except UnicodeEncodeError as exc:
        raise Refused("payload_unsafe", f"name: {name[:200]!a} holds a lone surrogate") from exc
    if length > work.limits.name:
        raise exceeded("name", work.limits.name, name[:200])
    shown = f"{name[:200]!a}"
    if _CONTROL.search(name):
        raise Refused("payload_unsafe", f"name: {shown} holds a control character")
    if name.startswith("/") or _DRIVE.match(name) or "\\" in name:
        raise Refused("payload_unsafe", f"traversal: {shown} is absolute, has a drive or a backslash")
    if any(segment in {"", ".", ".."} for segment in name.split("/")):
        raise Refused("payload_unsafe", f"traversal: {shown} has an empty, '.' or '..' segment")


def _portable(segment: str) -> bool:
    return not (
        _DEVICE.match(segment)
        or _NOWHERE.search(segment)
        or segment[-1] in ". "
        or segment[0] == " "
        or len(segment.encode()) > _SEGMENT
    )


def _apart(segment: str, name: str) -> str:
    """Not to be mistaken for any other entry's segment; still to be recognised."""
    digest = sha256(name.encode()).hexdigest()[:8]
    clean = _NOWHERE.sub("_", segment).strip(". ")
    stem, dot, suffix = clean.rpartition(".")
    if not stem or len(suffix) > 8:
        stem, dot, suffix = clean, "", ""
    while len(stem.encode()) > _SEGMENT - 40:
        stem = stem[:-1]
    return f"{stem}~{digest}{dot}{suffix}"


def _folders(path: str) -> list[str]:
    segments = path.split("/")
    return ["/".join(segments[:end]) for end in range(1, len(segments))]


def _folded(path: str) -> str:
    """In the form that no file system tells apart: APFS and NTFS ignore case, HFS+ and APFS the normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
