"""Runs the suite of storage backends against OpenSSH, and what is about commits without any of its extensions."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from backends.base import StorageBackend
from backends.sftp import SFTPBackend
from backends.sftp_commit import Commit
from backends.sftp_transfer import Upload
from backends.testing import BackendConformance, Truth
from backends.testing.atomicity import Atomicity
from backends.testing.upkeep import Upkeep
from tests.support.openssh import OwnSshd


class Sshd(Truth):
    many = 330
    """More than the hundred names of one answer in each of its three directories."""

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        assert isinstance(backend, SFTPBackend)
        async with backend._pool.session() as session:
            upload = Upload(backend._tree, session, key)
            await upload.append(b"half")
            await upload._close()
        return 1

    async def fill(self, backend: StorageBackend, keys: Sequence[str]) -> None:
        """On the server's disk, which is ours."""
        assert isinstance(backend, SFTPBackend)
        for key in keys:
            path = Path(backend._tree.root) / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")


class TestSFTPBackend(Sshd, BackendConformance):
    @pytest.fixture
    async def backend(self, openssh: Mapping[str, OwnSshd]) -> AsyncIterator[StorageBackend]:
        backend = await SFTPBackend.connect(openssh["full"].options())
        assert backend._how is Commit.LINK
        yield backend
        await backend.aclose()


class TestSFTPBackendWithoutExtensions(Sshd, Atomicity, Upkeep):
    @pytest.fixture
    async def backend(self, openssh: Mapping[str, OwnSshd]) -> AsyncIterator[StorageBackend]:
        backend = await SFTPBackend.connect(openssh["bare"].options())
        assert backend._how is Commit.RENAME
        yield backend
        await backend.aclose()
