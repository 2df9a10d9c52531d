"""A medallion platform's bronze layer, as a target of ours. Called by worker/config_import.py.

What has no counterpart becomes a comment that says why; docs/coming-from.md lists every key.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from worker.config_import_source import Entry, Imported, Source, copy_secret, copy_setting, shown


class _Store(NamedTuple):
    """One kind of storage that a bronze layer may have."""

    backend: str
    place: str
    """The key without which there is nowhere to write to."""
    ours: str
    """What that is called in a target."""
    keys: tuple[str, ...]
    """Every key that concerns this kind only."""


_STORES: Final[Mapping[str, _Store]] = MappingProxyType(
    {
        "s3": _Store("s3", "s3_bucket", "bucket", ("s3_bucket", "s3_prefix")),
        "azure": _Store(
            "azure",
            "azure_container",
            "container",
            ("azure_storage_account", "azure_container", "azure_prefix"),
        ),
        "local": _Store("file", "local_path", "root", ("local_path",)),
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
    places = {each: bronze.text(store.place) for each, store in _STORES.items()}
    prefix = {"s3": bronze.text("s3_prefix"), "azure": bronze.text("azure_prefix")}.get(kind)
    account = bronze.text("azure_storage_account")
    if kind not in _STORES:
        bronze.refuse(
            "storage_backend",
            f"{kind!r} is a backend of your own; write it as one for Transload (docs/extending.md) and name it in targets",
        )
        return result
    store = _STORES[kind]
    if places[kind] is None:
        bronze.refuse(store.place, f"is missing, and storage_backend {kind!r} needs it")
    entry.values = {"backend": store.backend, store.ours: places[kind]}
    if prefix:
        entry.values["prefix"] = prefix
    entry.values["layout"] = "hive"
    entry.comments.append(
        "Keys are system={recipe_id}/table={table}/dt=YYYY-MM-DD/…: the recipe is the system, the resource's meta has the table."
    )
    others = [
        key for other, unused in _STORES.items() if other != kind for key in unused.keys if bronze.has(key)
    ]
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
