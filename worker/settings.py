"""How a process gets its settings. The command line calls `load_settings`, once; nobody else reads the environment.

Later wins: defaults, then one YAML file, then `TRANSLOAD_…` variables (`TRANSLOAD_WORKER__CONCURRENCY=8`), then the
arguments. Any key `X_env` names the variable that holds X. Relative paths start from the file's folder, or from the
working directory where there is no file. docs/configuration.md is the reference.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from backends.base import BackendOptions
from backends.errors import MissingExtra
from backends.registry import BACKENDS, BrokenAdapter, Registry
from handlers.layouts import may_meet
from worker.config_environment import overlay, resolve_references
from worker.config_file import (
    FILE_VARIABLE,
    UNRESOLVED,
    Draft,
    KeyPath,
    SettingsError,
    read_file,
)
from worker.provision.settings import ProvisionSettings
from worker.publishers.base import PublisherOptions
from worker.publishers.registry import PUBLISHERS
from worker.queues.base import QueueOptions
from worker.queues.registry import QUEUES
from worker.redaction import is_secret_name, redact
from worker.seed_environment import read_seed_environment
from worker.settings_reference import json_schema
from worker.settings_schema import (
    HOME_DEFAULTS,
    AdminSettings,
    AuditSettings,
    CloudWatchSettings,
    HousekeepingSettings,
    LedgerSettings,
    LogSettings,
    PublisherSettings,
    QueueSettings,
    RelaySettings,
    RouteSettings,
    Settings,
    StagingSettings,
    TargetSettings,
    WorkerSettings,
    sqlite_url,
)

__all__ = ["Settings", "SettingsError", "json_schema", "load_settings"]

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_settings(*, file: Path | None, home: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings out of `file` (or the one `TRANSLOAD_CONFIG` names), `environ` and `home`, checked as a whole.

    Raises `SettingsError` with every problem found, each naming its file and line, or its variable.
    """
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    draft = read_file(file) if file else read_seed_environment(environ)
    overlay(draft, environ)
    resolve_references(draft, environ)
    settings = _Builder(draft, _home(draft, home, environ), environ).build()
    if draft.problems or settings is None:
        raise SettingsError(draft.problems)
    return settings


def _home(draft: Draft, argument: Path | None, environ: Mapping[str, str]) -> Path:
    if argument is not None:
        return _absolute(argument, Path.cwd(), environ)
    given = draft.values.get("home")
    if given is None:
        return _absolute(Path("~/.transload"), Path.cwd(), environ)
    if not isinstance(given, str) or not given:
        if given is not UNRESOLVED:
            draft.add(("home",), "must be the path of a directory; write it as text")
        return Path.cwd()
    # A variable is set by whoever starts the process, so it starts from where they stand.
    from_shell = draft.where(("home",)).startswith("environment ")
    return _absolute(Path(given), Path.cwd() if from_shell else draft.base, environ)


def _absolute(path: Path, base: Path, environ: Mapping[str, str]) -> Path:
    if path.parts and path.parts[0] == "~":
        path = Path(environ.get("HOME") or Path.home(), *path.parts[1:])
    return Path(os.path.normpath(base / path))


