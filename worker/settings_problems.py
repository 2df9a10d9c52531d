"""How a section that was refused is told to a person: what is wrong, and what to do. Called by worker/settings.py only."""

import difflib
from collections.abc import Iterable
from typing import get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from worker.redaction import is_secret_name, redact


def describe(error: ErrorDetails, field: FieldInfo | None, known: Iterable[str]) -> str:
    """What is wrong and what to do. A value is repeated only when its field is known and holds no secret."""
    key = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return unknown(key, known)
    if error["type"] == "missing":
        return f"is required; add it, or {key}_env with the name of the variable that holds it"
    message, given = error["msg"].removeprefix("Value error, "), error["input"]
    secret = field is None or holds(field, SecretStr) or is_secret_name(str(error["loc"][0]))
    shown = "" if secret or not isinstance(given, str | int | float) else f"{redact(str(given))[:100]!r} "
    subject, should, rest = message.partition(" should ")
    if not should or " " in subject:
        return f"{shown}is refused: {message}" if shown else message
    remedy = "put it in quotes" if error["type"] == "string_type" else "correct it"
    return f"{shown or 'the value '}should {rest}; {remedy}"


def holds(field: FieldInfo, kind: type) -> bool:
    return kind in {field.annotation, *get_args(field.annotation)}


def unknown(key: str, known: Iterable[str]) -> str:
    return f"unknown key; {suggest(key, known)}"


def suggest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
