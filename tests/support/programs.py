"""Python programs beside a test, for its event loop: forked (tests/support/warm.py), with pipes to what they read and write.

program = await begin("-c", CODE, "argument")
assert await program.stdout.readline() == b"ready\n"
"""

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import IO

from tests.support import warm


@dataclass(frozen=True, slots=True)
class Program:
    """One of them. Its standard error is the test's."""

    process: warm.Process
    stdin: IO[bytes]
    stdout: asyncio.StreamReader
    _reading: asyncio.BaseTransport

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    async def wait(self) -> int:
        """Its exit status, negative for the signal that ended it."""
        self.stdin.close()
        try:
            return await asyncio.to_thread(self.process.wait)
        finally:
            self._reading.close()

    async def communicate(self) -> tuple[bytes, int]:
        """The rest of what it writes, and its exit status."""
        self.stdin.close()
        said = await self.stdout.read()
        return said, await self.wait()

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()


async def begin(*arguments: str) -> Program:
    """Start `python ARGUMENTS…`; whoever starts it waits for it."""
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    stdout = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    reading, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(ours_out, "rb", buffering=0)
    )
    stdin = os.fdopen(ours_in, "wb", buffering=0)
    try:
        process = warm.start(
            [sys.executable, *arguments], os.environ, stdin=theirs_in, stdout=theirs_out, stderr=2
        )
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return Program(process, stdin, stdout, reading)
