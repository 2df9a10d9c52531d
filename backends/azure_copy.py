"""One copy inside a storage account, by Copy Blob. Called by backends/azure.py only.

Within an account the service ends a copy at once as a rule; where it says `pending`, the target is a blob that is not yet
whole. This adapter's readers do not see it (`is_object`), others do.
https://learn.microsoft.com/rest/api/storageservices/copy-blob
"""

import asyncio
from urllib.parse import urlsplit

from azure.core import MatchConditions
from azure.storage.blob import BlobProperties, ContentSettings

from backends.azure_container import Container
from backends.azure_metadata import content_md5
from backends.cancellation import to_the_end
from backends.errors import Conflict, IntegrityError, NotFound, StorageError, Unavailable
from backends.failpoints import failpoint

_POLL_SECONDS = 0.5


class Copying:
    """From one blob, as it was when it was looked at, to another."""

    def __init__(
        self, source_url: str, original: BlobProperties, container: Container, key: str, patience: float
    ) -> None:
        """`source_url` carries a signature where that is the credential; `patience` is how many seconds a pending copy may take."""
        self._source_url = source_url
        self._original = original
        self._container = container
        self._key = key
        self._target = container.blob(key)
        self._patience = patience

    async def run(self, metadata: dict[str, str], settings: ContentSettings) -> tuple[str, str | None]:
        """Copy if the key is free. Returns etag and version of the copy.

        Raises `Conflict` when the key is taken, `Unavailable` when the source has changed meanwhile.
        """
        async with self._container.call("copy to", self._key):
            failpoint("azure.copy.before")
            started = await self._target.start_copy_from_url(
                self._source_url,
                metadata=metadata,
                source_etag=self._original.etag,
                source_match_condition=MatchConditions.IfNotModified,
                match_condition=MatchConditions.IfMissing,
            )
            failpoint("azure.copy.after")
        try:
            copy = await self._finished(str(started["copy_id"]))
            if copy.size != self._original.size or content_md5(copy) != content_md5(self._original):
                await self._container.remove(self._key, str(copy.etag))
                raise IntegrityError(
                    f"the copy to {self._container.location}{self._key} is not what was copied"
                )
        except BaseException as exc:
            await to_the_end(self._give_up(str(started["copy_id"]), exc))
            raise
        etag = await self.settle(copy, settings)
        version = started.get("version_id")
        return etag, None if version is None else str(version)

    async def settle(self, copy: BlobProperties, settings: ContentSettings) -> str:
        """Give a copy of this source its own content type, which Copy Blob cannot; the etag it has then.

        The service forgets where a blob came from once that is done, so one that a killed writer left half way is known.
        """
        kind = settings.content_type
        if kind is None or kind == copy.content_settings.content_type or not self._is_copied(copy):
            return str(copy.etag)
        try:
            async with self._container.call("set the content type of", self._key):
                failpoint("azure.settle.before")
                answer = await self._target.set_http_headers(
                    settings, etag=copy.etag, match_condition=MatchConditions.IfNotModified
                )
                failpoint("azure.settle.after")
        except Conflict as exc:
            # Another delivery of the same message does it at this moment: no other content.
            raise Unavailable(f"{exc}; it changed meanwhile") from exc
        return str(answer["etag"])

    def _is_copied(self, copy: BlobProperties) -> bool:
        # Without the query: it may hold a signature.
        return urlsplit(copy.copy.source or "").path == urlsplit(self._source_url).path

    async def _finished(self, copy_id: str) -> BlobProperties:
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            async with self._container.call("look up", self._key):
                copy = await self._target.get_blob_properties()
            if copy.copy.id != copy_id:
                raise Unavailable(f"the copy to {self._container.location}{self._key} was replaced meanwhile")
            status: object = copy.copy.status
            if status == "success":
                return copy
            if status != "pending" or asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"the copy to {self._container.location}{self._key} is {status}, not done")
            await asyncio.sleep(_POLL_SECONDS)

    async def _give_up(self, copy_id: str, cause: BaseException) -> None:
        """Stop a copy that is still pending and take away what it leaves; one that has succeeded stays."""
        try:
            async with self._container.call("look up", self._key):
                copy = await self._target.get_blob_properties()
            status: object = copy.copy.status
            if copy.copy.id != copy_id or status == "success":
                return
            if status == "pending":
                async with self._container.call("abort the copy to", self._key):
                    failpoint("azure.abort.before")
                    await self._target.abort_copy(copy_id)
                    failpoint("azure.abort.after")
                async with self._container.call("look up", self._key):
                    copy = await self._target.get_blob_properties()
            await self._container.remove(self._key, str(copy.etag))
        except NotFound:
            return
        except StorageError as exc:
            cause.add_note(f"{exc}; a sweep has to remove it")
