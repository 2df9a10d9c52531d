"""The port of transforms: one part in, one or more parts out, streaming.

The contract all transforms keep:

- What a part is, its first bytes decide, never its name or type alone. A part that is something else is handed on unchanged;
  when name or type claimed otherwise, with a note.
- A part is whole or it fails: what begins to be decoded and turns out damaged raises `Refused("payload_corrupt", …)` in
  place of an end, so that no target commits it.
- Whatever exceeds a limit raises `Refused("payload_limit", …)` that names the limit and the entry; names, links and
  structures that could do harm `Refused("payload_unsafe", …)`; what cannot be decoded here `Refused("payload_unsupported", …)`.
- Memory is bounded by `Limits.memory` and a few chunks; chunks that come out have at most `backends.base.CHUNK_SIZE` bytes.
- The same payload gives the same parts with the same bytes, every time.
- Parts come one after another: each is read to its end, or closed, before the next is asked for.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from handlers.errors import Refused

Turn = Callable[[], AbstractAsyncContextManager[None]]
"""What a thread is used in: whoever shares threads out makes one wait there."""

_ALWAYS = 16 << 20
"""Bytes that may come out of any payload before `Limits.ratio` is looked at: small ones compress by more."""


class Limits(BaseModel):
    """What a payload may become. Every limit is enforced while decoding; sizes that a header states are believed in nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float = Field(
        default=200.0, gt=1, description="Bytes out for one byte of payload, after the first 16 MiB."
    )
    total: int = Field(default=64 << 30, ge=1, description="Bytes out, all entries and levels together.")
    entry: int = Field(default=16 << 30, ge=1, description="Bytes of one entry.")
    entries: int = Field(default=100_000, ge=1, description="Entries, all levels together.")
    nesting: int = Field(
        default=3,
        ge=1,
        le=16,
        description="Formats inside one another: a tar in a gzip is 2, that sent with a content encoding 3. Beyond it a payload is refused.",
    )
    name: int = Field(default=512, ge=1, le=900, description="Bytes of an entry's path, in UTF-8.")
    memory: int = Field(
        default=64 << 20,
        ge=1 << 20,
        description="Bytes that one decoder may take for its window; up to 1 MiB of tables comes on top.",
    )
    spool: int = Field(
        default=16 << 30,
        ge=1,
        description="Bytes of disk for one payload whose format has to be read from its end (zip).",
    )


