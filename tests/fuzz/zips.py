"""Fuzz target: any bytes at all come out of unzip right, or refused; nothing else, and not more than the limits allow.

`ZIPS` makes zips and damages them; `fuzz` holds one to its promises. Called by tests/unit/test_unzip.py for a few dozen
examples.
"""

import asyncio
import io
import tempfile
import zipfile
from pathlib import Path

import zstandard
from hypothesis import strategies as st

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from tests.support.hostile_zips import DEFLATE, STORED, STREAMED, UTF_8, ZSTANDARD, Item, archive, extra_field
from tests.support.unzipping import Taken, unzip, work_in

LIMITS = {"total": 4 << 20, "entry": 2 << 20, "entries": 20, "memory": 1 << 20, "spool": 4 << 20, "name": 100}
REASONS = {"payload_corrupt", "payload_unsafe", "payload_unsupported", "payload_limit"}

_NAMES = st.sampled_from(
    [b"a", b"b.txt", b"dir/", b"dir/c", "é".encode(), b"\x81", b"../x", b"A", b"a/b", b"\x00"]
)
_DATA = st.binary(max_size=80) | st.builds(
    lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.integers(0, 5 << 20)
)
_NUMBERS = st.sampled_from([0, 1, 2, 22, 30, 46, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
_EXTRA = st.builds(extra_field, st.sampled_from([1, 0x7075, 0x5455]), st.binary(max_size=28)) | st.binary(
    max_size=8
)


@st.composite
def _items(draw: st.DrawFn) -> Item:
    data = draw(_DATA)
    method = draw(st.sampled_from([STORED, DEFLATE, DEFLATE, ZSTANDARD, 12, 14, 9]))
    lies = (
        st.dictionaries(st.sampled_from(["crc", "packed", "size"]), _NUMBERS, max_size=1)
        if draw(st.integers(0, 5)) == 0
        else st.just({})
    )
    return Item(
        draw(_NAMES),
        data,
        method,
        packed=zstandard.compress(data) if method == ZSTANDARD else None,
        flags=draw(st.sampled_from([0, 0, STREAMED, UTF_8, STREAMED | UTF_8])),
        extra=draw(_EXTRA) if draw(st.integers(0, 5)) == 0 else b"",
        local=draw(lies),
        central=draw(lies),
        before=b"x" if draw(st.integers(0, 15)) == 0 else b"",
    )


@st.composite
def _archives(draw: st.DrawFn) -> bytes:
    items = draw(st.lists(_items(), max_size=5))
    return archive(items, comment=draw(st.binary(max_size=3)), zip64=draw(st.booleans()))


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(_archives()))
    for _ in range(draw(st.integers(0, 3))):
        # Nearer to the ends lie the headers.
        at = draw(
            st.integers(0, len(data)) | st.integers(max(0, len(data) - 120), len(data)) | st.integers(0, 60)
        )
        at = min(at, len(data))
        match draw(st.integers(0, 4)):
            case 0 | 1:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 2:
                data[at:at] = draw(st.binary(max_size=8))
            case 3:
                del data[at : at + draw(st.integers(0, 40))]
            case _:
                data[at : at + 4] = draw(_NUMBERS).to_bytes(4, "little")
    return bytes(data)


ZIPS = _archives() | _damaged() | _damaged() | st.binary(max_size=200).map(lambda data: b"PK\x03\x04" + data)


def fuzz(data: bytes) -> None:
    """Raises `AssertionError` where a property does not hold."""
    with tempfile.TemporaryDirectory() as spool:
        work = work_in(Path(spool), **LIMITS)
        taken = Taken()
        refused: Refused | None = None
        try:
            asyncio.run(unzip(data, work, taken=taken))
        except Refused as exc:
            refused = exc
        assert work.meter._made <= LIMITS["total"] + CHUNK_SIZE
        assert work.meter._spooled == 0
        assert not any(Path(spool).iterdir())
    if refused is not None:
        assert refused.reason in REASONS
    elif data[:4] not in {b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06"}:
        assert taken.contents == [data]
    else:
        expected = _by_zipfile(data)
        assert expected is None or taken.contents == expected


def _by_zipfile(data: bytes) -> list[bytes] | None:
    """What Python's reader, which asks for much less, makes of it; None where it makes nothing."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as read:
            return [read.read(entry) for entry in read.infolist() if not entry.filename.endswith("/")]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError, EOFError):
        return None
