"""What the proxy of the fault tests does to a connection, seen from both ends."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from tests.support.processes import free_port
from tests.support.toxics import Proxy

GRACE = 10.0


@dataclass
class Echo:
    """A server that answers every line with `> ` and the line, and remembers what it got."""

    port: int = 0
    lines: list[bytes] = field(default_factory=list)
    ends: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """How connections ended: `fin` or `rst`."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.lines.append(line)
                writer.write(b"> " + line)
                await writer.drain()
            self.ends.put_nowait("fin")
        except ConnectionError:
            self.ends.put_nowait("rst")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy.to("127.0.0.1", echo.port) as proxy:
        yield proxy


class Client:
    """A client of lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, line: bytes) -> bytes:
        """One line there and one back; empty when the connection ended with FIN."""
        self.writer.write(line + b"\n")
        await self.writer.drain()
        return await self.answer()

    async def answer(self) -> bytes:
        async with asyncio.timeout(GRACE):
            return (await self.reader.readline()).removesuffix(b"\n")


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    yield client
    client.writer.close()
    with suppress(OSError):
        await client.writer.wait_closed()


async def test_without_toxics_everything_passes(proxy: Proxy, client: Client, echo: Echo) -> None:
    assert await client.ask(b"one") == b"> one"
    assert await client.ask(b"x" * 50_000) == b"> " + b"x" * 50_000
    client.writer.write_eof()
    assert await client.answer() == b""
    assert await echo.ends.get() == "fin"
    assert proxy.accepted == 1


async def test_a_reset_is_seen_as_one_by_both(proxy: Proxy, client: Client, echo: Echo) -> None:
    await client.ask(b"one")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await client.answer()
    assert await echo.ends.get() == "rst"


async def test_a_cut_is_an_orderly_end_to_both(proxy: Proxy, client: Client, echo: Echo) -> None:
    await client.ask(b"one")
    proxy.cut()
    assert await client.answer() == b""
    assert await echo.ends.get() == "fin"
    # What is still sent is taken and goes nowhere.
    assert await client.ask(b"two") == b""
    assert echo.lines == [b"one\n"]


async def test_a_black_hole_takes_everything_and_gives_nothing(
    proxy: Proxy, client: Client, echo: Echo
) -> None:
    await client.ask(b"one")
    proxy.black_hole()
    later = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    for each in (client, later):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(each.ask(b"two" * 100_000), 0.2)
    assert echo.lines == [b"one\n"]
    proxy.heal()
    for each in (client, later):
        with pytest.raises(ConnectionResetError):
            await each.answer()
        each.writer.close()
    again = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await again.ask(b"three") == b"> three"
    again.writer.close()
    await again.writer.wait_closed()


async def test_a_black_hole_for_replies_lets_the_request_arrive(
    proxy: Proxy, client: Client, echo: Echo
) -> None:
    proxy.black_hole("replies")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.ask(b"one"), 0.2)
    assert echo.lines == [b"one\n"]


async def test_a_lost_reply_is_one_whose_request_was_carried_out(
    proxy: Proxy, client: Client, echo: Echo
) -> None:
    lost = proxy.drop_reply(lambda said: b"commit" in said)
    assert await client.ask(b"begin") == b"> begin"
    with pytest.raises(ConnectionResetError):
        await client.ask(b"commit")
    assert lost.is_set()
    assert echo.lines == [b"begin\n", b"commit\n"]
    again = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    assert await again.ask(b"commit") == b"> commit"
    again.writer.close()
    await again.writer.wait_closed()


async def test_a_request_is_recognised_across_chunks_but_not_across_replies(
    proxy: Proxy, client: Client, echo: Echo
) -> None:
    lost = proxy.drop_reply(lambda said: b"ab" in said)
    assert await client.ask(b"a") == b"> a"
    assert await client.ask(b"b") == b"> b"
    client.writer.write(b"a")
    await client.writer.drain()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionResetError):
        await client.ask(b"b")
    assert lost.is_set()
    assert echo.lines[-1] == b"ab\n"


async def test_the_reset_waits_for_the_reply_that_is_meant(proxy: Proxy, client: Client) -> None:
    lost = proxy.drop_reply(lambda said: b"one" in said, lambda answered: b"> two" in answered)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.ask(b"one"), 0.2)
    assert not lost.is_set()
    with pytest.raises(ConnectionResetError):
        await client.ask(b"two")
    assert lost.is_set()


async def test_down_refuses_and_up_is_the_same_port(proxy: Proxy, client: Client) -> None:
    await client.ask(b"one")
    port = proxy.port
    await proxy.down()
    with pytest.raises(ConnectionResetError):
        await client.answer()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await proxy.up()
    assert proxy.port == port
    again = Client(*await asyncio.open_connection("127.0.0.1", port))
    assert await again.ask(b"two") == b"> two"
    again.writer.close()
    await again.writer.wait_closed()


async def test_latency_and_rate_hold_back_until_they_are_taken_away(proxy: Proxy, client: Client) -> None:
    proxy.slow("requests", latency=3600.0)
    asking = asyncio.create_task(client.ask(b"one"))
    assert not (await asyncio.wait([asking], timeout=0.1))[0]
    proxy.slow("requests")
    assert await asking == b"> one"
    proxy.slow("replies", rate=0.001)
    asking = asyncio.create_task(client.ask(b"two"))
    assert not (await asyncio.wait([asking], timeout=0.1))[0]
    proxy.heal()
    assert await asking == b"> two"


async def test_a_rate_lets_a_stream_trickle(proxy: Proxy, client: Client) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    proxy.slow("replies", rate=10_000.0)
    assert len(await client.ask(b"x" * 2_000)) == 2_002
    assert loop.time() - begun >= 0.2


async def test_a_server_that_is_not_there_is_a_reset_and_may_come_later(echo: Echo) -> None:
    port = free_port()
    async with Proxy.to("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        server = await asyncio.start_server(echo.serve, "127.0.0.1", port)
        client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
        assert await client.ask(b"one") == b"> one"
        assert proxy.connections == 1
        client.writer.close()
        server.close()


async def test_a_child_process_may_be_the_client(proxy: Proxy) -> None:
    code = (
        "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10); "
        "s.sendall(b'one\\n'); print(s.recv(100).decode(), end='')"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(proxy.port)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "> one\n"
