"""Fuzz target: what the writers of archives make, other readers read back equal; what they refuse, our own unzip would not keep.

`fuzz` takes what `BUNDLES` gives. Called by tests/unit/test_bundling.py for a few dozen examples.
"""

import asyncio
import io
import tarfile
import tempfile
import unicodedata
import zipfile
from contextlib import aclosing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import zstandard
from hypothesis import strategies as st

from backends.base import single
from handlers.bundling.archive import FORMATS
from handlers.errors import Refused
from handlers.transforms.base import Limits, Meter, Part, Transform, Work, transformed
from handlers.transforms.names import entry_path
from handlers.transforms.untar import Untar
from handlers.transforms.unzip import Unzip
from tests.support.bundles import archived, member

_CONTENT = (
    st.binary(max_size=300)
    # Around the ends of stored blocks, of a tar's units, and of what is worked on in the event loop.
    | st.builds(
        lambda unit, about, byte: bytes([byte]) * (unit + about),
        st.sampled_from([512, 32_768, 65_535, 131_070]),
        st.integers(-2, 2),
        st.integers(0, 255),
    )
)
_SEGMENT = st.from_regex(r"[a-dé日][a-d é日._-]{0,6}[a-d0-9]", fullmatch=True) | st.sampled_from(
    ["x" * 101, "é" * 60]
)
_PATH = st.lists(_SEGMENT, min_size=1, max_size=3).map("/".join)
_HOSTILE = st.text("aA.~ é:\\/\n", max_size=5) | st.sampled_from(["..", "CON", "x" * 201, "x/" * 460 + "x"])
_FILES = st.lists(st.tuples(_PATH, _CONTENT), max_size=6, unique_by=lambda file: file[0])


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files in their order, and how their streams are cut, in two tries."""

    files: tuple[tuple[str, bytes], ...]
    cuts: tuple[int, int]


BUNDLES = st.builds(
    Bundle,
    st.one_of(
        _FILES.map(tuple),
        _FILES.map(tuple),
        st.lists(st.tuples(_PATH | _HOSTILE, _CONTENT), max_size=4).map(tuple),
    ),
    st.tuples(*[st.sampled_from([7, 511, 65_535, 65_536, 1 << 20])] * 2),
)


def fuzz(bundle: Bundle) -> None:
    """Raises `AssertionError` where a property does not hold."""
    paths = [path for path, _ in bundle.files]
    for format_ in FORMATS.names():
        try:
            first, second = (
                asyncio.run(archived(format_, [member(path, data, cut) for path, data in bundle.files]))
                for cut in bundle.cuts
            )
        except ValueError:
            assert not _kept(paths), f"{format_} refuses {paths!a}"
            continue
        assert _kept(paths), f"{format_} takes {paths!a}"
        assert first == second, f"{format_} depends on how streams are cut"
        assert read_back(format_, first) == list(bundle.files), f"{format_} is read back otherwise"
        # Zeros alone could be anything: without a header our own untar sees no tar in them.
        if bundle.files or format_ == "zip":
            again = asyncio.run(taken_apart(format_, first))
            assert again == list(bundle.files), f"{format_} is taken apart otherwise"


def read_back(format_: str, data: bytes) -> list[tuple[str, bytes]]:
    """The files of an archive, as the standard library reads them."""
    if format_ == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as found:
            return [(entry.filename, found.read(entry)) for entry in found.infolist()]
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(data) if format_ == "tar.zst" else None
    with tarfile.open(fileobj=io.BytesIO(data if plain is None else plain)) as tar:
        files = [(entry.name, tar.extractfile(entry)) for entry in tar]
        return [(name, file.read()) for name, file in files if file is not None]


async def taken_apart(format_: str, data: bytes) -> list[tuple[str, bytes]]:
    """The files of an archive, as our own transforms read them."""
    step: Transform = Unzip() if format_ == "zip" else Untar()
    work = _work()
    work.meter.read(len(data))
    part = Part(single(data), label=f"bundle.{format_}")
    async with aclosing(transformed([step], part, work)) as parts:
        return [(found.path, b"".join([chunk async for chunk in found.chunks])) async for found in parts]


def _work() -> Work:
    return Work(Meter(Limits(name=900)), Path(tempfile.gettempdir()))


def _kept(paths: list[str]) -> bool:
    """Whether taking the archive apart gives these very paths, and what lies in one folder at the top comes together."""
    work = _work()
    try:
        same = [entry_path(path, work) for path in paths] == paths
    except Refused:
        return False
    folders = [
        unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold()).partition("/")[0]
        for path in paths
        if "/" in path
    ]
    return same and len([*groupby(folders)]) == len(set(folders))
