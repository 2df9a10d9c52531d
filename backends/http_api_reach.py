"""How far requests to an HTTP API reach: the connections they are sent over, and the redirects that are followed.

Called by backends/http_api_client.py only. docs/adr/0022-addresses.md says why it is so.
"""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase

import aiohttp
from yarl import URL

from backends.addresses import Judge
from backends.base import CHUNK_SIZE
from backends.errors import StorageError
from backends.http_api_options import HttpOptions

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


async def connections(
    options: HttpOptions, stack: AsyncExitStack
) -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
    """Two pools, closed by `stack`: one for the API, and one for other origins, which knows nothing of the API.

    Raises `StorageError` for an unusable `ca_file`.
    """
    try:
        trusted = await asyncio.to_thread(ssl.create_default_context, cafile=options.ca_file)
    except OSError as exc:
        raise StorageError(f"the certificates of {options.ca_file} cannot be read: {exc.strerror}") from exc
    home = Judge.of(URL(options.base_url).raw_host or "", options.allow_networks)
    # A redirect is the API's word, not the operator's: no name is trusted to lead to a private address.
    elsewhere = Judge(options.allow_networks)
    return (
        await stack.enter_async_context(_session(options, trusted, home)),
        await stack.enter_async_context(_session(options, trusted, elsewhere)),
    )


def _session(options: HttpOptions, trusted: ssl.SSLContext, judge: Judge) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=options.max_connections,
            ssl=trusted if options.verify_tls else False,
            socket_factory=judge.socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=options.total_timeout, sock_connect=options.connect_timeout),
        # What is stored is what was sent: an answer is never unpacked here, and none is asked for packed.
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "transload"},
        read_bufsize=CHUNK_SIZE,
    )


def redirected(response: aiohttp.ClientResponse, target: URL, hosts: Sequence[str]) -> URL | None:
    """Where a redirect leads, if that is within the origin or one of `hosts`; None where it is not followed.

    `hosts` are patterns of names, with the port where it is not the scheme's own. From https only https is followed, and a
    URL with credentials never.
    """
    location = response.headers.get("Location")
    if response.status not in _REDIRECTS or not location:
        return None
    try:
        there = target.join(URL(location))
        if there.user is not None or there.password is not None:
            return None
        if there.origin() == target.origin():
            return there
    except ValueError:
        return None
    if there.scheme != "https" and (target.scheme, there.scheme) != ("http", "http"):
        return None
    host = there.raw_host or ""
    name = host if there.is_default_port() else f"{host}:{there.port}"
    return there if any(fnmatchcase(name, pattern.lower()) for pattern in hosts) else None
