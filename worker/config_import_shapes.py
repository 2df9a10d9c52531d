"""The storage configurations of other tools, each turned into targets, staging and routes of ours.

Called by worker/config_import.py. What has no counterpart becomes a comment that says why; docs/coming-from.md lists every key.
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

_DRIVE: Final = re.compile("[A-Za-z]:")


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
        result.targets[ours] = _vcon_storage(storages.section(name), ours)
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


def _vcon_storage(storage: Source, name: str) -> Entry:
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
        entry.values["options"] = _vcon_options(given, options, (), entry, name)
    entry.comments.append(
        "save gets the payload as a third argument, or as opts['payload'] (docs/targets/module.md)."
    )
    return entry


def _vcon_options(
    given: Mapping[str, Any], options: Source, inside: tuple[str, ...], entry: Entry, name: str
) -> dict[str, Any]:
    copied: dict[str, Any] = {}
    for key, value in given.items():
        where = options.where(".".join((*inside, key)))
        if isinstance(value, dict):
            copied[key] = _vcon_options(value, options, (*inside, key), entry, name)
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


def _vcon_file(options: Source, entry: Entry, _: str) -> None:
    entry.values["backend"] = "file"
    copy_setting(options, "path", entry, "root", "/data/vcons")
    if options.has("file_extension"):
        entry.comments.append(
            f"{options.where('file_extension')}: names keep the extension of the resource's URL."
        )
    options.anything("file_extension")


def _vcon_s3(options: Source, entry: Entry, name: str) -> None:
    entry.values["backend"] = "s3"
    copy_setting(options, "bucket", entry, "bucket", "vcons")
    copy_setting(options, "prefix", entry, "prefix")
    copy_setting(options, "region", entry, "region", "us-east-1")
    copy_setting(options, "endpoint_url", entry, "endpoint_url")
    copy_secret(options, "access_key", entry, "access_key_id", name)
    copy_secret(options, "secret_key", entry, "secret_access_key", name)


def _vcon_postgres(options: Source, entry: Entry, name: str) -> None:
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


def _vcon_http(options: Source, entry: Entry, name: str) -> None:
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
_FILE: Final = (_vcon_file, frozenset({"path", "file_extension"}))
_S3: Final = (_vcon_s3, frozenset({"bucket", "prefix", "region", "access_key", "secret_key", "endpoint_url"}))
_POSTGRES: Final = (_vcon_postgres, frozenset({"host", "port", "database", "user", "password"}))
_HTTP: Final = (_vcon_http, frozenset({"base_url", "api_key", "timeout"}))

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


_BRONZE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "s3": ("s3_bucket", "s3_prefix"),
        "azure": ("azure_storage_account", "azure_container", "azure_prefix"),
        "local": ("local_path",),
    }
)


def from_medallion(file: Source) -> Imported:
    """`platform.bronze`, `platform.s3_connection` and `platform.azure_connection`."""
    result = Imported("a medallion platform's bronze layer")
    platform = file.section("platform")
    bronze = platform.section("bronze")
    s3, azure = platform.section("s3_connection"), platform.section("azure_connection")
    entry = result.targets["bronze"] = Entry()
    kind = bronze.text("storage_backend") or "s3"
    switches = [bronze.flag(key, default=True) for key in ("storage_enabled", "s3_enabled")]
    bucket, container, path = (
        bronze.text("s3_bucket"),
        bronze.text("azure_container"),
        bronze.text("local_path"),
    )
    prefix = {"s3": bronze.text("s3_prefix"), "azure": bronze.text("azure_prefix")}.get(kind)
    account = bronze.text("azure_storage_account")
    needed = {
        "s3": ("s3_bucket", bucket),
        "azure": ("azure_container", container),
        "local": ("local_path", path),
    }
    if kind not in needed:
        bronze.refuse(
            "storage_backend",
            f"{kind!r} is a backend of your own; write it as one for Transload (docs/extending.md) and name it in targets",
        )
        return result
    if needed[kind][1] is None:
        bronze.refuse(needed[kind][0], f"is missing, and storage_backend {kind!r} needs it")
    entry.values = {
        "s3": {"backend": "s3", "bucket": bucket},
        "azure": {"backend": "azure", "container": container},
        "local": {"backend": "file", "root": path},
    }[kind]
    if prefix:
        entry.values["prefix"] = prefix
    entry.values["layout"] = "hive"
    entry.comments.append(
        "Keys are system={recipe_id}/table={table}/dt=YYYY-MM-DD/…: the recipe is the system, the resource's meta has the table."
    )
    others = [key for other, keys in _BRONZE.items() if other != kind for key in keys if bronze.has(key)]
    if others:
        entry.comments.append(f"Left out, because storage_backend is {kind}: {', '.join(others)}.")
    _connect_s3(s3, entry if kind == "s3" else Entry())
    _connect_azure(azure, account, entry if kind == "azure" else Entry())
    if kind == "azure" and not {"account", "connection_string_env"} & set(entry.values):
        bronze.refuse("azure_storage_account", "is missing, and there is no connection string either")
    if not all(switches):
        result.routes["bronze"] = Entry({"enabled": False, "targets": ["bronze"]})
        result.comments.append(
            "Storage is switched off: messages find no route until routes.bronze is enabled."
        )
    return result


def _connect_s3(connection: Source, entry: Entry) -> None:
    copy_setting(connection, "endpoint_url", entry, "endpoint_url")
    copy_secret(connection, "access_key", entry, "access_key_id", "bronze")
    copy_secret(connection, "secret_key", entry, "secret_access_key", "bronze")
    if connection.values:
        entry.comments.append(
            "The variables have to be set; leave a line out where AWS's usual chain finds the credentials."
        )


def _connect_azure(connection: Source, account: str | None, entry: Entry) -> None:
    for key in ("connection_string", "account_key", "sas_token", "client_secret"):
        copy_secret(connection, key, entry, key, "bronze")
    copy_setting(connection, "tenant_id", entry, "tenant_id")
    copy_setting(connection, "client_id", entry, "client_id")
    if account is not None and "connection_string_env" not in entry.values:
        entry.values["account"] = account
    elif account is not None:
        entry.comments.append(
            f"azure_storage_account {shown([account])}: the connection string names the account."
        )


def from_fluxforge(file: Source) -> Imported:
    """`storage`, and in its place `ingestion.storage`, `etl.storage_input` and `etl.storage_output`."""
    result = Imported("FluxForge's unified storage")
    ingestion, etl = file.section("ingestion"), file.section("etl")
    for section, keys in ((ingestion, ("output_dir",)), (etl, ("input_dir", "output_dir", "processing_dir"))):
        for key in keys:
            if section.has(key):
                section.refuse(
                    key,
                    "is older than the unified storage; say it with storage.base_dir and storage.paths first",
                )
            section.anything(key)
    common = file.section("storage")
    staged = [
        inner
        for outer, key in ((ingestion, "storage"), (etl, "storage_input"))
        if (inner := outer.section(key)).values
    ]
    output = etl.section("storage_output")
    for name, storage in zip(("main", "etl"), staged or [common], strict=False):
        entry = _flux_storage(storage, f"staging-{name}", "ready")
        # What is fetched and what is read on are mostly one place, said twice.
        if all(_place(entry) != _place(other) for other in result.staging.values()):
            result.staging[name] = entry
    target = result.targets["main"] = _flux_storage(output if output.values else common, "main", "processed")
    target.values["layout"] = "{recipe_id}/{meta[channel]}/{bid}.{name}"
    target.comments.append(
        "Keys are {source}/{channel}/…: the recipe is the source, the resource's meta has the channel."
    )
    if etl.flag("delete_after_processing", default=False):
        for entry in result.staging.values():
            entry.values["delete_published"] = True
    for inner in (common, *staged, output):
        _flux_leftovers(inner, result)
    return result


def _place(entry: Entry) -> list[Any]:
    return [entry.values.get(key) for key in ("backend", "root", "bucket", "prefix")]


def _flux_storage(storage: Source, name: str, state: str) -> Entry:
    """Where the storage has its `ready` or its `processed` files."""
    entry = Entry()
    paths = storage.section("paths")
    if state == "ready":
        folder = f"{paths.text('raw_dir') or 'raw'}/{paths.text('ready_subdir') or 'ready'}"
    else:
        folder = paths.text("processed_dir") or "processed"
    base, kind = storage.text("base_dir"), storage.text("backend") or "local"
    s3 = storage.section("s3")
    bucket = s3.text("bucket")
    if kind == "s3":
        if bucket and base and bucket != base:
            s3.refuse(
                "bucket", f"is not base_dir ({base!r}); with backend s3 both name the bucket: make them equal"
            )
        if not (bucket or base):
            storage.refuse("base_dir", "is missing; with backend s3 it names the bucket")
        entry.values = {"backend": "s3", "bucket": bucket or base, "prefix": folder}
        copy_setting(s3, "region", entry, "region")
        copy_secret(s3, "aws_access_key_id", entry, "access_key_id", name)
        copy_secret(s3, "aws_secret_access_key", entry, "secret_access_key", name)
        return entry
    if kind != "local":
        storage.refuse("backend", f"{kind!r} is none; it is local or s3")
    if base is None:
        storage.refuse("base_dir", "is missing; it names the directory")
        return entry
    entry.values = {"backend": "file", "root": f"{base.rstrip('/')}/{folder}"}
    if _DRIVE.match(base):
        entry.comments.append(
            f"{storage.where('base_dir')}: {shown([base])} is a drive of Windows; name a directory of this machine."
        )
    elif not base.startswith("/"):
        entry.comments.append("A relative directory starts from the folder of this file.")
    return entry


def _flux_leftovers(storage: Source, result: Imported) -> None:
    paths = storage.section("paths")
    # A storage is read for what lies ready or for what is processed; its other names are as good.
    for key in ("raw_dir", "ready_subdir", "processed_dir"):
        paths.text(key)
    for key, why in (
        (
            "active_subdir",
            "a payload appears in staging when it is whole, so there is no folder for unfinished ones",
        ),
        ("processing_subdir", "what is in work is known to queue and ledger; nothing is moved meanwhile"),
    ):
        if paths.text(key):
            result.comments.append(f"{paths.where(key)}: {why}.")
    if storage.values.get("backend") in {None, "local"} and storage.has("s3"):
        s3 = storage.section("s3")
        for key in ("region", "aws_access_key_id", "aws_secret_access_key"):
            s3.text(key)
        result.comments.append(f"{storage.where('s3')}: left out, because backend is local.")
