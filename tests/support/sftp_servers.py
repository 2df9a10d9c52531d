"""SFTP servers that are not OpenSSH, in this process: plain drafts with manners good and bad. Used by tests of the SFTP backend."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.sftp import SFTPServerHandler

from backends.sftp_client import SFTPOptions

PASSWORD = "s3cret-p4ssword"


class Polite(asyncssh.SFTPServer):
    """Looks whether the name is taken and then renames, as many do. What can be asked for of it is only the draft's."""


class Replacing(asyncssh.SFTPServer):
    """Breaks the draft: its rename replaces."""

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        Path(os.fsdecode(oldpath)).replace(os.fsdecode(newpath))


class Stingy(asyncssh.SFTPServer):
    """Answers with fewer bytes than it is asked for, as the draft allows."""

    def read(self, file_obj: object, offset: int, size: int) -> Any:
        return super().read(file_obj, offset, max(1, size // 3))


class Forgetful(asyncssh.SFTPServer):
    """Says that it wrote what it did not."""

    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        super().write(file_obj, offset, data[:-1])
        return len(data)


class _WithPassword(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("somebody", PASSWORD)


@asynccontextmanager
async def served(
    kind: type[asyncssh.SFTPServer], root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> AsyncIterator[SFTPOptions]:
    """Options that reach a server of that kind, which offers no extension and takes a password."""
    monkeypatch.setattr(SFTPServerHandler, "_extensions", [])
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        server_factory=_WithPassword,
        sftp_factory=kind,
        config=None,
    )
    wanted: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": server.get_port(),
        "username": "somebody",
        "password": PASSWORD,
        "root": str(root),
        "host_key": host_key.export_public_key().decode().strip(),
    }
    try:
        yield SFTPOptions(**{**wanted, **changes})
    finally:
        server.close()
        await server.wait_closed()
