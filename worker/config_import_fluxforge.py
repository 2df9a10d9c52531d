"""FluxForge's unified storage, as staging and a target of ours. Called by worker/config_import.py.

What has no counterpart becomes a comment that says why; docs/coming-from.md lists every key.
"""

import re
from typing import Any, Final

from worker.config_import_source import Entry, Imported, Source, copy_secret, copy_setting, shown

_DRIVE: Final = re.compile("[A-Za-z]:")


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
        entry = _storage(storage, f"staging-{name}", "ready")
        # What is fetched and what is read on are mostly one place, said twice.
        if all(_place(entry) != _place(other) for other in result.staging.values()):
            result.staging[name] = entry
    target = result.targets["main"] = _storage(output if output.values else common, "main", "processed")
    target.values["layout"] = "{recipe_id}/{meta[channel]}/{bid}.{name}"
    target.comments.append(
        "Keys are {source}/{channel}/…: the recipe is the source, the resource's meta has the channel."
    )
    if etl.flag("delete_after_processing", default=False):
        for entry in result.staging.values():
            entry.values["delete_published"] = True
    for inner in (common, *staged, output):
        _leftovers(inner, result)
    return result


def _place(entry: Entry) -> list[Any]:
    return [entry.values.get(key) for key in ("backend", "root", "bucket", "prefix")]


def _storage(storage: Source, name: str, state: str) -> Entry:
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


def _leftovers(storage: Source, result: Imported) -> None:
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
