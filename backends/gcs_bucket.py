"""What is known and done of single objects in one bucket, between the port and the requests. Used by backends/gcs.py only."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from backends.errors import Conflict, IntegrityError, NotFound, StorageError, Unavailable
from backends.failpoints import failpoint
from backends.gcs_client import JSON, GcsClient
from backends.gcs_errors import translated
from backends.gcs_resources import DIGEST, described, digest_of

Resource = Mapping[str, Any]
"""An object as GCS describes it."""


class GcsBucket:
    """A bucket by its name."""

    def __init__(self, client: GcsClient, name: str) -> None:
        self.client = client
        self.name = name

    @property
    def location(self) -> str:
        """`gs://bucket/`."""
        return f"gs://{self.name}/"

    def url(self, *path: str, **query: str | int | list[str]) -> str:
        """`url("o", key)`: what is asked of an object."""
        return self.client.url("storage/v1", "b", self.name, *path, **query)

    async def look(self, key: str) -> Resource | None:
        """The object, None when there is none."""
        doing = f"look up {self.location}{key}"
        try:
            return described(await self.client.json("GET", self.url("o", key), doing), doing)
        except NotFound:
            return None

    async def equal(self, key: str, size: int, crc32c: str, sha256: str) -> Resource | None:
        """What lies under `key`, None if nothing does. Raises `Conflict` when it is something else.

        Size and CRC32C are the store's own word. With them the noted SHA-256 is believed; without a note the bytes are read.
        """
        there = await self.look(key)
        if there is None:
            return None
        same = int(there["size"]) == size and there.get("crc32c") in {None, crc32c}
        if same and (digest_of(there) != sha256 or "crc32c" not in there):
            digest = hashlib.sha256()
            doing = f"compare {self.location}{key}"
            url = self.url("o", key, alt="media", generation=there["generation"])
            try:
                async with self.client.media(url, doing) as (_, chunks):
                    async for chunk in chunks:
                        digest.update(chunk)
            except NotFound:
                return None
            same = digest.hexdigest() == sha256
        if not same:
            raise Conflict(
                f"{self.location}{key} holds other content ({there['size']} bytes); it was left as it is"
            )
        return there

    async def prove(self, made: Resource, crc32c: str, doing: str) -> None:
        """The store's own checksum of what it made, or the object is taken away again."""
        if made.get("crc32c") == crc32c:
            return
        with translated(f"undo: {doing}"):
            failpoint("gcs.undo.before")
            url = self.url("o", made["name"], ifGenerationMatch=made["generation"])
            with suppress(NotFound, Conflict):
                await self.client.call("DELETE", url, f"undo: {doing}")
            failpoint("gcs.undo.after")
        raise IntegrityError(
            f"GCS could not {doing}: it has CRC32C {made.get('crc32c')} instead of {crc32c}; it was removed"
        )

    async def note(self, key: str, made: Resource, sha256: str, doing: str) -> None:
        """Note the digest of an object whose bytes were not all known when its description was sent. Tried once: it may lack."""
        url = self.url("o", key, ifGenerationMatch=made["generation"])
        noted = {**made.get("metadata", {}), DIGEST: sha256}
        with suppress(StorageError), translated(doing):
            failpoint("gcs.note.before")
            await self.client.once("PATCH", url, doing, json.dumps({"metadata": noted}).encode(), JSON)
            failpoint("gcs.note.after")

    async def rewrite(self, origin: "GcsBucket", there: Resource, resource: Resource, doing: str) -> Resource:
        """Ask until the store is done: a large object, or one that changes its place, takes several calls."""
        path = ("o", there["name"], "rewriteTo", "b", self.name, "o", resource["name"])
        more: dict[str, str] = {}
        while True:
            url = origin.url(*path, sourceGeneration=there["generation"], ifGenerationMatch=0, **more)
            with translated(doing):
                failpoint("gcs.rewrite.before")
                answer = await self.client.json("POST", url, doing, resource)
                failpoint("gcs.rewrite.after")
            if answer.get("done"):
                return described(answer.get("resource"), doing)
            if not answer.get("rewriteToken"):
                raise Unavailable(f"GCS could not {doing}: it neither ends nor goes on")
            more = {"rewriteToken": answer["rewriteToken"]}
