"""Reading another tool's configuration so that nothing in it is overlooked, and holding what became of it.

Used by worker/config_import.py and by worker/config_import_{vcon,medallion,fluxforge}.py, one for each foreign shape.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from worker.config_file import Draft, KeyPath
from worker.redaction import is_secret_name, one_line, redact

_NAME_LIMIT: Final = 63


@dataclass(slots=True)
class Entry:
    """One section of ours under its name, with what has to be said about it."""

    values: dict[str, Any] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Imported:
    """Our settings, as far as the other file speaks of them."""

    shape: str
    """Whose file it was, for the reader."""
    staging: dict[str, Entry] = field(default_factory=dict)
    targets: dict[str, Entry] = field(default_factory=dict)
    routes: dict[str, Entry] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)


class Source:
    """One mapping of the file. Every key of it is asked for; `finish` calls those that were not unknown."""

    def __init__(self, draft: Draft, path: KeyPath = ()) -> None:
        """The mapping at `path`; an empty one where there is none."""
        self.draft = draft
        self.path = path
        self.values = draft.mapping(path)
        self._asked: set[str] = set()
        self._inner: dict[str, Source] = {}

    def has(self, key: str) -> bool:
        """Whether it is there and not null."""
        return self.values.get(key) is not None

    def where(self, key: str) -> str:
        """`config.yml:7 storages.main.module`, for comments."""
        path = (*self.path, key)
        return f"{self.draft.where(path).rpartition('/')[2]} {'.'.join(path)}"

    def refuse(self, key: str, what: str) -> None:
        """Note what is wrong with a key."""
        self.draft.add((*self.path, key), what)

    def text(self, key: str) -> str | None:
        """A text; None where there is none, and where it is empty. Numbers count as their text."""
        value = self._take(key)
        if isinstance(value, dict | list | bool):
            self.refuse(key, "must be text")
            return None
        return None if value in {None, ""} else str(value)

    def number(self, key: str) -> float | None:
        """A number."""
        value = self._take(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            self.refuse(key, "must be a number")
            return None
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """`true`, `false`, 1 or 0."""
        value = self._take(key)
        if value not in (None, True, False) or isinstance(value, float):
            self.refuse(key, "must be true or false, or 1 or 0")
            return default
        return default if value is None else bool(value)

    def names(self, key: str) -> list[str]:
        """A list of texts; one text may stand alone."""
        value = self._take(key)
        value = [value] if isinstance(value, str) else value or []
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self.refuse(key, "must be a list of names")
            return []
        return value

    def anything(self, key: str) -> Any:
        """Whatever is there."""
        return self._take(key)

    def section(self, key: str) -> "Source":
        """The mapping below a key, the same one each time; `finish` looks into it, too."""
        self._take(key)
        if key not in self._inner:
            self._inner[key] = Source(self.draft, (*self.path, key))
        return self._inner[key]

    def finish(self) -> None:
        """Note every key that nobody asked for, here and below."""
        for key in self.values:
            if key not in self._asked:
                self.refuse(key, f"unknown to the importer; {_suggest(key, self._asked)}")
        for inner in self._inner.values():
            inner.finish()

    def _take(self, key: str) -> Any:
        self._asked.add(key)
        return self.values.get(key)


def copy_setting(source: Source, key: str, entry: Entry, ours: str, default: str | None = None) -> None:
    """Take over `key`, or the `key_env` that names the variable that holds it, as our key `ours`."""
    variable = source.text(f"{key}_env")
    value = source.text(key)
    if variable is not None:
        entry.values[f"{ours}_env"] = variable
    elif is_secret("", value):
        source.refuse(key, f"holds a password; put it into a variable and name that as {key}_env")
    elif value is not None or default is not None:
        entry.values[ours] = default if value is None else value


def copy_secret(source: Source, key: str, entry: Entry, ours: str, owner: str) -> None:
    """As `copy_setting`, but a value is never copied: a variable has to hold it, whose name is made up here."""
    variable = source.text(f"{key}_env")
    if variable is None and source.text(key) is not None:
        variable = variable_for(owner, ours)
        entry.comments.append(secret_comment(variable, source.where(key)))
    if variable is not None:
        entry.values[f"{ours}_env"] = variable


def is_secret(key: str, value: object) -> bool:
    """Whether a value of that key is nobody's business: by the key's name, or because it holds a password or signature."""
    return isinstance(value, str) and value != "" and (is_secret_name(key) or redact(value) != value)


def variable_for(*words: str) -> str:
    """`TARGET_LAKE_TOKEN`: a variable's name. Not `TRANSLOAD_…`: that would be a setting by itself."""
    return "_".join(["TARGET", *(re.sub("[^A-Z0-9]+", "_", word.upper()) for word in words)])


def secret_comment(variable: str, where: str) -> str:
    """What to do about a secret that is not copied."""
    return f"Secrets are not copied: put the value of {where} into the environment variable {variable}."


def our_name(name: str, taken: Iterable[str]) -> str:
    """`name` as one of ours: lower case, digits, `-` and `_`, and not among those that are taken."""
    base = re.sub("[^a-z0-9_-]+", "-", name.lower()).strip("-_")[: _NAME_LIMIT - 4] or "imported"
    candidates = [base, *(f"{base}-{number}" for number in range(2, 1000))]
    return next(candidate for candidate in candidates if candidate not in taken)


def shown(names: Iterable[str]) -> str:
    """Names for a comment: on one line, whatever they hold."""
    return one_line(", ".join(names))


def _suggest(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are: {', '.join(names) or 'none'}. Leave out what does not concern storage"
