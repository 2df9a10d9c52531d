"""Where a configured name becomes a class. A new adapter touches only the table of its port.

`BACKENDS` is this room's table; queues and publishers keep theirs beside their ports. An adapter's SDK is imported only
when its name is configured, so the runtime install stays small.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from backends.base import BackendAdapter
from backends.errors import MissingExtra, StorageError

Port = TypeVar("Port")


@dataclass(frozen=True, slots=True)
class Entry:
    """`path` is `module:Class`; `extra` is what `pip install 'transload[extra]'` brings, None when nothing is needed."""

    path: str
    extra: str | None = None


class UnknownName(StorageError):
    """No adapter is registered under that name; the message lists those that are."""


@dataclass(frozen=True, slots=True)
class Registry(Generic[Port]):
    """The adapters of one port, by name."""

    kind: str
    entries: Mapping[str, Entry]

    def load(self, name: str) -> type[Port]:
        """The adapter's class.

        Raises `UnknownName`, or `MissingExtra` with the command that installs what the adapter needs.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise UnknownName(f"no {self.kind} named {name!r}; there are: {', '.join(sorted(self.entries))}")
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


BACKENDS: Registry[BackendAdapter] = Registry(
    "backend",
    MappingProxyType(
        {
            "file": Entry("backends.file:FileBackend"),
            "memory": Entry("backends.memory:MemoryBackend"),
            "s3": Entry("backends.s3:S3Backend", extra="s3"),
        }
    ),
)
