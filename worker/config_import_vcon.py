"""A vCon server's storages and chains, as targets and routes of ours. Called by worker/config_import.py.

What has no counterpart becomes a comment that says why; docs/coming-from.md lists every key.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from worker.config_import_source import (
    Entry,
    Imported,
    Source,
    copy_secret,
    copy_setting,
    is_secret,
    our_name,
    secret_comment,
    shown,
    variable_for,
)


def from_vcon(file: Source) -> Imported:
    """`storages.<name>.{module, options}` and `chains.<name>.{links, storages, ingress_lists, enabled}`."""
    result = Imported("a vCon server's storages and chains")
    if file.has("links"):
        result.comments.append(
            f"{file.where('links')}: links work on conversations, not on payloads: none is imported."
        )
    file.anything("links")
    storages = file.section("storages")
    names: dict[str, str] = {}
    for name in storages.values:
        ours = names[name] = our_name(name, result.targets)
        result.targets[ours] = _storage(storages.section(name), ours)
    if not names:
        file.refuse("storages", "names no storage; there is nothing to import")
    chains = file.section("chains")
    for name in chains.values:
        _add_chain(chains.section(name), name, names, result)
    if chains.values and not result.routes:
        result.comments.append(
            "No chain has storages, so there are no routes: every message goes to every target."
        )
    return result


def _storage(storage: Source, name: str) -> Entry:
    entry = Entry()
    module = storage.text("module")
    options = storage.section("options")
    if module is None:
        storage.refuse("module", "is missing; name the module")
        return entry
    read, known = _EXAMPLES.get(module.rpartition(".")[2], (None, frozenset[str]()))
    if read is not None and {key.removesuffix("_env") for key in options.values} <= known:
        read(options, entry, name)
        entry.comments.insert(
            0,
            f"{storage.where('module')}: {shown([module])} is the guide's example, which our own backend replaces. "
            f"To keep the module: backend: module, module: {shown([module])}, and its options below options.",
        )
        return entry
    entry.values = {"backend": "module", "module": module}
    given = {key: options.anything(key) for key in options.values}
    if isinstance(given.get("max_size"), int):
        entry.values["max_size"] = given["max_size"]
    if given:
        entry.values["options"] = _options(given, options, (), entry, name)
    entry.comments.append(
        "save gets the payload as a third argument, or as opts['payload'] (docs/targets/module.md)."
    )
    return entry


def _options(
    given: Mapping[str, Any], options: Source, inside: tuple[str, ...], entry: Entry, name: str
) -> dict[str, Any]:
    copied: dict[str, Any] = {}
    for key, value in given.items():
        where = options.where(".".join((*inside, key)))
        if isinstance(value, dict):
            copied[key] = _options(value, options, (*inside, key), entry, name)
        elif is_secret(key, value) and not key.endswith("_env"):
            variable = variable_for(name, *inside, key)
            copied[f"{key}_env"] = variable
            entry.comments.append(secret_comment(variable, where))
        elif isinstance(value, list) and _hides_secret(value):
            options.refuse(
                ".".join((*inside, key)),
                "holds a secret inside a list, which no variable can stand for; give it in the module",
            )
        else:
            copied[key] = value
    return copied


def _hides_secret(value: Any) -> bool:
    if isinstance(value, list):
        return any(_hides_secret(item) for item in value)
    if isinstance(value, dict):
        return any(is_secret(key, item) or _hides_secret(item) for key, item in value.items())
    return is_secret("", value)


def _file(options: Source, entry: Entry, _: str) -> None:
    entry.values["backend"] = "file"
    copy_setting(options, "path", entry, "root", "/data/vcons")
    if options.has("file_extension"):
        entry.comments.append(
            f"{options.where('file_extension')}: names keep the extension of the resource's URL."
        )
    options.anything("file_extension")


def _s3(options: Source, entry: Entry, name: str) -> None:
    entry.values["backend"] = "s3"
    copy_setting(options, "bucket", entry, "bucket", "vcons")
    copy_setting(options, "prefix", entry, "prefix")
    copy_setting(options, "region", entry, "region", "us-east-1")
    copy_setting(options, "endpoint_url", entry, "endpoint_url")
    copy_secret(options, "access_key", entry, "access_key_id", name)
    copy_secret(options, "secret_key", entry, "secret_access_key", name)


def _postgres(options: Source, entry: Entry, name: str) -> None:
    entry.values["backend"] = "postgres"
    copy_setting(options, "host", entry, "host", "localhost")
    port = options.number("port")
    entry.values["port"] = 5432 if port is None else port
    copy_setting(options, "database", entry, "database", "vcons")
    copy_setting(options, "user", entry, "user", "vcon")
    copy_secret(options, "password", entry, "password", name)
    entry.values["create_tables"] = True
    entry.comments.append(
        "Payloads lie in tables of our own (docs/targets/postgres.md), not in the table vcons."
    )


def _http(options: Source, entry: Entry, name: str) -> None:
    entry.values["backend"] = "http"
    copy_setting(options, "base_url", entry, "base_url", "https://api.example.com")
    copy_secret(options, "api_key", entry, "token", name)
    timeout = options.number("timeout")
    entry.values["total_timeout"] = 30 if timeout is None else timeout
    entry.values["path"] = "vcons/{key}"
    # What its decorator says: three tries, pauses of up to ten seconds.
    entry.values["retry"] = {"attempts": 3, "base": 1, "cap": 10}
    entry.comments.append(
        "Objects are written with PUT to their own URL, vcons/{key}; see docs/targets/http.md for other APIs."
    )


_Reader = Callable[[Source, Entry, str], None]
_FILE: Final = (_file, frozenset({"path", "file_extension"}))
_S3: Final = (_s3, frozenset({"bucket", "prefix", "region", "access_key", "secret_key", "endpoint_url"}))
_POSTGRES: Final = (_postgres, frozenset({"host", "port", "database", "user", "password"}))
_HTTP: Final = (_http, frozenset({"base_url", "api_key", "timeout"}))

_EXAMPLES: Final[Mapping[str, tuple[_Reader, frozenset[str]]]] = MappingProxyType(
    {
        "my_storage": _FILE,
        "file": _FILE,
        "cloud_storage": _S3,
        "my_database": _POSTGRES,
        "api_storage": _HTTP,
    }
)
"""The modules of the guide, by the last part of their path, and the options of each."""


def _add_chain(chain: Source, name: str, targets: Mapping[str, str], result: Imported) -> None:
    entry = Entry()
    if links := chain.anything("links"):
        listed = shown(map(str, links)) if isinstance(links, list) else "…"
        entry.comments.append(
            f"{chain.where('links')}: {listed}: links have no counterpart; payloads are stored as they are."
        )
    enabled = chain.flag("enabled", default=True)
    if not enabled:
        entry.values["enabled"] = False
    if lists := chain.names("ingress_lists"):
        entry.values["queue"] = [re.sub(r"([*?[])", r"[\1]", one) for one in lists]
        entry.comments.append(
            f"A worker takes from one queue: name it in queue.queue, one of {shown(lists)}."
        )
    wanted = []
    for storage in chain.names("storages"):
        if storage in targets:
            wanted.append(targets[storage])
        else:
            chain.refuse("storages", f"no storage is named {storage!r}; there are: {', '.join(targets)}")
    if not wanted:
        result.comments.append(
            f"{chain.where('storages')}: the chain stores nothing, so there is no route for it."
        )
        return
    entry.values["targets"] = list(dict.fromkeys(wanted))
    earlier = [
        other
        for other, route in result.routes.items()
        if enabled
        and route.values.get("enabled", True)
        and set(route.values.get("queue", lists)) & set(entry.values.get("queue", []))
    ]
    if earlier:
        entry.comments.append(
            f"Of several routes the first that matches counts: {', '.join(earlier)} gets there before this one."
        )
    result.routes[our_name(name, result.routes)] = entry
