"""Fuzz target: whatever bytes are taken for a tar, only what Python's tarfile finds in them comes out, or they are refused.

`fuzz` takes any bytes; `ARCHIVES` makes good ones to change. Called by tests/unit/test_untar.py for a few dozen examples.
"""

import asyncio
import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress

from hypothesis import strategies as st

from handlers.errors import Refused
from handlers.transforms.base import Limits
from handlers.transforms.tar_headers import looks_like_tar
from tests.support.tars import END, GNU, USTAR, V7, header, member, pax, untar

LIMITS = Limits(total=1 << 20, entry=1 << 19, entries=200, name=300)
_GUARD = b"guard"
REASONS = {"payload_corrupt", "payload_limit", "payload_unsafe", "payload_unsupported"}

_NAME = st.one_of(
    st.text("abAB.é~日/", min_size=1, max_size=12).map(str.encode),
    st.sampled_from([b"../x", b"/x", b"a\\b", b"CON", b"x" * 100, b"a\0b", b"\xff", b"."]),
)
_CONTENT = st.binary(max_size=40) | st.integers(500, 1100).map(lambda size: b"c" * size)
_MAGIC = st.sampled_from([USTAR, GNU, V7])
_FILE = st.builds(lambda name, data, magic: member(name, data, magic=magic), _NAME, _CONTENT, _MAGIC)
_OTHER = st.builds(lambda name, kind: member(name, kind=bytes([kind])), _NAME, st.integers(0, 255))
_KEYS = st.sampled_from(
    [b"path", b"size", b"linkpath", b"hdrcharset", b"GNU.sparse.map", b"comment", b"mtime"]
)
_VALUES = _NAME | st.sampled_from([b"0", b"1", b"512", b"-1", b"99999999999", b"BINARY", b""])
_PAX = st.builds(
    lambda pairs, kind: pax(*pairs, kind=kind),
    st.lists(st.tuples(_KEYS, _VALUES), max_size=3),
    st.sampled_from([b"x", b"g"]),
)
_LONG = st.builds(
    lambda name, kind: member(b"././@LongLink", name + b"\0", kind, magic=GNU),
    _NAME,
    st.sampled_from([b"L", b"K"]),
)
_SIZES = st.binary(min_size=12, max_size=12) | st.integers(0, 5000)
_LYING = st.builds(header, _NAME, _SIZES)
_WHOLE = st.builds(
    lambda items, end: b"".join(items) + end,
    st.lists(_FILE | _FILE | _OTHER | _PAX | _LONG | _LYING, max_size=6),
    st.sampled_from([END, END, bytes(10_240), bytes(512), b"", END + b"x", END + bytes(100)]),
)


@st.composite
def _changed(draw: st.DrawFn) -> bytes:
    """A good archive, with bytes flipped, taken out, doubled or cut off."""
    data = bytearray(draw(_WHOLE))
    for _ in range(draw(st.integers(0, 3))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        to = draw(st.integers(at, min(len(data), at + 1024)))
        match draw(st.sampled_from(["flip", "cut", "drop", "double"])):
            case "flip":
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "drop":
                del data[at:to]
            case _:
                data[at:at] = data[at:to]
    return bytes(data)


ARCHIVES = (
    _WHOLE | _changed() | _changed().map(lambda data: gzip.compress(data, mtime=0)) | st.binary(max_size=2000)
)
FILES = st.lists(
    st.tuples(
        st.text("abcé日-_.", min_size=1, max_size=150).filter(lambda name: name.strip(".") == name), _CONTENT
    ),
    max_size=6,
    unique_by=lambda file: file[0].casefold(),
)


def fuzz(data: bytes) -> None:
    """What comes out is what another reader finds, or all of it is refused; nothing else is ever raised."""
    try:
        seen = asyncio.run(untar(data, chunk=333, limits=LIMITS))
    except Refused as exc:
        _known(exc)
        return
    if data.startswith(b"\x1f\x8b") and [one.data for one in seen] != [data]:
        data = gzip.decompress(data)
    if not looks_like_tar(data):
        assert [(one.path, one.data) for one in seen] == [("", data)]
        return
    assert sum(len(one.data) for one in seen) <= LIMITS.total
    assert all(one.path and not {"", ".", ".."} & set(one.path.split("/")) for one in seen)
    with suppress(
        UnicodeDecodeError
    ):  # tarfile reads all of an extended header, also comments that are no text
        assert [(one.member, one.data) for one in seen] == _read_by_python(data)


def _known(refusal: Refused) -> None:
    assert refusal.reason in REASONS


def whole(files: list[tuple[str, bytes]]) -> None:
    """What Python writes comes out as it went in, in every dialect that can hold it."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        seen = asyncio.run(untar(out.getvalue(), chunk=1000))
        if files:
            assert [(one.member, one.data) for one in seen] == files


def _read_by_python(data: bytes) -> list[tuple[str, bytes]]:
    """The files that tarfile finds, a name that ends in a slash being a directory's in version 7."""
    found: list[tuple[str, bytes]] = []
    # In front, as tarfile.open fails where nothing but a global header is there.
    data = member(_GUARD) + data
    with tarfile.open(
        fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info in _entries(archive):
            content = archive.extractfile(info) if info.isfile() and not info.name.endswith("/") else None
            if content is None:
                continue
            name = info.name.encode("utf-8", "surrogateescape")
            try:
                text = name.decode()
            except UnicodeDecodeError:
                text = name.decode("latin-1")
            found.append((text, content.read()))
    return found[1:]


def _entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """It fails at an end that comes right after a global header, which is a good one."""
    try:
        yield from archive
    except tarfile.ReadError as exc:
        if str(exc) != "end of file header":
            raise
