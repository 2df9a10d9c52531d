"""The fenced blocks of README and docs, and what the pages say about running them.

A comment right before a block says why it is not run here: `<!-- not run: why -->`, or which test runs it: `<!-- run by test_x -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(
    r"(?:^[ \t]*<!-- (?P<remark>(?:not run: |run by )[^\n]*?) -->\n\n?)?^(?P<indent>[ \t]*)```(?P<language>[\w-]*)[^\n]*\n"
    r"(?P<text>.*?)^[ \t]*```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    remark: str = ""
    """What the comment before it says."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the tests of this room run it."""
        return not self.remark


def blocks_of(page: Path) -> Iterator[Block]:
    """All fenced blocks, in order."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        indent = match["indent"]
        yield Block(
            page=page.relative_to(ROOT).as_posix(),
            line=text.count("\n", 0, match.start("text")),
            language=match["language"],
            text="".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True)),
            remark=match["remark"] or "",
        )


BLOCKS = tuple(block for page in PAGES for block in blocks_of(page))


def of_language(*languages: str) -> list[Block]:
    """Those that are run here."""
    return [block for block in BLOCKS if block.language in languages and block.is_run]
