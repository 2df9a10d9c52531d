"""An object in one request. Called by backends/s3.py only.

obstore sends it, ten times cheaper than aiobotocore (docs/adr/0003-s3-data-plane.md), except with a checksum that it cannot send or of
which the store's answer has to be seen.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import obstore
from obstore.store import S3Store

from backends.base import Attributes
from backends.failpoints import failpoint
from backends.s3_checksums import Proof
from backends.s3_client import S3Options
from backends.s3_metadata import fields_for, headers_for


class Put:
    """Of one bucket."""

    def __init__(self, client: Any, store: S3Store, options: S3Options) -> None:
        """As `clients` of s3_client.py gives them; they stay the caller's to close."""
        self._client = client
        self._store = store
        self._options = options

    async def send(
        self, key: str, body: bytes, attributes: Attributes, proof: Proof, *, conditional: bool
    ) -> Mapping[str, Any]:
        """What the store answers, as botocore tells it. With `conditional` the store refuses a key that is taken."""
        if self._options.checksums not in {"when_supported", "when_required"}:
            return await self._named(key, body, attributes, proof, conditional=conditional)
        failpoint("s3.put.before")
        answer = await obstore.put_async(
            self._store,
            key,
            body,
            attributes=fields_for(attributes, self._options.storage_class),
            mode="create" if conditional else "overwrite",
            use_multipart=False,
        )
        failpoint("s3.put.after")
        return {"ETag": answer["e_tag"], "VersionId": answer["version"]}

    async def _named(
        self, key: str, body: bytes, attributes: Attributes, proof: Proof, *, conditional: bool
    ) -> Mapping[str, Any]:
        """With the checksum that the options name."""
        checksum = await asyncio.to_thread(proof.sent, 1, body)
        named = {**headers_for(attributes), **self._options.placement, **checksum}
        condition = {"IfNoneMatch": "*"} if conditional else {}
        failpoint("s3.put_named.before")
        answer: Mapping[str, Any] = await self._client.put_object(
            Bucket=self._options.bucket, Key=key, Body=body, **named, **condition
        )
        failpoint("s3.put_named.after")
        return answer
