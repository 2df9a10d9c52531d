"""Where settings come from: one YAML file. What lies over it is in `config_environment`.

`settings.load_settings` calls this. It yields a `Draft`: plain values, where each was given, and what is wrong so far.
What the keys mean is none of its business. YAML is read as a configuration language only: no aliases, no tags beyond
the plain types, no duplicate keys (https://yaml.org/spec/1.1/ has all three).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from worker.redaction import one_line

FILE_VARIABLE: Final = "TRANSLOAD_CONFIG"
FILE_LIMIT: Final = 1 << 20
"""Largest configuration file, in bytes."""
DEPTH_LIMIT: Final = 20
NODES_LIMIT: Final = 20_000
"""Keys and values in a file. Every one may be a problem, and each problem is compared with those before it."""
NUMBER_LIMIT: Final = 100
"""Characters of a number: YAML has them in base 60 and 16 too, where Python itself sets no limit (`1:1:1:…`)."""

KeyPath = tuple[str, ...]

_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final = frozenset({f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null")})
_NUMBERS: Final = frozenset({f"{_TAG}int", f"{_TAG}float"})


class _Unresolved:
    """Stands for a value that was already reported, so that nothing more about it is."""


UNRESOLVED: Final = _Unresolved()


class SettingsError(Exception):
    """Everything that is wrong with the settings, one line a problem: `file:line: key.path: what is wrong; what to do`."""

    def __init__(self, problems: Iterable[str]) -> None:
        """`problems` is not empty."""
        self.problems = tuple(one_line(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


@dataclass(slots=True)
class Draft:
    """Settings on their way to being checked."""

    source: str
    """What a problem is attributed to when no better place is known: the file's name, or `environment`."""
    base: Path
    """The absolute folder that relative paths start from."""
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """Where the key, or the nearest mapping around it, was given."""
        known = (self.origins.get(path[:length]) for length in range(len(path), 0, -1))
        return next((origin for origin in known if origin), self.source)

    def add(self, path: KeyPath, what: str) -> None:
        """Note one problem; the reader gets all of them at once."""
        key = f"{'.'.join(path)}: " if path else ""
        line = f"{self.where(path)}: {key}{what}"
        if line not in self.problems:
            self.problems.append(line)

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        """A copy of the mapping at `path`; empty when it is missing or null, and with a problem noted when it is none."""
        values: Any = self.values
        for depth, key in enumerate(path, start=1):
            values = values.get(key)
            if values is None:
                return {}
            if not isinstance(values, dict):
                self.add(path[:depth], "must be a mapping of keys to values; put its keys below it, indented")
                return {}
        return dict(values)


def read_file(file: Path) -> Draft:
    """The file's values, each with the line it stands on.

    Raises `SettingsError` when it cannot be read as one YAML mapping; duplicate keys are noted in the draft.
    """
    draft = Draft(source=str(file), base=file.absolute().parent)
    try:
        with file.open("rb") as stream:
            raw = stream.read(FILE_LIMIT + 1)
    except OSError as exc:
        raise SettingsError(
            [
                f"{file}: cannot be read ({exc.strerror}); name an existing file with --config or {FILE_VARIABLE}"
            ]
        ) from exc
    if len(raw) > FILE_LIMIT:
        raise SettingsError([f"{file}: larger than {FILE_LIMIT} bytes; is it a configuration file at all?"])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise SettingsError([f"{file}:{line}: not UTF-8 (byte {exc.start}); save it as UTF-8"]) from exc
    try:
        node = _compose(text)
        if node is None:
            raise SettingsError(
                [f"{file}: empty; give at least one key, or leave the file out to run on the defaults"]
            )
        if not isinstance(node, yaml.MappingNode):
            raise SettingsError(
                [f"{file}: not a mapping; write `key: value` lines, as in docs/configuration.md"]
            )
        draft.values = _plain_mapping(node, (), draft)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        raise SettingsError([f"{file}:{line}: {_explain(exc)}"]) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise SettingsError([f"{file}:{line}: holds a control character; remove it"]) from exc
    return draft


class _Refused(yaml.MarkedYAMLError):
    """YAML, but more than a configuration needs. Its `problem` says what to write instead."""


class _Loader(yaml.SafeLoader):
    """Refuses aliases while composing (an alias bomb never exists in memory), and bounds nesting and number of nodes."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it bare
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None,
                None,
                "anchors (&) and aliases (*) are not accepted; write the value out",
                event.start_mark,
            )
        if self.depth >= DEPTH_LIMIT:
            raise _Refused(
                problem=f"nested deeper than {DEPTH_LIMIT} levels; no setting is",
                problem_mark=event.start_mark,
            )
        self.nodes += 1
        if self.nodes > NODES_LIMIT:
            raise _Refused(
                problem=f"more than {NODES_LIMIT} keys and values; is it a configuration file at all?",
                problem_mark=event.start_mark,
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError) as exc:
        # The scanner makes a character of whatever number is behind a `\U`.
        raise _Refused(
            problem="an escape (\\U…) that is no character; correct it", problem_mark=loader.get_mark()
        ) from exc
    finally:
        loader.dispose()


def parse_text(text: str) -> Any:
    """What one YAML value without mappings around it holds. Raises `yaml.YAMLError`."""
    return _plain(_compose(text), (), Draft(source="", base=Path()))


def _explain(exc: yaml.MarkedYAMLError) -> str:
    problem = exc.problem or "not YAML"
    if isinstance(exc, _Refused):
        return problem
    if "'\\t'" in problem:
        return "indented with a tab; use spaces"
    if "single document" in (exc.context or ""):
        return "a second YAML document begins here; keep one"
    if problem.endswith(
        ("not accepted; write the value out", "no setting is", "use plain values", "for a number")
    ):
        return problem
    return f"not YAML ({problem}); check quotes, colons and indentation around this line"


def _plain(node: yaml.Node | None, path: KeyPath, draft: Draft) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, path, draft)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_plain(item, path, draft) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}timestamp":
        return node.value
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        try:
            if node.tag in _NUMBERS and len(node.value) > NUMBER_LIMIT:
                raise ValueError("too long")
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, KeyError, OverflowError) as exc:
            raise _Refused(
                problem="a number that is too large or malformed; correct it or put it in quotes",
                problem_mark=node.start_mark,
            ) from exc
    mark = node.start_mark if node else None
    raise _Refused(problem="YAML tags (!…) are not accepted; use plain values", problem_mark=mark)


def _plain_mapping(node: yaml.MappingNode, path: KeyPath, draft: Draft) -> dict[str, Any]:
    if node.tag != f"{_TAG}map":
        raise _Refused(
            problem="YAML tags (!…) are not accepted; use plain values", problem_mark=node.start_mark
        )
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
            shown = f" (put {key_node.value} in quotes)" if isinstance(key_node, yaml.ScalarNode) else ""
            draft.problems.append(
                f"{draft.source}:{line}: {'.'.join(path) or 'top level'}: a key must be text{shown}"
            )
            continue
        key: str = key_node.value
        here = (*path, key)
        if key in values:
            draft.problems.append(
                f"{draft.source}:{line}: {'.'.join(here)}: given twice (first at {draft.where(here)}); keep one"
            )
            continue
        draft.origins[here] = f"{draft.source}:{line}"
        values[key] = _plain(value_node, here, draft)
    return values
