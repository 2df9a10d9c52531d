"""How a process gets its settings. The command line calls `load_settings`, once; nobody else reads the environment.

Later wins: defaults, then one YAML file, then `TRANSLOAD_…` variables (`TRANSLOAD_WORKER__CONCURRENCY=8`), then the
arguments. Any key `X_env` names the variable that holds X, `X_file` a file, `X_secret` a secret of AWS Secrets Manager. Relative paths start from the file's folder, or from the
working directory where there is no file. docs/configuration.md is the reference.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from backends.base import BackendOptions
from backends.errors import MissingExtra
from backends.registry import BACKENDS, BrokenAdapter, Registry
from handlers.transforms.key_ring import KeyOptions, KeyRingOptions
from handlers.transforms.registry import TRANSFORMS
from worker.config_environment import overlay, resolve_references
from worker.config_file import FILE_VARIABLE, UNRESOLVED, Draft, KeyPath, SettingsError, read_file
from worker.config_references import resolve
from worker.provision.settings import ProvisionSettings
from worker.publishers.base import PublisherOptions
from worker.publishers.registry import PUBLISHERS
from worker.queues.base import QueueOptions
from worker.queues.registry import QUEUES
from worker.seed_environment import read_seed_environment
from worker.settings_checks import (
    check_archives,
    check_bus,
    check_deduplication,
    check_keys,
    check_layouts,
    check_notifications,
    check_overlaps,
)
from worker.settings_json_schema import json_schema
from worker.settings_places import (
    HOME_DEFAULTS,
    PublisherSettings,
    QueueSettings,
    RouteSettings,
    StagingSettings,
    StepSettings,
    TargetSettings,
)
from worker.settings_problems import describe, holds, suggest, unknown
from worker.settings_process import (
    AdminSettings,
    AuditSettings,
    CloudWatchSettings,
    HousekeepingSettings,
    LedgerSettings,
    LogSettings,
    RelaySettings,
    TracingSettings,
    WorkerSettings,
    sqlite_url,
)
from worker.settings_schema import SECTIONS, Settings
from worker.settings_secrets import SecretsSettings
from worker.settings_shares import check_shares

__all__ = ["Settings", "SettingsError", "check_settings", "json_schema", "load_settings"]

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_settings(*, file: Path | None, home: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings out of `file` (or the one `TRANSLOAD_CONFIG` names), `environ` and `home`, checked as a whole.

    Where they name secrets of AWS Secrets Manager, those are read, and it is not to be called inside an event loop.

    Raises `SettingsError` with every problem found, each naming its file and line, or its variable.
    """
    draft = _draft(file, environ)
    fetched = _referred(draft, environ, fetching=True)
    settings = _Builder(draft, _home(draft, home, environ), environ).build()
    if draft.problems or settings is None:
        raise SettingsError(draft.problems)
    return settings.model_copy(update={"fetched": frozenset(fetched)}) if fetched else settings


def check_settings(
    *, file: Path | None, home: Path | None, environ: Mapping[str, str]
) -> tuple[Settings | None, Sequence[str]]:
    """The same without asking AWS Secrets Manager: the keys whose values are there, and the settings where there are none.

    Raises `SettingsError` as `load_settings` does, for what can be seen without those values.
    """
    draft = _draft(file, environ)
    unread = _referred(draft, environ, fetching=False)
    settings = _Builder(draft, _home(draft, home, environ), environ).build()
    if draft.problems or (settings is None and not unread):
        raise SettingsError(draft.problems)
    return None if unread else settings, [".".join(path) for path in unread]


def _draft(file: Path | None, environ: Mapping[str, str]) -> Draft:
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    draft = read_file(file) if file else read_seed_environment(environ)
    overlay(draft, environ)
    resolve_references(draft, environ)
    return draft


