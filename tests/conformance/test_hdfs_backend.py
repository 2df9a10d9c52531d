"""HDFS against the suite of storage backends, on a real NameNode and DataNode."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from backends.base import StorageBackend, single
from backends.hdfs import HdfsBackend
from backends.hdfs_names import path_of, temporary_of
from backends.hdfs_upload import Upload
from backends.testing import BackendConformance
from tests.support.hdfs import PAGE, HdfsCluster


class TestHdfsBackend(BackendConformance):
    many = 4 * PAGE
    """In three directories: more than a page of the cluster of the tests in each."""

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        assert isinstance(backend, HdfsBackend)
        await Upload(backend._client, temporary_of(key)).run(single(b"half"))
        return 1

    async def fill(self, backend: StorageBackend, keys: Sequence[str]) -> None:
        """Straight to the final names, which saves the requests that make a write safe."""
        assert isinstance(backend, HdfsBackend)
        gate = asyncio.Semaphore(32)

        async def one(key: str) -> None:
            async with gate:
                await Upload(backend._client, path_of(key)).run(single(b"x"))

        await asyncio.gather(*(one(key) for key in keys))

    @pytest.fixture
    async def backend(self, hdfs: HdfsCluster) -> AsyncIterator[StorageBackend]:
        async with hdfs.backend() as backend:
            yield backend
