"""The list of the parts that a large object was split into: `KEY.parts.json`, beside `KEY.part-00001` and its sisters.

Written by size_policy.py, after the last part; read by worker/reading_back.py. It names its parts by what follows `KEY.`: the same
list serves every target, whatever its layout makes of the key, and can name nothing but what lies beside it.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SUFFIX: Final = ".parts.json"
MOST: Final = 250_000
"""Parts that a list may have."""
LIMIT: Final = 32 << 20
"""Bytes of a list that is read: enough for so many."""
_AT_ONCE: Final = 256
"""Parts that are made into text at a time."""

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def part_name(number: int) -> str:
    """What follows the key and a full stop; numbers begin at 1."""
    return f"part-{number:05d}"


class ListedPart(BaseModel):
    """One part: of the object `KEY` it is `KEY.{name}`."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int = Field(ge=1)
    sha256: _Digest


class PartsList(BaseModel):
    """All parts, in order, and what they are together."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    size: int
    sha256: _Digest
    content_type: str | None
    parts: tuple[ListedPart, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.size != sum(part.size for part in self.parts):
            raise ValueError("the sizes of the parts do not make the size of the whole")
        return self

    def encode(self) -> Iterator[bytes]:
        """Its bytes, in pieces. The same list gives the same bytes."""
        before = json.dumps({**self.model_dump(mode="json", exclude={"parts"}), "parts": []})
        text = before.removesuffix("]}")
        for start in range(0, len(self.parts), _AT_ONCE):
            yield text.encode()
            parts = self.parts[start : start + _AT_ONCE]
            text = (", " if start else "") + ", ".join(json.dumps(part.model_dump()) for part in parts)
        yield f"{text}]}}\n".encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises `ValueError` (pydantic's is one) for what is no such list, or names anything but its parts in order."""
        found = cls.model_validate_json(data)
        for number, part in enumerate(found.parts, start=1):
            if part.name != part_name(number):
                raise ValueError(f"part {number} cannot be called {part.name[:100]!a}")
        return found