class Meter:
    """Counts what came out of one payload. For one event loop and its threads, one caller at a time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._read = 0
        self._made = 0
        self._entries = 0
        self._spooled = 0

    def read(self, size: int) -> None:
        """So many bytes more of the payload itself were read."""
        self._read += size

    def entry(self, path: str) -> "EntryMeter":
        """One entry more. Raises `Refused("payload_limit")`."""
        self._entries += 1
        if self._entries > self.limits.entries:
            raise exceeded("entries", self.limits.entries, path)
        return EntryMeter(self, path)

    def made(self, size: int, path: str) -> None:
        """So many bytes more came out. Raises `Refused("payload_limit")`."""
        self._made += size
        self.announced(0, path)

    def announced(self, size: int, path: str) -> None:
        """Headers state that so many bytes more will come out. Raises what `made` would raise then; counts nothing."""
        made = self._made + size
        if made > self.limits.total:
            raise exceeded("total", self.limits.total, path)
        if made > _ALWAYS and made > self.limits.ratio * self._read:
            raise exceeded("ratio", self.limits.ratio, path)

    def spooled(self, size: int, path: str) -> None:
        """So many bytes more lie on disk; negative when they are gone. Raises `Refused("payload_limit")`."""
        if self._spooled + size > self.limits.spool:
            raise exceeded("spool", self.limits.spool, path)
        self._spooled += size


class EntryMeter:
    """Counts the bytes of one entry, and of the whole."""

    def __init__(self, meter: Meter, path: str) -> None:
        """Made by `Meter.entry`."""
        self._meter = meter
        self._path = path
        self._made = 0

    def made(self, size: int) -> None:
        """So many bytes more came out. Raises `Refused("payload_limit")`."""
        self._made += size
        if self._made > self._meter.limits.entry:
            raise exceeded("entry", self._meter.limits.entry, self._path)
        self._meter.made(size, self._path)


@dataclass(frozen=True, slots=True)
class Part:
    """One stream on its way to the targets: the payload, or an entry of the archive it was."""

    chunks: AsyncIterator[bytes]
    path: str = ""
    """Below the resource's key; empty for the payload itself. Safe as part of a key (handlers/transforms/names.py)."""
    member: str = ""
    """As the archive names it; differs from `path` where that had to be made safe."""
    label: str = ""
    """The name it claims to have: the last segment of `path`, or of the resource's URL. Only for claims and suffixes."""
    content_type: str | None = None
    """The type it claims to have; None where nobody knows."""
    content_encoding: str | None = None
    """As in RFC 9110, 8.4, where the fetcher told."""
    renames: tuple[tuple[str, str], ...] = ()
    """For the payload itself: suffixes of its key that were dropped, and added, in order."""
    depth: int = 0
    """How many formats it was inside of."""
    notes: tuple[str, ...] = ()
    """What a person should know of it: one line each."""
    steps: tuple[str, ...] = ()
    """The transforms that changed it, in order."""
    size: int | None = None
    """Bytes of `chunks`, where that is known before they are read; they raise in place of an end when it is not so."""
    settled: bool = False
    """No other part has, or gets, its path."""

    def changed(
        self,
        step: str,
        chunks: AsyncIterator[bytes],
        *,
        drop: Sequence[str] = (),
        add: str = "",
        content_type: str | None = None,
        size: int | None = None,
    ) -> "Part":
        """The part after `step` made `chunks` of it. Of the suffixes `drop` the one it has goes, then `add` is appended."""
        dropped = next((suffix for suffix in drop if self.label.lower().endswith(suffix)), "")
        kept = len(dropped) if len(dropped) < len(self.label) else 0
        label = self.label[: len(self.label) - kept] + add
        path = self.path[: len(self.path) - kept] + add if self.path else ""
        return replace(
            self,
            chunks=chunks,
            label=label,
            path=path,
            content_type=content_type,
            content_encoding=None,
            renames=self.renames
            if self.path
            else (*self.renames, (self.label[len(self.label) - kept :] if kept else "", add)),
            steps=(*self.steps, step),
            size=size,
            settled=False,
        )

    def noted(self, note: str) -> "Part":
        """The same with one note more."""
        return replace(self, notes=(*self.notes, note))

    def key(self, resource_key: str) -> str:
        """The key of this part, for a resource that lies under `resource_key`."""
        if self.path:
            return f"{resource_key}/{self.path}"
        for dropped, added in self.renames:
            resource_key = resource_key.removesuffix(dropped) + added
        return resource_key


def _as_it_is(part: Part) -> Part:
    return part


@dataclass(frozen=True, slots=True)
class Work:
    """What the transforms of one payload share."""

    meter: Meter
    spool: Path
    """A directory for files without a name; what lies there may take `Limits.spool` bytes."""
    identity: str = ""
    """What sets this payload apart from every other, the same on every redo: bundle and resource."""
    names: set[str] = field(default_factory=set)
    """Of entries, as their archives have them."""
    files: set[str] = field(default_factory=set)
    """Paths that are taken, in the form that no file system tells apart; `folders` are what they lie in."""
    folders: set[str] = field(default_factory=set)
    settle: Callable[[Part], Part] = _as_it_is
    """The part under the path it is stored at. For a step that has to know; everybody else's parts are settled after all steps."""
    turn: Turn = nullcontext
    """What a thread is used in."""

    @property
    def limits(self) -> Limits:
        return self.meter.limits


class Transform(Protocol):
    """One step of a route. Made once, applied to many payloads at the same time: no state of its own."""

    @property
    def name(self) -> str:
        """As the configuration calls it."""
        ...

    @property
    def early(self) -> bool:
        """Whether parts are whole before the payload has been read to its end: what was promised of it is then proven first."""
        ...

    def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        """The parts that `part` becomes; closed by whoever stops early. Raises `Refused`."""
        ...


async def transformed(transforms: Sequence[Transform], part: Part, work: Work) -> AsyncGenerator[Part, None]:
    """`part` after all transforms, each applied to every part that the one before it made."""
    if not transforms:
        yield part
        return
    first, *rest = transforms
    async with aclosing(first.apply(part, work)) as parts:
        async for made in parts:
            async with aclosing(transformed(rest, made, work)) as outs:
                async for out in outs:
                    yield out


def exceeded(limit: str, value: float, entry: str) -> Refused:
    """The refusal of an entry that is beyond a limit."""
    return Refused(
        "payload_limit", f"{limit} (limits.{limit}: {value}) is exceeded at {entry or 'the payload'!a}"
    )