def _referred(draft: Draft, environ: Mapping[str, str], *, fetching: bool) -> tuple[KeyPath, ...]:
    return resolve(draft, partial(_absolute, base=draft.base, environ=environ), fetching=fetching)


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
            if key not in SECTIONS:
                self._draft.add((key,), unknown(key, SECTIONS))
        queue = self._adapter(QueueSettings, QUEUES, QueueOptions, ("queue",))
        publisher = self._adapter(PublisherSettings, PUBLISHERS, PublisherOptions, ("publisher",))
        staging = self._places(StagingSettings, "staging")
        targets = self._places(TargetSettings, "targets")
        check_overlaps(self._draft, staging, targets)
        check_notifications(self._draft, staging)
        worker = self._plain(WorkerSettings, "worker")
        relay = self._plain(RelaySettings, "relay")
        housekeeping = self._plain(HousekeepingSettings, "housekeeping")
        admin = self._plain(AdminSettings, "admin")
        logs = self._plain(LogSettings, "logs")
        audit = self._plain(AuditSettings, "audit")
        cloudwatch = self._plain(CloudWatchSettings, "cloudwatch")
        tracing = self._plain(TracingSettings, "tracing")
        provision = self._plain(ProvisionSettings, "provision")
        secrets = self._plain(SecretsSettings, "secrets")
        encryption = self._encryption()
        ledger, routes = self._ledger(), self._routes()
        check_layouts(self._draft, targets, routes)
        check_bus(self._draft, targets, routes)
        check_archives(self._draft, targets, routes)
        check_keys(self._draft, routes)
        check_deduplication(self._draft, targets, routes)
        check_shares(self._draft, worker, routes)
        if not (queue and publisher and ledger and worker and relay and housekeeping and admin and logs):
            return None
        if not (audit and cloudwatch and tracing and provision and secrets):
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
            tracing=tracing,
            encryption=encryption,
            secrets=secrets,
            provision=provision.rooted(partial(_absolute, base=self._draft.base, environ=self._environ)),
        )

    def _plain(self, model: type[ModelT], key: str, **defaults: str) -> ModelT | None:
        values = self._draft.mapping((key,))
        return self._validate(model, {**defaults, **values}, (key,), model.model_fields)

    def _encryption(self) -> KeyRingOptions | None:
        """The keys, where the file has some, with their files' paths absolute."""
        values = self._draft.mapping(("encryption",))
        if not values:
            return None
        keys = values.get("keys")
        for key in keys.values() if isinstance(keys, dict) else ():
            if isinstance(key, dict):
                self._fill_paths(KeyOptions, "", key, ("encryption",))
        return self._validate(KeyRingOptions, values, ("encryption",), KeyRingOptions.model_fields)

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
        values["transforms"] = self._steps(path, values.get("transforms"))
        route = self._validate(RouteSettings, values, path, set(RouteSettings.model_fields) - {"name"})
        if route is None:
            return None
        for key in ("targets", "best_effort"):
            names: tuple[str, ...] = getattr(route, key)
            for target in names:
                if target not in known:
                    self._draft.add((*path, key), f"no target is named {target!r}; {suggest(target, known)}")
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

    def _steps(self, path: KeyPath, given: Any) -> list[StepSettings]:
        """A route's transforms; what is wrong with them is noted."""
        given = [given] if isinstance(given, str) else given or []
        if not isinstance(given, list):
            if given is not UNRESOLVED:
                self._draft.add((*path, "transforms"), "must be a list of transforms; write [gunzip, unzip]")
            return []
        steps = (self._step((*path, "transforms", str(place)), step) for place, step in enumerate(given))
        return [step for step in steps if step is not None]

    def _step(self, path: KeyPath, given: Any) -> StepSettings | None:
        given = {given: None} if isinstance(given, str) else given
        if not isinstance(given, dict) or len(given) != 1:
            self._draft.add(
                path,
                "must be a transform's name, or one name with its options; write unzip, or compress: {codec: zstd}",
            )
            return None
        ((name, values),) = given.items()
        values = {} if values is None else values
        options_class = self._options_class(TRANSFORMS, name, path)
        if options_class is None:
            return None
        if not isinstance(values, dict):
            self._draft.add((*path, name), "must be a mapping of options; write name: {option: value}")
            return None
        options = self._validate(options_class, values, (*path, name), options_class.model_fields)
        return None if options is None else StepSettings(name=name, options=options)

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
            self._draft.add(path, f"no {registry.kind} has that name; {suggest(str(kind), registry.names())}")
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
            if holds(field, Path) and isinstance(values.get(name), str) and values[name]:
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
                what = describe(error, model.model_fields.get(loc[0]) if loc else None, known)
                # Its name is its key in the file, already in the path.
                named = issubclass(model, StagingSettings | TargetSettings | RouteSettings) and loc == (
                    "name",
                )
                self._draft.add(path if named else (*path, *loc), what)
            return None
