"""An Azure backend on a container of its own on Azurite, and the proxy that shows it copies that take their time."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from azure.storage.blob.aio import BlobServiceClient
from pydantic import SecretStr

from backends.azure import AzureBackend
from backends.azure_client import AzureOptions
from tests.support.azurite import AzuriteEndpoint
from tests.support.dropping import drop
from tests.support.s3_front import Front, front_of


def azure_options(azurite: AzuriteEndpoint, container: str, **changes: Any) -> AzureOptions:
    """How to reach `container` of Azurite; `changes` replace single options."""
    return AzureOptions(
        **{
            "container": container,
            "account_url": azurite.account_url,
            "account_key": SecretStr(azurite.account_key),
            "block_size": 2 << 20,
            **changes,
        }
    )


@asynccontextmanager
async def azure_service(azurite: AzuriteEndpoint) -> AsyncIterator[BlobServiceClient]:
    """A plain client, to prepare and to look at what the adapter did."""
    credential = {"account_name": azurite.account, "account_key": azurite.account_key}
    async with BlobServiceClient(azurite.account_url, credential) as service:
        yield service


async def new_container(azurite: AzuriteEndpoint) -> str:
    """The name of a fresh, empty container. It goes with the server."""
    name = f"test-{secrets.token_hex(8)}"
    async with azure_service(azurite) as service:
        await service.create_container(name)
    return name


@asynccontextmanager
async def azure_backend(azurite: AzuriteEndpoint, **changes: Any) -> AsyncIterator[AzureBackend]:
    """A connected backend on a fresh container (or the one in `changes`), closed afterwards."""
    container = changes.pop("container", None) or await new_container(azurite)
    backend = await AzureBackend.connect(azure_options(azurite, container, **changes))
    try:
        yield backend
    finally:
        await backend.aclose()


@dataclass(slots=True)
class SlowCopies:
    """What a test sets: Azurite ends every copy at once, the service may not."""

    url: str = ""
    pending: int = 0
    """How many more answers say of a copy that has succeeded that it is still under way."""
    asked: int = 0
    """How many did."""

    def rewritten(self, answer: bytes) -> bytes:
        """The same answer; status words of equal length keep it well formed."""
        if self.pending > 0 and b"\r\nx-ms-copy-status: success\r\n" in answer:
            self.pending -= 1
            self.asked += 1
            return answer.replace(b"\r\nx-ms-copy-status: success\r\n", b"\r\nx-ms-copy-status: pending\r\n")
        return answer


@asynccontextmanager
async def slow_copies(azurite: AzuriteEndpoint) -> AsyncIterator[SlowCopies]:
    """A proxy before Azurite, on a free port of loopback."""
    address = urlsplit(azurite.account_url)
    state = SlowCopies()
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(state.rewritten(data) if answers else data)
                await writer.drain()
        writer.close()  # so that the other direction ends as well

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        writers.append(writer)
        inner_reader, inner_writer = await asyncio.open_connection(address.hostname, address.port)
        writers.append(inner_writer)
        try:
            await asyncio.gather(
                pump(reader, inner_writer, answers=False), pump(inner_reader, writer, answers=True)
            )
        finally:
            writer.close()
            inner_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{address.path}"
    try:
        yield state
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            drop(writer)


@asynccontextmanager
async def fronted_azure(
    azurite: AzuriteEndpoint, **changes: Any
) -> AsyncIterator[tuple[AzureBackend, Front]]:
    """As `azure_backend`, with the front through which it speaks to Azurite. The SDK repeats nothing unless `changes` say so."""
    address = urlsplit(azurite.account_url)
    container = await new_container(azurite)
    async with front_of(f"{address.scheme}://{address.netloc}") as front:
        changes = {"account_url": f"{front.url}{address.path}", "retries": 0, **changes}
        async with azure_backend(azurite, container=container, **changes) as backend:
            yield backend, front
