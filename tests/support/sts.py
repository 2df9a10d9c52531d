"""An STS that gives out credentials as short-lived as a test wants, and an S3 that takes nothing but them; in memory.

LocalStack's sessions last a quarter of an hour at least, and its S3 looks at no key. Used by tests/unit/test_aws_session.py.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aiohttp import web

from tests.support.s3_faults import error_document
from tests.support.strict_s3 import StrictS3

_KEY = re.compile(r"Credential=([^/]+)/")
_ANSWER = """<{0}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{0}Result><Credentials>
<AccessKeyId>{1}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>token of {1}</SessionToken>
<Expiration>{2}</Expiration></Credentials></{0}Result></{0}Response>"""
_REFUSAL = "<ErrorResponse><Error><Type>Sender</Type><Code>{}</Code><Message>token=secret</Message></Error></ErrorResponse>"


@dataclass(slots=True)
class ShortLived:
    """What the tests set and see."""

    store: StrictS3
    lifetime: float
    """Seconds of every session, as STS tells them."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The parameters of every request to STS."""
    valid: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)
    """The access key of every request to S3."""
    refusals: list[tuple[int, str]] = field(default_factory=list)
    """Status and code of the next answers of STS."""

    part_stored: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a part of an upload lies there."""

    def expire(self) -> None:
        """End every session there is."""
        self.valid.clear()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST" and request.path == "/":
            return self._session({name: str(value) for name, value in (await request.post()).items()})
        found = _KEY.search(request.headers.get("Authorization", ""))
        key = found[1] if found else ""
        self.seen.append(key)
        if key not in self.valid or request.headers.get("x-amz-security-token") != f"token of {key}":
            return web.Response(status=400, text=error_document("ExpiredToken"))
        answer = await self.store.handle(request)
        if "partNumber" in request.query:
            self.part_stored.set()
        return answer

    def _session(self, wanted: dict[str, str]) -> web.Response:
        self.asked.append(wanted)
        if self.refusals:
            status, code = self.refusals.pop(0)
            return web.Response(status=status, text=_REFUSAL.format(code))
        key = f"ASIA{len(self.asked)}"
        self.valid.add(key)
        end = datetime.now(UTC) + timedelta(seconds=self.lifetime)
        return web.Response(text=_ANSWER.format(wanted["Action"], key, end.isoformat()))


@asynccontextmanager
async def short_lived(lifetime: float) -> AsyncIterator[ShortLived]:
    """Both at the `url` of the store, which has one bucket called `bucket`."""
    both = ShortLived(StrictS3(buckets={"bucket": {}}), lifetime)
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", both.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        both.store.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield both
    finally:
        await runner.cleanup()
