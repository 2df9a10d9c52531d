"""Where a configured name becomes a class. A new adapter touches only the table of its port.

`BACKENDS` is this room's table; queues and publishers keep theirs beside their ports. An adapter's SDK is imported only
when its name is configured, so the runtime install stays small.

Other distributions add backends by an entry point (https://packaging.python.org/en/latest/specifications/entry-points/):

    [project.entry-points."transload.backends"]
    ours = "our_package.our_module:OurBackend"

A name of the table always means the adapter of the table. Nothing of a distribution is imported before its name is used.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from backends.base import BackendAdapter, BackendOptions
from backends.errors import MissingExtra, StorageError

Port = TypeVar("Port")


@dataclass(frozen=True, slots=True)
class Entry:
    """`path` is `module:Class`; `extra` is what `pip install 'transload[extra]'` brings, None when nothing is needed."""

    path: str
    extra: str | None = None


class UnknownName(StorageError):
    """No adapter is registered under that name; the message lists those that are."""


class BrokenAdapter(StorageError):
    """Another distribution's adapter cannot be used; the message names the distribution and says why."""


@dataclass(frozen=True, slots=True)
class Registry(Generic[Port]):
    """The adapters of one port, by name."""

    kind: str
    entries: Mapping[str, Entry]
    """Our own."""
    group: str | None = None
    """The entry points of other distributions' adapters; None where there can be none."""

    def names(self) -> list[str]:
        """Every name that can be configured, ours and others', in order."""
        return sorted({*self.entries, *(point.name for point in self._points())})

    def load(self, name: str) -> type[Port]:
        """The adapter's class.

        Raises `UnknownName`, `MissingExtra` with the command that installs what our adapter needs, or `BrokenAdapter`.
        """
        entry = self.entries.get(name)
        if entry is None:
            return cast("type[Port]", self._load_of_others(name))
        module, _, class_name = entry.path.partition(":")
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as exc:
            if entry.extra is None:
                raise
            raise MissingExtra(
                f"{self.kind} {name!r} needs the package {exc.name!r}; "
                f"install it with: pip install 'transload[{entry.extra}]'"
            ) from exc
        return cast("type[Port]", getattr(loaded, class_name))

    def _points(self) -> list[EntryPoint]:
        return [*entry_points(group=self.group)] if self.group else []

    def _load_of_others(self, name: str) -> type:
        # A distribution that is found twice on the path declares the same thing twice.
        points = {
            (point.value, _distribution(point)): point for point in self._points() if point.name == name
        }
        if not points:
            raise UnknownName(f"no {self.kind} named {name!r}; there are: {', '.join(self.names())}")
        if len(points) > 1:
            declared = " and ".join(sorted(distribution for _, distribution in points))
            raise BrokenAdapter(f"{self.kind} {name!r} is declared by {declared}; uninstall all but one")
        ((value, distribution),) = points
        where = f"{self.kind} {name!r} of {distribution} ({value})"
        try:
            loaded = points[value, distribution].load()
        except (Exception, SystemExit) as exc:
            raise BrokenAdapter(f"{where} cannot be loaded: {type(exc).__name__}: {exc}") from exc
        if missing := _missing(loaded):
            raise BrokenAdapter(f"{where} is no adapter: it lacks {', '.join(missing)}; see backends/base.py")
        return cast("type", loaded)


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed distribution"


def _missing(loaded: object) -> list[str]:
    """What the port asks of a class and this one has not."""
    options = getattr(loaded, "Options", None)
    if (
        not isinstance(loaded, type)
        or not isinstance(options, type)
        or not issubclass(options, BackendOptions)
    ):
        return ["an `Options` that extends BackendOptions"]
    members = [name for base in BackendAdapter.__mro__ for name in vars(base) if not name.startswith("_")]
    return sorted({f"`{name}`" for name in members if not hasattr(loaded, name)})


BACKENDS: Registry[BackendAdapter] = Registry(
    "backend",
    MappingProxyType(
        {
            "azure": Entry("backends.azure:AzureBackend", extra="azure"),
            "file": Entry("backends.file:FileBackend"),
            "gcs": Entry("backends.gcs:GcsBackend", extra="gcs"),
            "hdfs": Entry("backends.hdfs:HdfsBackend", extra="hdfs"),
            "http": Entry("backends.http_api:HttpBackend", extra="http"),
            "memory": Entry("backends.memory:MemoryBackend"),
            "module": Entry("backends.plain_module:ModuleBackend"),
            "postgres": Entry("backends.postgres:PostgresBackend", extra="postgres"),
            "s3": Entry("backends.s3:S3Backend", extra="s3"),
            "sftp": Entry("backends.sftp:SFTPBackend", extra="sftp"),
        }
    ),
    group="transload.backends",
)
