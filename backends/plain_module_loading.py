"""A plain module's options, and what is found in it. Used by backends/plain_module.py only."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pydantic import Field

from backends.base import BackendOptions
from backends.errors import StorageError


class ModuleOptions(BackendOptions):
    """A module, and what it is told."""

    module: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Import path of the module, `storage.my_storage`; installed, or in a folder on PYTHONPATH.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="What the module's functions get, over its own `default_options`.",
    )
    max_size: int = Field(
        default=10_000_000, ge=0, description="Bytes of a payload at most; it is held in memory whole."
    )
    flat_keys: bool = Field(
        default=True,
        description="Give the key as one name, `/` as `%2F` and `%` as `%25`: modules make file names of it.",
    )
    compare: bool = Field(
        default=True,
        description="Compare with what `get` returns, before and after a save; off where that is not what was saved.",
    )
    retry_on: tuple[str, ...] = Field(
        default=(),
        description="Exceptions, besides `ConnectionError` and `TimeoutError`, after which another attempt may help: "
        "`psycopg2.OperationalError`.",
    )
    threads: int = Field(default=8, ge=1, le=256, description="Calls in progress at once.")
    timeout: float = Field(default=300.0, gt=0, description="Seconds a call may take.")


@dataclass(frozen=True, slots=True)
class Module:
    """What a module offers."""

    save: Callable[..., Any]
    get: Callable[..., Any] | None
    delete: Callable[..., Any] | None
    options: Mapping[str, Any]
    payload: Literal["third", "keyword", "option"]
    """How `save` takes it."""


def load(options: ModuleOptions) -> Module:
    """Import it. Raises a `StorageError` that says what is wrong with it."""
    name = options.module
    try:
        module = import_module(name)
    except (Exception, SystemExit) as exc:
        raise StorageError(
            f"module {name} cannot be imported ({type(exc).__name__}: {exc}); "
            "correct `module`, install it, or put its folder on PYTHONPATH"
        ) from exc
    functions = {each: getattr(module, each, None) for each in ("save", "get", "delete")}
    if unusable := [each for each, found in functions.items() if found is not None and not callable(found)]:
        raise StorageError(f"module {name} has a `{unusable[0]}` that is no function")
    if functions["save"] is None:
        raise StorageError(f"module {name} has no function `save`; only `get` and `delete` are optional")
    defaults = getattr(module, "default_options", {})
    if not isinstance(defaults, Mapping):
        raise StorageError(f"module {name} has `default_options` that are no dict")
    merged = {**defaults, **options.options}
    payload = _payload(name, functions["save"])
    if payload == "option" and "payload" in merged:
        raise StorageError(
            f"module {name}: the option `payload` is where its `save` finds the bytes; rename yours"
        )
    return Module(functions["save"], functions["get"], functions["delete"], merged, payload)


def _payload(name: str, save: Callable[..., Any]) -> Literal["third", "keyword", "option"]:
    try:
        signature = inspect.signature(save)
    except (TypeError, ValueError) as exc:
        raise StorageError(
            f"module {name} has a `save` whose parameters cannot be told; write it in Python"
        ) from exc
    if _takes(signature, "", {}, b""):
        return "third"
    if _takes(signature, "", {}, payload=b""):
        return "keyword"
    if _takes(signature, "", {}):
        return "option"
    raise StorageError(
        f"module {name} has save{signature}; it is called as save(key, opts, payload) or save(key, opts)"
    )


def _takes(signature: inspect.Signature, *values: object, **named: object) -> bool:
    try:
        signature.bind(*values, **named)
    except TypeError:
        return False
    return True
