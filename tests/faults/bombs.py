"""Payloads made to exhaust who decodes them, each decoded by a process of its own that reports the kernel's mark of its memory.

    python -m tests.faults.bombs

Prints a line of JSON for each: its name, what it was refused with, and the bytes by which resident memory grew at most. Run by
tests/faults/test_bombs.py.
"""

import asyncio
import bz2
import gzip
import json
import lzma
import os
import sys
import tempfile
import traceback
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import zstandard

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Limits, Meter, Part, Transform, Work, transformed
from handlers.transforms.bunzip2 import Bunzip2
from handlers.transforms.content_encoding import Decode
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.untar import Untar
from handlers.transforms.unxz import Unxz
from handlers.transforms.unzip import Unzip
from handlers.transforms.unzstd import Unzstd
from tests.support.codecs import gzip_quine
from tests.support.hostile_zips import DEFLATE, Item, archive, quoted
from tests.support.tars import header, member, pax

_MIB = 1 << 20
_SIZE = 160 * _MIB
"""Of the zeros in a bomb: far more than its process may take."""


@dataclass(frozen=True)
class Bomb:
    """What arrives, the steps it goes through, and what must stop it."""

    payload: Callable[[], Iterator[bytes]]
    steps: Sequence[Transform]
    stopped_by: str
    """A part of what the refusal says; empty for what is within the limits and comes out whole."""
    entry: str = "the payload"
    """As the refusal names it; empty where the outer or the inner one may be first."""
    limits: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    content_encoding: str | None = None


def _zeros() -> Iterator[bytes]:
    for _ in range(_SIZE // _MIB):
        yield bytes(_MIB)


def _gzip(data: Iterator[bytes]) -> Iterator[bytes]:
    encoder = zlib.compressobj(1, wbits=31)
    for piece in data:
        yield encoder.compress(piece)
    yield encoder.flush()


def _bzip2(data: Iterator[bytes]) -> Iterator[bytes]:
    encoder = bz2.BZ2Compressor()
    for piece in data:
        yield encoder.compress(piece)
    yield encoder.flush()


def _xz(data: Iterator[bytes], dictionary: int = 1 << 20) -> Iterator[bytes]:
    encoder = lzma.LZMACompressor(
        filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dictionary, "mf": lzma.MF_HC3}]
    )
    for piece in data:
        yield encoder.compress(piece)
    yield encoder.flush()


def _zstd(data: Iterator[bytes], window: int = 20) -> Iterator[bytes]:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window)
    encoder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for piece in data:
        yield encoder.compress(piece)
    yield encoder.flush()


def _twice(encode: Callable[[Iterator[bytes]], Iterator[bytes]]) -> Iterator[bytes]:
    yield from encode(encode(_zeros()))


def _tar_of_zeros() -> Iterator[bytes]:
    yield header(b"a/bomb", _SIZE)
    yield from _zeros()
    yield bytes(1024)


def _tar_with_a_header(kind: bytes) -> Iterator[bytes]:
    """An extended header, a long name, of 160 MiB."""
    yield header(b"x", _SIZE, kind)
    yield from _zeros()


def _tiny_entries() -> Iterator[bytes]:
    for number in range(100_001):
        yield member(b"%d" % number, b"x")


def _deep_names() -> Iterator[bytes]:
    """Each of its folders is remembered."""
    for number in range(2_000):
        yield pax((b"path", b"%d/" % number + b"d/" * 100 + b"x"))
        yield member(b"x", b"")


def _zip_of_zeros() -> Iterator[bytes]:
    encoder, packed, crc = zlib.compressobj(1, wbits=-15), bytearray(), 0
    for piece in _zeros():
        packed += encoder.compress(piece)
        crc = zlib.crc32(piece, crc)
    packed += encoder.flush()
    yield archive([Item(b"bomb", b"", DEFLATE, packed=bytes(packed), size=_SIZE, crc=crc)])


def _many(transform: Callable[[], Transform]) -> Sequence[Transform]:
    return [transform() for _ in range(8)]


_ANY_RATIO = {"ratio": 1e9}

