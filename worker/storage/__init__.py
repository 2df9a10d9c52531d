"""The OC Fetcher's storage classes, as a worker in the fetcher's own process. Fetchers import from here; docs/in-process.md.

Nothing else of Transload imports this package.
"""

from worker.producer import ProducerError
from worker.settings_in_process import StorageOptionsError
from worker.storage.announcing import CompletionPending
from worker.storage.base import BundleRef, Storage
from worker.storage.bundle import BundleStorageContext
from worker.storage.decorators import (
    BundleResourcesDecorator,
    StorageBuilder,
    UnzipResourceDecorator,
    create_storage_stack,
)
from worker.storage.storages import FileStorage, PipelineStorage, SqsPublisher
from worker.storage.stream import BundleStream

__all__ = [
    "BundleRef",
    "BundleResourcesDecorator",
    "BundleStorageContext",
    "BundleStream",
    "CompletionPending",
    "FileStorage",
    "PipelineStorage",
    "ProducerError",
    "SqsPublisher",
    "Storage",
    "StorageBuilder",
    "StorageOptionsError",
    "UnzipResourceDecorator",
    "create_storage_stack",
]