class _Builder:
    """Turns a draft into settings, section by section, noting problems instead of stopping at the first."""

    def __init__(self, draft: Draft, home: Path, environ: Mapping[str, str]) -> None:
        self._draft = draft
        self._home = home
        self._environ = environ

    def build(self) -> Settings | None:
        for key in self._draft.values:
            if key not in Settings.model_fields:
                self._draft.add((key,), _unknown(key, Settings.model_fields))
        queue = self._adapter(QueueSettings, QUEUES, QueueOptions, ("queue",))
        publisher = self._adapter(PublisherSettings, PUBLISHERS, PublisherOptions, ("publisher",))
        staging = self._places(StagingSettings, "staging")
        targets = self._places(TargetSettings, "targets")
        _check_overlaps(self._draft, staging, targets)
        worker = self._plain(WorkerSettings, "worker")
        relay = self._plain(RelaySettings, "relay")
        housekeeping = self._plain(HousekeepingSettings, "housekeeping")
        admin = self._plain(AdminSettings, "admin")
        logs = self._plain(LogSettings, "logs")
        audit = self._plain(AuditSettings, "audit")
        cloudwatch = self._plain(CloudWatchSettings, "cloudwatch")
        provision = self._plain(ProvisionSettings, "provision")
        ledger, routes = self._ledger(), self._routes()
        _check_layouts(self._draft, targets, routes)
        if not (queue and publisher and worker and relay and housekeeping and admin and logs and ledger):
            return None
        if not (audit and cloudwatch):
            return None
        if provision is None:
            return None
        return Settings(
            home=self._home,
            queue=queue,
            staging=staging,
            targets=targets,
            routes=routes,
            ledger=ledger,
            publisher=publisher,
            worker=worker,
            relay=relay,
            housekeeping=housekeeping,
            admin=admin,
            logs=logs,
            audit=audit,
            cloudwatch=cloudwatch,
            provision=provision.rooted(partial(_absolute, base=self._draft.base, environ=self._environ)),
        )

    def _plain(self, model: type[ModelT], key: str, **defaults: str) -> ModelT | None:
        values = self._draft.mapping((key,))
        return self._validate(model, {**defaults, **values}, (key,), model.model_fields)

    def _ledger(self) -> LedgerSettings | None:
        ledger = self._plain(LedgerSettings, "ledger", url=sqlite_url(self._home / "ledger.db"))
        if ledger is None or ledger.path is None:
            return ledger
        path = _absolute(ledger.path, self._draft.base, self._environ)
        return ledger.model_copy(update={"url": sqlite_url(path)})

    def _routes(self) -> dict[str, RouteSettings]:
        """The routes in the order of the file; without any, one that takes every message to every target."""
        known = tuple(self._draft.mapping(("targets",))) or ("main",)
        names = self._draft.mapping(("routes",)) or {"default": None}
        routes = {name: self._route(name, known) for name in names}
        return {name: route for name, route in routes.items() if route is not None}

    def _route(self, name: str, known: tuple[str, ...]) -> RouteSettings | None:
        path = ("routes", name)
        values = {**self._draft.mapping(path), "name": name}
        route = self._validate(RouteSettings, values, path, set(RouteSettings.model_fields) - {"name"})
        if route is None:
            return None
        for key in ("targets", "best_effort"):
            names: tuple[str, ...] = getattr(route, key)
            for target in names:
                if target not in known:
                    self._draft.add((*path, key), f"no target is named {target!r}; {_suggest(target, known)}")
            if twice := {target for target in names if names.count(target) > 1}:
                self._draft.add((*path, key), f"{', '.join(sorted(twice))} is named twice; name it once")
        if both := set(route.targets) & set(route.best_effort):
            self._draft.add(
                (*path, "best_effort"),
                f"also among the route's targets ({', '.join(sorted(both))}); a bundle waits for a target or does not: keep one",
            )
        targets = route.targets or tuple(name for name in known if name not in route.best_effort)
        if not targets:
            self._draft.add(
                path, "all targets are best effort; a bundle has to wait for one: name it in targets"
            )
        return route.model_copy(update={"targets": targets})

    def _places(self, model: type[ModelT], key: str) -> dict[str, ModelT]:
        names = self._draft.mapping((key,)) or {"main": None}
        places = {name: self._adapter(model, BACKENDS, BackendOptions, (key, name)) for name in names}
        return {name: place for name, place in places.items() if place is not None}

    def _adapter(
        self, model: type[ModelT], registry: Registry[Any], base: type[BaseModel], path: KeyPath
    ) -> ModelT | None:
        """One section that names an adapter: its own keys into `model`, all others into the adapter's `Options`."""
        values = self._draft.mapping(path)
        own_fields = [key for key in model.model_fields if key not in {"options", "name"}]
        own = {key: values.pop(key) for key in own_fields if key in values}
        chooser = "backend" if "backend" in own_fields else "type"
        kind = own.setdefault(chooser, model.model_fields[chooser].default)
        if "name" in model.model_fields:
            own["name"] = path[-1]
        options_class = self._options_class(registry, kind, (*path, chooser))
        if options_class is None:
            return None
        self._fill_paths(options_class, kind, values, path)
        if isinstance(cache := own.get("cache"), dict) and isinstance(cache.get("directory"), str):
            directory = _absolute(Path(cache["directory"]), self._draft.base, self._environ)
            own["cache"] = {**cache, "directory": str(directory)}
        options = self._validate(options_class, values, path, [*own_fields, *options_class.model_fields])
        # With stand-in options the section's own keys are checked even when the adapter's are wrong.
        section = self._validate(model, {**own, "options": options or base()}, path, own_fields)
        return section if options is not None else None

    def _options_class(self, registry: Registry[Any], kind: Any, path: KeyPath) -> type[BaseModel] | None:
        if kind is UNRESOLVED:
            return None
        if not isinstance(kind, str) or kind not in registry.names():
            self._draft.add(
                path, f"no {registry.kind} has that name; {_suggest(str(kind), registry.names())}"
            )
            return None
        try:
            options: type[BaseModel] = registry.load(kind).Options
        except (BrokenAdapter, MissingExtra) as exc:
            self._draft.add(path, str(exc))
            return None
        return options

    def _fill_paths(self, options: type[BaseModel], kind: str, values: dict[str, Any], path: KeyPath) -> None:
        """Give the options that live in `home` their default, and make every path absolute."""
        default = HOME_DEFAULTS.get((path[0], kind))
        if default and values.get(default[0]) is None:
            # Places beside `main` lie beside it, so that none lies inside another.
            suffix = f"-{path[1]}" if len(path) > 1 and path[1] != "main" else ""
            values[default[0]] = str(self._home / f"{default[1]}{suffix}")
        for name, field in options.model_fields.items():
            if _holds(field, Path) and isinstance(values.get(name), str) and values[name]:
                values[name] = str(_absolute(Path(values[name]), self._draft.base, self._environ))

    def _validate(
        self, model: type[ModelT], values: Mapping[str, Any], path: KeyPath, known: Iterable[str]
    ) -> ModelT | None:
        try:
            return model.model_validate(dict(values))
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                if error["input"] is UNRESOLVED:
                    continue
                loc = tuple(str(part) for part in error["loc"])
                what = _describe(error, model.model_fields.get(loc[0]) if loc else None, known)
                # Its name is its key in the file, already in the path.
                named = issubclass(model, StagingSettings | TargetSettings | RouteSettings) and loc == (
                    "name",
                )
                self._draft.add(path if named else (*path, *loc), what)
            return None