BOMBS: Mapping[str, Bomb] = MappingProxyType(
    {
        "gzip, ratio": Bomb(lambda: _gzip(_zeros()), [Gunzip()], "limits.ratio"),
        "gzip, total": Bomb(
            lambda: _gzip(_zeros()), [Gunzip()], "limits.total", limits={**_ANY_RATIO, "total": 128 * _MIB}
        ),
        "gzip, entry": Bomb(
            lambda: _gzip(_zeros()), [Gunzip()], "limits.entry", limits={**_ANY_RATIO, "entry": 128 * _MIB}
        ),
        "gzip, allowed": Bomb(lambda: _gzip(_zeros()), [Gunzip()], "", limits=_ANY_RATIO),
        "gzip in gzip": Bomb(lambda: _twice(_gzip), _many(Gunzip), "limits.ratio"),
        "gzip of itself": Bomb(lambda: iter([gzip_quine()]), _many(Gunzip), "limits.nesting"),
        "bzip2": Bomb(lambda: _bzip2(_zeros()), [Bunzip2()], "limits.ratio"),
        "bzip2 in bzip2": Bomb(lambda: _twice(_bzip2), _many(Bunzip2), "limits.ratio"),
        "xz": Bomb(lambda: _xz(_zeros()), [Unxz()], "limits.ratio"),
        "xz, dictionary of 512 MiB": Bomb(
            lambda: _xz(iter([b"x"]), dictionary=512 * _MIB), [Unxz()], "limits.memory"
        ),
        "xz, dictionary of 64 MiB": Bomb(
            lambda: _xz(_zeros(), dictionary=64 * _MIB), [Unxz()], "", limits=_ANY_RATIO
        ),
        "zstd": Bomb(lambda: _zstd(_zeros()), [Unzstd()], "limits.ratio"),
        "zstd, window of 2 GiB": Bomb(lambda: _zstd(iter([b"x"]), 31), [Unzstd()], "limits.memory"),
        "zstd, window of 64 MiB": Bomb(lambda: _zstd(_zeros(), 26), [Unzstd()], "", limits=_ANY_RATIO),
        "content encoding": Bomb(
            lambda: _gzip(_zeros()), [Decode()], "limits.ratio", content_encoding="gzip"
        ),
        "content encodings": Bomb(
            lambda: iter([gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"x"))))]),
            [Decode()],
            "limits.nesting",
            content_encoding="gzip, gzip, gzip, gzip",
        ),
        "tar of zeros": Bomb(
            _tar_of_zeros, [Untar()], "limits.entry", entry="a/bomb", limits={"entry": 128 * _MIB}
        ),
        "tar in gzip": Bomb(lambda: _gzip(_tar_of_zeros()), [Gunzip(), Untar()], "limits.ratio", entry=""),
        **{
            f"tar with a header of 160 MiB ({kind.decode()})": Bomb(
                partial(_tar_with_a_header, kind), [Untar()], "1048576 are allowed", entry="header at byte 0"
            )
            for kind in (b"x", b"g", b"L", b"K")
        },
        "tar of tiny entries": Bomb(_tiny_entries, [Untar()], "limits.entries", entry="100000"),
        "tar of deep folders": Bomb(_deep_names, [Untar()], "limits.entries", entry="/d/"),
        "zip": Bomb(_zip_of_zeros, [Unzip()], "limits.ratio", entry="bomb"),
        "zip, allowed": Bomb(_zip_of_zeros, [Unzip()], "", limits=_ANY_RATIO),
        "zip whose entries share their content": Bomb(
            lambda: iter([quoted(1_000, bytes(_MIB))]), [Unzip()], "overlap", entry="'0'"
        ),
        "zip in gzip": Bomb(lambda: _gzip(_zip_of_zeros()), [Gunzip(), Unzip()], "limits.ratio", entry=""),
    }
)


def _main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name, bomb in BOMBS.items():
            payload = Path(directory, "payload")
            # Encoders take more than decoders may: each runs in a process of its own, and neither leaves anything here.
            _in_a_child(partial(_write, bomb, payload))
            _in_a_child(partial(_report, name, payload))


def _in_a_child(work: Callable[[], None]) -> None:
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        try:
            work()
            sys.stdout.flush()
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("a bomb could not be made, or not be decoded")


def _write(bomb: Bomb, payload: Path) -> None:
    with payload.open("wb") as file:
        for piece in bomb.payload():
            file.write(piece)


def _report(name: str, payload: Path) -> None:
    before = _memory("VmRSS")
    refusal = asyncio.run(_decode(BOMBS[name], payload))
    grown = _memory("VmHWM") - before
    print(json.dumps({"name": name, "refusal": refusal, "grown": grown}))


async def _decode(bomb: Bomb, payload: Path) -> str:
    """What it was refused with; empty when it came out whole."""
    work = Work(Meter(Limits.model_validate(bomb.limits)), payload.parent, "bundle/resource")
    part = Part(_chunks(payload, work.meter), label=bomb.label, content_encoding=bomb.content_encoding)
    try:
        async with aclosing(transformed(bomb.steps, part, work)) as parts:
            async for made in parts:
                async for _ in made.chunks:
                    pass
    except Refused as exc:
        return str(exc)
    return ""


async def _chunks(payload: Path, meter: Meter) -> AsyncIterator[bytes]:
    with payload.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            meter.read(len(chunk))
            yield chunk


def _memory(mark: str) -> int:
    """Bytes, by the kernel: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{mark}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"the kernel tells no {mark}")


if __name__ == "__main__":
    _main()
