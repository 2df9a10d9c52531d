"""The canary, and how it is found again whatever it was written as. Shares no code with what hides it."""

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

WORD: Final = "K4nari3nv0gel"
"""In the middle of every secret. Nothing else has it."""
SPICY: Final = f'p/{WORD}+%@"z&=='
"""For passwords and keys that may be anything."""
MILD: Final = f"p/{WORD}+z.=="
"""For what goes into a header as it is: a bearer token."""
PLAIN: Final = f"p{WORD}z-0123456789abcdef"


def found_in(written: bytes, more: Iterable[str] = ()) -> list[str]:
    """Every form of the canary, or of `more` secrets, that is in there."""
    needles = [needle for word in (WORD, *more) for needle in _needles(word)]
    return [needle for needle in needles if needle.encode() in written]


def _needles(word: str) -> list[str]:
    """As it is, in hexadecimal, and what every Base64 of something around it has in common."""
    raw = word.encode()
    cores = []
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw + b"\0" * 3).decode()
        cores.append(text[4 if before else 0 : (before + len(raw)) // 3 * 4])
    return [word, raw.hex(), *cores]


def around(written: bytes, needle: str) -> str:
    """Where it was found, for whoever has to mend it."""
    at = written.index(needle.encode())
    return re.sub(r"[^\x20-\x7e]", ".", written[max(0, at - 150) : at + 60].decode("latin-1"))


def everything_below(folder: Path) -> bytes:
    """The bytes of all files but those that hold payloads: a payload is whatever the store says it is."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    payloads = ("storage", "staging")
    return b"\n".join(
        path.read_bytes() for path in files if not path.relative_to(folder).parts[0].startswith(payloads)
    )
