"""The suite on HTTP APIs: one that can everything, one that only takes, and nginx with WebDAV."""

import hashlib
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.base import StorageBackend
from backends.errors import NotFound
from backends.http_api import HttpBackend
from backends.http_api_options import HttpOptions
from backends.testing import BackendConformance
from backends.testing.material import LARGE, NOTHING, fed, put, some_bytes
from tests.support.http_api import HttpApi, http_api, options_for
from tests.support.nginx import NginxDav


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[HttpApi]:
    async with http_api(tmp_path / "objects") as api:
        yield api


class TestHttpBackend(BackendConformance):
    """An API that can everything."""

    @pytest.fixture
    async def backend(self, api: HttpApi) -> AsyncIterator[StorageBackend]:
        backend = await HttpBackend.connect(options_for(api))
        yield backend
        await backend.aclose()


class TestHttpBackendThatOnlyTakes(BackendConformance):
    """Neither reads nor listings nor deletes: a write is proven by the digest in the API's answer."""

    @pytest.fixture
    async def backend(self, api: HttpApi) -> AsyncIterator[StorageBackend]:
        self.api = api
        backend = await HttpBackend.connect(
            options_for(api, reads=False, deletes=False, list_path=None, method="POST")
        )
        yield backend
        await backend.aclose()

    async def keys(self, backend: StorageBackend, prefix: str = "") -> list[str]:  # noqa: ARG002 - looks behind it
        return sorted(key for key in self.api.objects if key.startswith(prefix))

    async def content(self, backend: StorageBackend, key: str) -> bytes:  # noqa: ARG002 - as above
        if key not in self.api.objects:
            raise NotFound(key)
        return self.api.content(key)

    async def exists(self, backend: StorageBackend, key: str) -> bool:  # noqa: ARG002 - as above
        return key in self.api.objects

    async def remove(self, backend: StorageBackend, key: str) -> None:  # noqa: ARG002 - as above
        self.api.remove(key)

    # These two ask the backend itself for what it does not offer.

    @pytest.mark.parametrize("size", [0, 1, LARGE])
    async def test_what_is_written_is_read_back(self, backend: StorageBackend, size: int) -> None:
        data = some_bytes(size)
        receipt = await backend.write("some/key.bin", fed(data), NOTHING)
        assert (receipt.key, receipt.size, receipt.created) == ("some/key.bin", size, True)
        assert receipt.sha256 == hashlib.sha256(data).hexdigest()
        assert self.api.content("some/key.bin") == data

    async def test_a_source_without_any_piece_makes_an_empty_object(self, backend: StorageBackend) -> None:
        receipt = await put(backend, "empty", b"")
        assert (receipt.size, receipt.created) == (0, True)
        assert self.api.content("empty") == b""


class TestHttpBackendOnNginx(BackendConformance):
    """WebDAV as nginx has it: a PUT may replace, so a write looks first; listings and metadata are not kept."""

    @pytest.fixture
    async def backend(self, nginx: NginxDav) -> AsyncIterator[StorageBackend]:
        name = secrets.token_hex(8)
        self.files = nginx.files / name
        backend = await HttpBackend.connect(HttpOptions(base_url=f"{nginx.url}/{name}", if_none_match=False))
        yield backend
        await backend.aclose()
        shutil.rmtree(self.files, ignore_errors=True)

    async def keys(self, backend: StorageBackend, prefix: str = "") -> list[str]:  # noqa: ARG002 - looks at the files
        found = (path.relative_to(self.files).as_posix() for path in self.files.rglob("*") if path.is_file())
        return sorted(key for key in found if key.startswith(prefix))
