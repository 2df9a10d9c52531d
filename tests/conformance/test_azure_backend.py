"""Runs the suite for Azure Blob Storage, on Azurite."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import aiohttp
import pytest
from azure.storage.blob import generate_container_sas
from yarl import URL

from backends.azure import AzureBackend
from backends.azure_blocks import BlockSource
from backends.base import StorageBackend, single
from backends.testing import BackendConformance
from backends.testing.material import KEYS
from tests.support.azure import azure_backend
from tests.support.azurite import AzuriteEndpoint


class TestAzureBackend(BackendConformance):
    untold_keys = tuple(key for key in KEYS if "\\" in key or key.count("/") >= 254)

    @pytest.fixture
    async def backend(self, azurite: AzuriteEndpoint) -> AsyncIterator[AzureBackend]:
        async with azure_backend(azurite) as backend:
            yield backend

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        assert isinstance(backend, AzureBackend)
        if await backend.stat(key) is not None:
            return 0  # a write that finds the key taken stages nothing
        upload = backend._upload(key)
        await upload.stage(1, await BlockSource(single(b"half")).take(4))
        return 1

    async def fill(self, backend: StorageBackend, keys: Sequence[str]) -> None:
        assert isinstance(backend, AzureBackend)
        options = backend._options
        assert options.account_key
        token = generate_container_sas(
            options.account_name,
            options.container,
            options.account_key.get_secret_value(),
            permission="c",
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        head = {"x-ms-blob-type": "BlockBlob"}
        gate = asyncio.Semaphore(16)
        async with aiohttp.ClientSession() as session:

            async def one(key: str) -> None:
                url = f"{options.account_url}/{options.container}/{quote(key)}?{token}"
                async with gate, session.put(URL(url, encoded=True), data=b"x", headers=head) as answer:
                    assert answer.status == 201

            await asyncio.gather(*map(one, keys))
