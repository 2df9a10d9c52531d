"""Archives on real stores whose pools are as small as they may be: reading and writing at once blocks none of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from backends.base import StorageBackend
from backends.hdfs import HdfsBackend
from backends.s3 import S3Backend
from backends.sftp import SFTPBackend
from handlers.layouts import FolderLayout, ObjectLayout
from handlers.naming import resource_name
from tests.support.archiving import Killed, Watched, listed, open_world, unpacked
from tests.support.hdfs import HdfsCluster
from tests.support.localstack import LocalStackEndpoint
from tests.support.openssh import OwnSshd
from tests.support.postgres_target import opened, postgres_options
from tests.support.postgresql import PostgresqlServer
from tests.support.s3 import new_bucket, s3_options

PAYLOADS = {
    "https://example.com/page.html": b"<html>" * 500,
    "https://example.com/empty": b"",
    "https://example.com/large.bin": bytes(range(256)) * (11 << 12),
}
FILES = {resource_name(url): data for url, data in PAYLOADS.items()}
PATIENCE = 60.0


@pytest.fixture(params=["s3", "sftp", "postgres", "hdfs"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[StorageBackend]:
    """With one connection, where that is enough."""
    async with AsyncExitStack() as stack:
        if request.param == "s3":
            localstack: LocalStackEndpoint = request.getfixturevalue("localstack")
            options = s3_options(
                localstack, await new_bucket(localstack), part_size=5 << 20, max_connections=1
            )
            backend: StorageBackend = await S3Backend.connect(options)
            stack.push_async_callback(backend.aclose)
        elif request.param == "sftp":
            servers: Mapping[str, OwnSshd] = request.getfixturevalue("openssh")
            backend = await SFTPBackend.connect(
                servers["full"].options(max_connections=1, channels_per_connection=1)
            )
            stack.push_async_callback(backend.aclose)
        elif request.param == "postgres":
            postgresql: PostgresqlServer = request.getfixturevalue("postgresql")
            url = await stack.enter_async_context(postgresql.database(migrated=False))
            backend = await stack.enter_async_context(opened(postgres_options(url, max_connections=1)))
        else:
            hdfs: HdfsCluster = request.getfixturevalue("hdfs")
            backend = await stack.enter_async_context(hdfs.backend(max_connections=2))
        yield backend


async def test_it_is_written_and_found_again(store: StorageBackend, tmp_path: Path) -> None:
    target = Watched(store)
    layout = ObjectLayout("p") if store.features.attributes else FolderLayout("p")
    async with open_world(tmp_path, {"main": target}, layout=layout) as world, asyncio.timeout(PATIENCE):
        await world.store(PAYLOADS)
        target.dies_after = ".zip"
        with pytest.raises(Killed):
            await world.relay(lease=0).announce_due()
        target.dies_after = ""
        await world.relay().announce_due()
        data, place = await world.archive(), await world.place()
        assert unpacked("zip", data) == FILES
        assert (await world.manifest())["archive"] == listed(data, place.archive_key, "zip")
        made = [receipt.created for receipt in target.written if receipt.key == place.archive_key]
        assert made == [True, False]
        if store.features.attributes:
            there = await store.stat(place.archive_key)
            assert there is not None
            assert there.content_type == "application/zip"


async def test_hdfs_without_a_connection_to_spare_gives_up(hdfs: HdfsCluster, tmp_path: Path) -> None:
    """The configuration refuses that few; should it come to it, nothing hangs."""
    async with hdfs.backend() as wide, AsyncExitStack() as stack:
        targets: dict[str, StorageBackend] = {"main": wide}
        world = await stack.enter_async_context(open_world(tmp_path, targets, layout=FolderLayout("p")))
        await world.store(PAYLOADS)
        options = hdfs.options(
            wide._client.options.root, max_connections=1, connect_timeout=0.5, read_timeout=0.5
        )
        world.targets["main"] = narrow = await HdfsBackend.connect(options)
        stack.push_async_callback(narrow.aclose)
        async with asyncio.timeout(PATIENCE):
            await world.relay().announce_due()
        assert "Timeout" in await world.postponed()
        world.targets["main"] = wide
        await world.relay().announce_due()
        assert unpacked("zip", await world.archive()) == FILES
