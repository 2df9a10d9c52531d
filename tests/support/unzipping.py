"""Runs the transform `unzip` on bytes. Used by its tests and its fuzz target."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from backends.base import CHUNK_SIZE
from handlers.transforms.base import Limits, Meter, Part, Work
from handlers.transforms.unzip import Unzip, UnzipOptions


@dataclass
class Taken:
    """What came out, in order; `parts` have been read already."""

    parts: list[Part] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return dict(zip((part.path for part in self.parts), self.contents, strict=True))


def work_in(directory: Path, /, **limits: float) -> Work:
    return Work(Meter(Limits.model_validate(limits)), directory, "bundle/resource")


async def payload(data: bytes, work: Work, piece: int = CHUNK_SIZE) -> AsyncIterator[bytes]:
    """`data` in pieces, counted as read."""
    for at in range(0, len(data), piece):
        chunk = data[at : at + piece]
        work.meter.read(len(chunk))
        yield chunk


async def unzip(
    data: bytes,
    work: Work,
    *,
    label: str = "",
    content_type: str | None = None,
    path: str = "",
    depth: int = 0,
    piece: int = CHUNK_SIZE,
    options: UnzipOptions | None = None,
    taken: Taken | None = None,
) -> Taken:
    """What the transform makes of `data`. `taken` keeps what came out before it raised."""
    taken = Taken() if taken is None else taken
    part = Part(payload(data, work, piece), path=path, label=label, content_type=content_type, depth=depth)
    async with aclosing(Unzip(options).apply(part, work)) as parts:
        async for made in parts:
            chunks = [chunk async for chunk in made.chunks]
            assert all(0 < len(chunk) <= CHUNK_SIZE for chunk in chunks)
            taken.parts.append(made)
            taken.contents.append(b"".join(chunks))
    return taken
