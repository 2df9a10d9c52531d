"""Takes one layer of compression off a payload: what all one-to-one decoders have in common.

`Unpack` is the transform of a coding (coding.py): gunzip.py (`Gunzip`), bunzip2.py (`Bunzip2`), unxz.py (`Unxz`), unzstd.py
(`Unzstd`). content_encoding.py (`Decode`) uses the codings by what HTTP calls them. members.py is the machine inside.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from handlers.transforms.base import Part, Work, exceeded
from handlers.transforms.coding import TRUNCATED, Coding, corrupt
from handlers.transforms.content_types import content_type_of
from handlers.transforms.members import decoded
from handlers.transforms.peek import peek
from handlers.transforms.registry import NoOptions

_ANY = frozenset({"", "application/octet-stream", "binary/octet-stream"})
"""Content types that say nothing."""


class Unpack:
    """The transform of one coding: takes off one layer of it."""

    Options = NoOptions
    early = False

    def __init__(self, name: str, coding: Coding) -> None:
        """`name` is the configuration's, of the step."""
        self._name = name
        self._coding = coding

    @property
    def name(self) -> str:
        return self._name

    @property
    def look(self) -> int:
        """Bytes that `begins` wants to see."""
        return self._coding.look

    def begins(self, head: bytes) -> bool:
        """Whether a payload with these first bytes would be decoded."""
        return self._coding.begins(head)

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        coding = self._coding
        head, chunks = await peek(part.chunks, coding.look)
        part = replace(part, chunks=chunks)
        if coding.begins(head):
            check_nesting(part, work)
            async with aclosing(decoded(coding, chunks, part.path, work)) as decoding:
                yield unpacked(self._name, coding, part, decoding)
            return
        claimed = claim(part, coding)
        if claimed and coding.cut(head):
            raise corrupt(coding, TRUNCATED, part.path)
        is_something = "something else" if head else "empty"
        yield part.noted(f"{claimed} claims {coding.name}, but it is {is_something}") if claimed else part


def check_nesting(part: Part, work: Work) -> None:
    """Raise `Refused("payload_limit")` where a part within this one would be beyond `Limits.nesting`."""
    if part.depth >= work.limits.nesting:
        raise exceeded("nesting", work.limits.nesting, part.path)


def unpacked(step: str, coding: Coding, part: Part, chunks: AsyncIterator[bytes]) -> Part:
    """`part` with one layer of `coding` taken off, which leaves `chunks`: one level deeper, without the suffix.

    A content type that claimed the coding, or nothing, is replaced by what the name stands for.
    """
    suffix = suffix_of(part.label, coding)
    drop, add = ((suffix,), coding.suffixes[suffix]) if suffix else ((), "")
    content_type = part.content_type
    if media_type(content_type) in coding.types | _ANY:
        content_type = content_type_of(part.label[: len(part.label) - len(suffix)] + add)
    made = part.changed(step, chunks, drop=drop, add=add, content_type=content_type)
    return replace(made, depth=part.depth + 1)


def claim(part: Part, coding: Coding) -> str:
    """What of its name and type says that the part is of this coding; empty where nothing does."""
    if media_type(part.content_type) in coding.types:
        return f"content type {part.content_type!a}"
    if suffix_of(part.label, coding):
        return f"name {part.label[-200:]!a}"
    return ""


def suffix_of(label: str, coding: Coding) -> str:
    """The suffix of the coding that a name ends in; empty when it has none, or is nothing else."""
    found = (suffix for suffix in coding.suffixes if label.lower().endswith(suffix))
    return next((suffix for suffix in found if len(label) > len(suffix)), "")


def media_type(content_type: str | None) -> str:
    """Without parameters, in lower case; empty for None."""
    return (content_type or "").partition(";")[0].strip().lower()
