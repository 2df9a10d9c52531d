"""The OC Fetcher's decorators: the same storage, and something more done to what it stores.

They change the route and the target that the storage underneath plans with. The storage itself stays as it is.
"""

from pathlib import Path
from typing import Any, Self

from worker.settings_in_process import StorageOptionsError, Storing
from worker.storage.own import OwnStorage
from worker.storage.storages import FileStorage, PipelineStorage

ARCHIVE = "zip"


class UnzipResourceDecorator(OwnStorage):
    """Stores what is in gzips and zips in their place, by their first bytes, not by name; streaming (docs/transforms.md)."""

    def __init__(self, base_storage: OwnStorage) -> None:
        """Raises `StorageOptionsError` for a storage that is not Transload's, `MissingExtra` without the decoders."""
        super().__init__(_own(self, base_storage).through("gunzip", "unzip"))
        self.base_storage = base_storage


class BundleResourcesDecorator(OwnStorage):
    """Stores one zip of all resources of a bundle as well, when it is complete."""

    def __init__(self, base_storage: OwnStorage) -> None:
        """Raises `StorageOptionsError` for a storage that is not Transload's."""
        super().__init__(bundling(_own(self, base_storage)))
        self.base_storage = base_storage


def bundling(storing: Storing) -> Storing:
    """The same with an archive of each bundle."""
    return storing.aimed(archive=ARCHIVE)


def create_storage_stack(
    base_storage: OwnStorage, unzip_resources: bool = False, bundle_resources: bool = False
) -> OwnStorage:
    """The storage with these decorators around it."""
    storage = base_storage
    if unzip_resources:
        storage = UnzipResourceDecorator(storage)
    if bundle_resources:
        storage = BundleResourcesDecorator(storage)
    return storage


class StorageBuilder:
    """Builds a storage step by step. Arguments are those of the storages."""

    def __init__(self) -> None:
        self._storage: OwnStorage | None = None
        self._unzip = False
        self._bundle = False

    def file_storage(self, output_dir: str | Path, **options: Any) -> Self:
        """Store in a folder."""
        self._storage = FileStorage(output_dir, **options)
        return self

    def pipeline_storage(self, bucket_name: str, **options: Any) -> Self:
        """Store in S3."""
        self._storage = PipelineStorage(bucket_name, **options)
        return self

    def unzip_resources(self, wanted: bool = True) -> Self:
        """Put an `UnzipResourceDecorator` around it."""
        self._unzip = wanted
        return self

    def bundle_resources(self, wanted: bool = True) -> Self:
        """Put a `BundleResourcesDecorator` around it."""
        self._bundle = wanted
        return self

    def build(self) -> OwnStorage:
        """The storage. Raises `StorageOptionsError` when none was chosen."""
        if self._storage is None:
            raise StorageOptionsError("no storage to build; call file_storage() or pipeline_storage() first")
        return create_storage_stack(self._storage, self._unzip, self._bundle)


def _own(decorator: object, storage: object) -> Storing:
    if not isinstance(storage, OwnStorage):
        raise StorageOptionsError(
            f"{type(decorator).__name__} changes what Transload's storages store, and {type(storage).__name__} is none of them; "
            "make a backend of it (docs/extending.md), or leave the decorator out"
        )
    return storage.storing
