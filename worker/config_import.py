"""`transload config import`: another tool's storage configuration as one of ours, for a person to read and keep.

Called by worker/cli_config.py. docs/adr/0014-config-import.md says why the other files are not loaded as such.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import yaml

from worker.config_file import SettingsError, read_file
from worker.config_import_fluxforge import from_fluxforge
from worker.config_import_medallion import from_medallion
from worker.config_import_source import Entry, Imported, Source
from worker.config_import_vcon import from_vcon
from worker.redaction import one_line

_WIDTH: Final = 120

_SHAPES: Final[Mapping[str, tuple[frozenset[str], Callable[[Source], Imported]]]] = MappingProxyType(
    {
        "vcon": (frozenset({"storages", "chains"}), from_vcon),
        "medallion": (frozenset({"platform"}), from_medallion),
        "fluxforge": (frozenset({"storage", "ingestion", "etl"}), from_fluxforge),
    }
)
"""The shapes, told by their keys at the top."""


def convert(file: Path) -> str:
    """The settings file, with comments, that says what `file` says.

    Raises `SettingsError` with everything that is wrong with it, unknown keys included, each with its line.
    """
    draft = read_file(file)
    found = [read for keys, read in _SHAPES.values() if keys & set(draft.values)]
    if len(found) != 1:
        known = "; ".join(f"{' or '.join(sorted(keys))} ({name})" for name, (keys, _) in _SHAPES.items())
        what = "several shapes at once" if found else "no shape that can be imported"
        raise SettingsError([*draft.problems, f"{file}: {what}; at the top stands {known}: give it one"])
    source = Source(draft)
    imported = found[0](source)
    source.finish()
    if draft.problems:
        raise SettingsError(draft.problems)
    return "\n".join(_lines(imported, file)) + "\n"


def _lines(imported: Imported, file: Path) -> Iterator[str]:
    yield from _comment(f"Made by `transload config import` from {file.name}, {imported.shape}.")
    for comment in imported.comments:
        yield from _comment(comment)
    for key in ("staging", "targets", "routes"):
        entries: dict[str, Entry] = getattr(imported, key)
        if entries:
            yield f"{key}:"
        for name, entry in entries.items():
            yield f"  {name}:"
            for comment in entry.comments:
                yield from _comment(comment, "    ")
            text = yaml.safe_dump(entry.values, sort_keys=False, allow_unicode=True, width=10_000)
            yield textwrap.indent(text.rstrip("\n"), "    ")


def _comment(text: str, indent: str = "") -> list[str]:
    # A comment that left its line would be a setting.
    return textwrap.wrap(
        one_line(text),
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )
