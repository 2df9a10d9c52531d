"""Values that settings refer to: `X_file` names a file that holds X, `X_secret` a secret in AWS Secrets Manager.

worker/settings.py calls this once, after worker/config_environment.py has resolved every `X_env`. A section's own option may be
called so (`client_secret`, `private_key_file`): where it is one, it is no reference.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from worker.config_file import UNRESOLVED, Draft, KeyPath
from worker.settings_json_schema import ADAPTED, NAMED, PLAIN, chooser_of
from worker.settings_places import RouteSettings
from worker.settings_secrets import SecretsSettings, Unreadable, Version

FILE_LIMIT: Final = 64 << 10
"""Bytes of a file with a value; as many as Secrets Manager keeps in one secret."""

_SECTION: Final = "secrets"
_REFERENCE: Final = re.compile(
    r"(?P<id>[A-Za-z0-9/_+=.@!:-]{1,2048})(#(?P<key>[^#]*))?(#(?P<stage>[^#\s]+))?"
)
_NUL: Final = "\0"

Fetch = Callable[[SecretsSettings, Iterable[Version]], Mapping[Version, str | Unreadable]]


@dataclass(frozen=True, slots=True)
class _Secret:
    """One `X_secret`."""

    given: KeyPath
    """Where it stands."""
    path: KeyPath
    """X."""
    version: Version
    key: str
    """Of the secret's JSON; empty where its whole text is meant."""


def resolve(draft: Draft, absolute: Callable[[Path], Path], *, fetching: bool) -> tuple[KeyPath, ...]:
    """Replace every `X_file` and `X_secret` by X. Returns the X that come from Secrets Manager.

    `absolute` roots a path that settings give. Without `fetching` nobody is asked, and X stays unresolved without a problem.
    """
    wanted: list[_Secret] = []
    for model, values, path in list(_sections(draft)):
        _resolve_within(draft, _fields(model), values, path, absolute, wanted)
    if wanted and fetching:
        _put(draft, wanted, _fetched(draft, [secret.version for secret in wanted]))
    return tuple(secret.path for secret in wanted)


def _sections(draft: Draft) -> Iterator[tuple[list[type[BaseModel]], dict[str, Any], KeyPath]]:
    """Every section that is a mapping, with the models that say what its keys are."""
    for key, values in draft.values.items():
        if not isinstance(values, dict):
            continue
        if key in NAMED or key == "routes":
            for name, place in values.items():
                if isinstance(place, dict):
                    yield [RouteSettings] if key == "routes" else _adapted(key, place), place, (key, name)
        elif key in ADAPTED:
            yield _adapted(key, values), values, (key,)
        elif key in PLAIN:
            yield [PLAIN[key]], values, (key,)


def _adapted(section: str, values: Mapping[str, Any]) -> list[type[BaseModel]]:
    model, registry = ADAPTED[section]
    chooser = chooser_of(model)
    kind = values.get(chooser, model.model_fields[chooser].default)
    try:
        return [model, registry.load(kind).Options]
    except Exception:  # noqa: BLE001 - whoever builds the section says what is wrong with its adapter
        return [model]


def _fields(models: Iterable[type[BaseModel]]) -> dict[str, FieldInfo]:
    return {name: field for model in models for name, field in model.model_fields.items()}


def _resolve_within(
    draft: Draft,
    fields: Mapping[str, FieldInfo] | None,
    values: dict[str, Any],
    path: KeyPath,
    absolute: Callable[[Path], Path],
    wanted: list[_Secret],
) -> None:
    """`fields` are what the mapping may have; None where every key of it is the user's, and a secret."""
    for key, value in list(values.items()):
        if isinstance(value, dict):
            field = (fields or {}).get(key)
            for inner, below, where in _nested(field, value, (*path, key)):
                _resolve_within(draft, inner, below, where, absolute, wanted)
            continue
        name, kind = _split(key)
        if not kind or (fields is not None and not _refers(name, key, fields)):
            continue
        given, target = (*path, key), (*path, name)
        del values[key]
        if name in values:
            draft.add(given, f"given beside {name}; keep one of the two")
            continue
        draft.origins[target] = draft.where(given)
        # Kept in place, so that a failed reference is not also reported as a missing key.
        values[name] = UNRESOLVED
        if value is UNRESOLVED:
            continue
        if kind == "file":
            values[name] = _held(draft, given, value, absolute)
        elif path[:1] == (_SECTION,):
            draft.add(
                given, "is needed to reach Secrets Manager, and cannot come from there; use _env or _file"
            )
        elif (found := _parsed(draft, given, target, value)) is not None:
            wanted.append(found)


def _nested(
    field: FieldInfo | None, value: dict[str, Any], path: KeyPath
) -> Iterator[tuple[Mapping[str, FieldInfo] | None, dict[str, Any], KeyPath]]:
    """The mappings inside a value, as its field says."""
    for kind in () if field is None else _kinds(field.annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind.model_fields, value, path
        elif get_origin(kind) in {Mapping, dict} and len(get_args(kind)) == 2:
            inner = get_args(kind)[1]
            if inner is SecretStr:
                yield None, value, path
            elif isinstance(inner, type) and issubclass(inner, BaseModel):
                for name, each in value.items():
                    if isinstance(each, dict):
                        yield inner.model_fields, each, (*path, name)


def _kinds(annotation: Any) -> Iterator[Any]:
    """What a field may hold: each member of a union, without `Annotated` around it."""
    if hasattr(annotation, "__metadata__"):
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in {Mapping, dict, list, tuple} or not get_args(annotation):
        yield annotation
    else:
        for member in get_args(annotation):
            yield from _kinds(member)


def _split(key: str) -> tuple[str, str]:
    """`password_file` is `password` and `file`; of what is no reference the second is empty."""
    for kind in ("file", "secret"):
        name = key.removesuffix(f"_{kind}")
        if name not in {key, ""}:
            return name, kind
    return key, ""


def _refers(name: str, key: str, fields: Mapping[str, FieldInfo]) -> bool:
    return key not in fields and name in fields and Path not in set(_kinds(fields[name].annotation))


def _held(draft: Draft, given: KeyPath, value: Any, absolute: Callable[[Path], Path]) -> Any:
    """What the file holds, without the newline at its end."""
    if not isinstance(value, str) or not value or _NUL in value:
        draft.add(given, "must be the path of a file; write it as text")
        return UNRESOLVED
    path = absolute(Path(value))
    try:
        # Not to wait for a FIFO's writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            raw = os.read(descriptor, FILE_LIMIT + 1) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as exc:
        draft.add(given, f"{path} cannot be read ({exc.strerror}); correct the path, or the file's mode")
        return UNRESOLVED
    if not stat.S_ISREG(status.st_mode):
        draft.add(given, f"{path} is no file; name a file that holds the value")
    elif status.st_mode & stat.S_IWOTH:
        draft.add(given, f"{path} can be written by everybody; chmod 0400 {path}")
    elif not raw.strip():
        draft.add(given, f"{path} is empty; write the value into it")
    elif len(raw) > FILE_LIMIT:
        draft.add(given, f"{path} is larger than {FILE_LIMIT} bytes; is it the right file?")
    else:
        try:
            return _usable(draft, given, re.sub(r"\r?\n\Z", "", raw.decode("utf-8-sig")))
        except UnicodeDecodeError:
            draft.add(given, f"{path} holds no UTF-8 text; is it the right file?")
    return UNRESOLVED


def _parsed(draft: Draft, given: KeyPath, target: KeyPath, value: Any) -> _Secret | None:
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        # Someone may have put the secret itself here: it is not repeated.
        draft.add(
            given, "must be the id or ARN of a secret in AWS Secrets Manager: ID, ID#KEY or ID#KEY#STAGE"
        )
        return None
    return _Secret(given, target, Version(found["id"], found["stage"] or ""), found["key"] or "")


def _fetched(draft: Draft, versions: Iterable[Version]) -> Mapping[Version, str | Unreadable]:
    try:
        settings = SecretsSettings.model_validate(draft.mapping((_SECTION,)))
    except ValidationError:
        # Whoever builds the section says what is wrong with it.
        return {}
    distinct = list(dict.fromkeys(versions))
    try:
        # Its SDK is of an extra.
        fetch: Fetch = import_module("worker.secrets_manager").fetch
    except ModuleNotFoundError as exc:
        missing = Unreadable(
            f"needs the package {exc.name!r}; install it with: pip install 'transload[secrets]'"
        )
        return dict.fromkeys(distinct, missing)
    return fetch(settings, distinct)


def _put(draft: Draft, wanted: Iterable[_Secret], fetched: Mapping[Version, str | Unreadable]) -> None:
    for secret in wanted:
        held = fetched.get(secret.version)
        if isinstance(held, Unreadable):
            draft.add(secret.given, str(held))
        elif held is not None:
            value = _member(draft, secret, held) if secret.key else held
            values = draft.values
            for key in secret.path[:-1]:
                values = values[key]
            values[secret.path[-1]] = value if value is UNRESOLVED else _usable(draft, secret.given, value)


def _member(draft: Draft, secret: _Secret, held: str) -> Any:
    """One value of a secret that is a JSON object."""
    try:
        members = json.loads(held)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        draft.add(
            secret.given,
            f"the secret is no JSON object, so it has no key {secret.key!a}; leave out #{secret.key}",
        )
        return UNRESOLVED
    if secret.key not in members:
        draft.add(
            secret.given, f"the secret's JSON has no key {secret.key!a}; correct what stands after the #"
        )
        return UNRESOLVED
    value = members[secret.key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        draft.add(
            secret.given,
            f"the secret's key {secret.key!a} holds neither text nor a number; name one that does",
        )
        return UNRESOLVED
    return str(value)


def _usable(draft: Draft, given: KeyPath, value: str) -> Any:
    if not value or _NUL in value:
        draft.add(given, "refers to a value that is empty, or holds a NUL; correct the value")
        return UNRESOLVED
    return value
