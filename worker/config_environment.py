"""What the environment says about settings: variables laid over the file, and references to variables that hold values.

`settings.load_settings` calls this with a `Draft` and the environment it was given; the process's own is never read.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from worker.config_file import DEPTH_LIMIT, FILE_VARIABLE, UNRESOLVED, Draft, KeyPath, parse_text
from worker.redaction import is_secret_name

PREFIX: Final = "TRANSLOAD_"

_ENDINGS: Final = ("_env", "_file", "_secret")
_UNUSABLE: Final = re.compile(r"[\x00\ud800-\udfff]")
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")

# Kubernetes gives every pod the addresses of its namespace's Services; one named `transload` or `transload-…`
# must not stop the worker (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_SERVICE_LINK: Final = re.compile(
    r"TRANSLOAD(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def overlay(draft: Draft, environ: Mapping[str, str]) -> None:
    """Lay `TRANSLOAD_SECTION__KEY` variables over the draft. An empty variable counts as not set."""
    given = {name: text for name, text in sorted(environ.items()) if name.startswith(PREFIX) and text}
    for name, text in given.items():
        # Two underscores are ours: no Service's name makes them.
        if name == FILE_VARIABLE or ("__" not in name and _SERVICE_LINK.fullmatch(name)):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        origin = f"environment {name}"
        if "" in path or len(path) > DEPTH_LIMIT:
            draft.problems.append(f"{origin}: not a key path; write it like {PREFIX}WORKER__CONCURRENCY")
            continue
        try:
            value = _parse_variable(text)
        except yaml.YAMLError:
            draft.problems.append(f"{origin}: not a YAML list or quoted text; write [a, b] or 'text'")
            continue
        values = draft.values
        for depth, key in enumerate(path[:-1], start=1):
            if values.get(key) is None:
                values[key] = {}
                draft.origins[path[:depth]] = origin
            values = values[key]
            if not isinstance(values, dict):
                break  # not a mapping: whoever reads that section says so
        else:
            key = path[-1]
            values[key] = value
            draft.origins[path] = origin
            # The variable replaces the other spellings in the file: X, X_env, X_file and X_secret are one setting.
            for other in _spellings(key):
                if not draft.where((*path[:-1], other)).startswith("environment "):
                    values.pop(other, None)


def _spellings(key: str) -> set[str]:
    """The other ways to give what this key gives. Which of its endings is a part of its name only its section knows."""
    names = {key, *(key.removesuffix(ending) for ending in _ENDINGS)}
    return {f"{name}{ending}" for name in names for ending in ("", *_ENDINGS)} - {key}


def resolve_references(draft: Draft, environ: Mapping[str, str]) -> None:
    """Replace every `X_env: NAME` by `X` with what the variable NAME holds, and refuse text nothing can use."""
    _resolve(draft, draft.values, (), environ)
    _refuse_unusable(draft, draft.values, ())


def _resolve(draft: Draft, values: dict[str, Any], path: KeyPath, environ: Mapping[str, str]) -> None:
    for key, value in list(values.items()):
        here = (*path, key)
        if isinstance(value, dict):
            _resolve(draft, value, here, environ)
            continue
        name = key.removesuffix("_env")
        if name in {key, ""}:
            continue
        del values[key]
        target = (*path, name)
        if name in values:
            draft.add(here, f"given beside {name}; keep one of the two")
            continue
        draft.origins[target] = draft.where(here)
        # Kept in place, so that a failed reference is not also reported as a missing key.
        values[name] = UNRESOLVED
        held = environ.get(value, "") if isinstance(value, str) else ""
        if held:
            values[name] = held
        elif isinstance(value, str) and _VARIABLE.fullmatch(value):
            draft.add(here, f"the environment variable {value} is not set; set it, or give {name} itself")
        else:
            # Someone may have put the secret itself here: it is not repeated.
            hint = "" if is_secret_name(name) else f" or give the value as {name}"
            draft.add(
                here, f"must be the name of a set environment variable, like MY_VALUE; correct it{hint}"
            )


def _refuse_unusable(draft: Draft, values: dict[str, Any], path: KeyPath) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _refuse_unusable(draft, value, (*path, key))
        elif any(_UNUSABLE.search(item) for item in [value, *_items(value)] if isinstance(item, str)):
            draft.add((*path, key), "holds a NUL or text that is not Unicode; remove it")
            values[key] = UNRESOLVED


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _parse_variable(text: str) -> Any:
    # Everything else stays text: the field's own type decides, and a key of digits remains one.
    if text[0] in "[\"'":
        return parse_text(text)
    return None if text in {"null", "~"} else text
