"""Runs the suite on the file system, in memory and on LocalStack's S3; other stores have files of their own beside this one."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from backends.base import StorageBackend
from backends.file import FileBackend, FileOptions
from backends.file_transfer import Upload
from backends.measured import MeasuredBackend
from backends.memory import MemoryBackend, MemoryOptions
from backends.registry import BACKENDS
from backends.s3 import S3Backend
from backends.testing import BackendConformance
from tests.support.s3 import s3_backend


@asynccontextmanager
async def file_backend(request: pytest.FixtureRequest) -> AsyncIterator[StorageBackend]:
    directory: Path = request.getfixturevalue("tmp_path")
    backend = await FileBackend.connect(FileOptions(root=directory / "root"))
    yield backend
    await backend.aclose()


@asynccontextmanager
async def memory_backend(_: pytest.FixtureRequest) -> AsyncIterator[StorageBackend]:
    backend = await MemoryBackend.connect(MemoryOptions())
    yield backend
    await backend.aclose()


ADAPTERS: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[StorageBackend]]] = (
    MappingProxyType({"file": file_backend, "memory": memory_backend, "s3": s3_backend})
)


@asynccontextmanager
async def measured_backend(request: pytest.FixtureRequest) -> AsyncIterator[StorageBackend]:
    async with memory_backend(request) as backend:
        yield MeasuredBackend(backend, lambda _: None)


@asynccontextmanager
async def named_file_backend(request: pytest.FixtureRequest) -> AsyncIterator[StorageBackend]:
    """As on a file system without O_TMPFILE."""
    async with file_backend(request) as backend:
        assert isinstance(backend, FileBackend)
        backend._tree._has_unnamed = False
        yield backend


SUBJECTS = MappingProxyType(
    {**ADAPTERS, "measured": measured_backend, "file, named temporaries": named_file_backend}
)


class TestBackends(BackendConformance):
    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        if isinstance(backend, S3Backend):
            where = {"Bucket": backend.location.removeprefix("s3://").rstrip("/"), "Key": key}
            answer = await backend._client.create_multipart_upload(**where)
            upload_id = answer["UploadId"]
            await backend._client.upload_part(**where, UploadId=upload_id, PartNumber=1, Body=b"half")
            return 1
        if isinstance(backend, FileBackend) and not backend._tree._has_unnamed:
            upload = Upload(backend._tree, key)
            upload.append([b"half"])
            upload.leave()
            os.close(upload._file)
            return 1
        return 0

    @pytest.fixture(params=sorted(SUBJECTS))
    async def backend(self, request: pytest.FixtureRequest) -> AsyncIterator[StorageBackend]:
        if request.param in {"memory", "measured"}:
            # An object is held whole, twice while it is put together.
            self.huge = 64 << 20
        async with SUBJECTS[request.param](request) as backend:
            yield backend


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_registered_name_loads_what_the_suite_tests(name: str) -> None:
    assert BACKENDS.load(name).Options.model_config["frozen"]
