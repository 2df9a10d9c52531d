"""One container of a storage account, as the other backends/azure*.py modules use it: calls about a key, each with its deadline."""

import heapq
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

from azure.core import MatchConditions
from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import BlobClient, BlobServiceClient

from backends.azure_client import AzureOptions
from backends.azure_errors import error_code, translated
from backends.azure_metadata import is_discarded, is_object
from backends.errors import Conflict, NotFound, PermissionDenied, Unavailable
from backends.failpoints import failpoint


class Container:
    """What is there, and what of it is an object."""

    def __init__(self, options: AzureOptions, service: BlobServiceClient) -> None:
        """The client stays the caller's to close."""
        self._options = options
        self._client = service.get_container_client(options.container)
        self.account_url = str(service.primary_endpoint)
        self.location = location_of(options)

    def blob(self, key: str) -> BlobClient:
        """The client of one blob, there or not."""
        return self._client.get_blob_client(key)

    def call(self, doing: str, key: str) -> AbstractAsyncContextManager[None]:
        """Runs one SDK call: within the deadline of a request, its errors as those of this room."""
        return translated(f"{doing} {self.location}{key}", self._options.request_timeout)

    async def properties(self, key: str) -> BlobProperties | None:
        """Of a whole object; None if there is none. Takes away what a killed sweep left there."""
        try:
            async with self.call("look up", key):
                found = await self.blob(key).get_blob_properties()
        except NotFound:
            return None
        if is_discarded(found):
            await self.remove(key, str(found.etag))
        return found if is_object(found) else None

    async def remove(self, key: str, etag: str) -> bool:
        """Delete the blob if it is still that one. False if it is gone, or another."""
        try:
            async with self.call("delete", key):
                failpoint("azure.remove.before")
                await self.blob(key).delete_blob(etag=etag, match_condition=MatchConditions.IfNotModified)
                failpoint("azure.remove.after")
        except (NotFound, Conflict):
            return False
        return True

    async def listing(self, prefix: str, *include: str) -> AsyncGenerator[BlobProperties, None]:
        """All blobs, 1,000 a request, in the service's order; `include` as the service names it."""
        # A page of the largest size, 5,000, is parsed on the event loop for a good part of a second.
        pages = self._client.list_blobs(
            name_starts_with=prefix or None, include=[*include], results_per_page=1_000
        )
        blobs = aiter(pages)
        while True:
            async with self.call("list", prefix):
                found = await anext(blobs, None)
            if found is None:
                return
            yield found

    async def objects(self, prefix: str) -> AsyncGenerator[BlobProperties, None]:
        """Those of the listing that are objects, in the order of their keys.

        The service may order by UTF-16, where characters beyond U+FFFF come before U+E000: keys with such a character are
        held back until their turn by code point has come. In the prefix, which all have, it does no harm.
        """
        held: list[tuple[str, BlobProperties]] = []
        async for found in self.listing(prefix, "metadata", "copy"):
            if not is_object(found):
                continue
            if any(character > "\uffff" for character in found.name[len(prefix) :]):
                heapq.heappush(held, (found.name, found))
                continue
            while held and held[0][0] < found.name:
                yield heapq.heappop(held)[1]
            yield found
        while held:
            yield heapq.heappop(held)[1]

    async def is_write_once(self) -> bool:
        """Whether blobs cannot be deleted here, or it cannot be told: a signature for one container may not ask."""
        try:
            async with self.call("read the policies of", ""):
                found = await self._client.get_container_properties()
        except PermissionDenied:
            return True
        return bool(
            found.has_immutability_policy
            or found.has_legal_hold
            or found.immutable_storage_with_versioning_enabled
        )

    async def health(self) -> None:
        """Ask for the first blob: the endpoint answers, the container exists, the credential may list it."""
        name, account = self._options.container, self._options.account_name
        try:
            async with self.call("list", ""):
                await anext(aiter(self._client.list_blobs(results_per_page=1)), None)
        except PermissionDenied as exc:
            raise PermissionDenied(
                f"{exc}; on container {name} the credential needs to list, read, write and delete: "
                "the role Storage Blob Data Contributor"
            ) from exc
        except Unavailable as exc:
            if error_code(exc.__cause__) != "ContainerNotFound":
                raise
            raise NotFound(
                f"container {name} does not exist; create it with: "
                f"az storage container create --account-name {account} --name {name}"
            ) from exc


def location_of(options: AzureOptions) -> str:
    """`azure://account/container/`."""
    return f"azure://{options.account_name}/{options.container}/"