def _describe(error: ErrorDetails, field: FieldInfo | None, known: Iterable[str]) -> str:
    """What is wrong and what to do. A value is repeated only when its field is known and holds no secret."""
    key = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return _unknown(key, known)
    if error["type"] == "missing":
        return f"is required; add it, or {key}_env with the name of the variable that holds it"
    message, given = error["msg"].removeprefix("Value error, "), error["input"]
    secret = field is None or _holds(field, SecretStr) or is_secret_name(str(error["loc"][0]))
    shown = "" if secret or not isinstance(given, str | int | float) else f"{redact(str(given))[:100]!r} "
    subject, should, rest = message.partition(" should ")
    if not should or " " in subject:
        return f"{shown}is refused: {message}" if shown else message
    remedy = "put it in quotes" if error["type"] == "string_type" else "correct it"
    return f"{shown or 'the value '}should {rest}; {remedy}"


def _holds(field: FieldInfo, kind: type) -> bool:
    return kind in {field.annotation, *get_args(field.annotation)}


def _unknown(key: str, known: Iterable[str]) -> str:
    return f"unknown key; {_suggest(key, known)}"


def _suggest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"


def _check_layouts(
    draft: Draft, targets: Mapping[str, TargetSettings], routes: Mapping[str, RouteSettings]
) -> None:
    """Refuse two layouts of one target, by different routes, whose keys could meet: other content would lie there."""
    first: dict[str, dict[str, str]] = {}
    for route in routes.values():
        for name in (*route.targets, *route.best_effort):
            if name not in targets:
                continue
            layout = route.layout or targets[name].layout
            before = first.setdefault(name, {})
            for other, user in before.items():
                if may_meet(layout, other):
                    draft.add(
                        ("routes", route.name, "layout"),
                        f"{layout!r} could give target {name!r} the same keys as {other!r}, which it has by route {user!r}; "
                        "begin a template with a word of its own, as 'archive/…'",
                    )
            before.setdefault(layout, route.name)


def _check_overlaps(
    draft: Draft, staging: Mapping[str, StagingSettings], targets: Mapping[str, TargetSettings]
) -> None:
    """Refuse a place to read from that shares its objects with another place: a target could be taken for staging."""
    sources = [(("staging", name), _place(place)) for name, place in staging.items()]
    others = sources + [(("targets", name), _place(place)) for name, place in targets.items()]
    for index, (path, place) in enumerate(sources):
        for other_path, other in others[index + 1 :]:
            if place[0] != other[0]:
                continue
            shared = min(len(place[1]), len(other[1]))
            if place[1][:shared] == other[1][:shared]:
                draft.add(
                    path,
                    f"overlaps {'.'.join(other_path)} (used at {draft.where(other_path)}), one lies inside the other; "
                    "give each its own root, bucket or prefix",
                )


def _place(place: StagingSettings | TargetSettings) -> tuple[object, tuple[str, ...]]:
    """Which store a place is in, and the segments of its path there. Two memory backends never share anything."""
    prefix = tuple(place.prefix.split("/")) if place.prefix else ()
    options = place.options.model_dump()
    if place.backend == "memory":
        return object(), prefix
    if place.backend == "file":
        return "file", (*Path(os.path.realpath(options["root"])).parts, *prefix)
    if place.backend == "s3":
        endpoint = (options.get("endpoint_url") or "").rstrip("/").lower()
        store = "aws" if not endpoint or ".amazonaws.com" in endpoint else endpoint
        return ("s3", store, options["bucket"]), prefix
    location = BACKENDS.load(place.backend).location_of(place.options)
    return place.backend, (*location.rstrip("/").split("/"), *prefix)
