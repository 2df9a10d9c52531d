"""What is particular to PostgreSQL as a target: its tables, its connections, and the failures that only a database has."""

import asyncio
import hashlib
import secrets
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import make_url

from backends.base import CHUNK_SIZE, Attributes, Promise, single
from backends.errors import (
    Conflict,
    IntegrityError,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.postgres import PostgresBackend
from backends.postgres_client import PostgresOptions
from backends.postgres_upload import Upload
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres_target import ask, opened, postgres_options
from tests.support.postgresql import PostgresqlServer, in_thread
from tests.support.programs import begin
from tests.support.toxics import Direction, Proxy

SMALL = 64 << 10
NOTHING = Attributes()
WHOLE = b"".join(number.to_bytes(4, "big") * 20_000 for number in range(5))
"""Seven chunks of the smallest size."""


class Meddler(Proxy):
    """Loses or damages a request as well."""

    lose = b""
    """The connection breaks instead of the request that holds this reaching the server. Once."""
    flip = b""
    """A bit of this changes on its way. Once."""

    async def _pieces(self, direction: Direction, data: bytes) -> AsyncIterator[bytes]:
        if self.lose and self.lose in data:
            self.lose = b""
            raise ConnectionResetError
        if self.flip and self.flip in data:
            start, self.flip = data.index(self.flip), b""
            data = data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]
        async for piece in super()._pieces(direction, data):
            yield piece

    async def down(self) -> None:
        """Connections end by themselves first: one that is cancelled while it closes leaves its other half open."""
        self.reset()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        await super().down()


@pytest.fixture(scope="module")
def database(postgresql: PostgresqlServer) -> Iterator[str]:
    """The URL of a database in which every test has a schema of its own."""
    name = f"t_{secrets.token_hex(6)}"
    in_thread(postgresql.run(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield postgresql.url_of(name)
    in_thread(postgresql.run(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def options(database: str) -> PostgresOptions:
    return postgres_options(database, chunk_size=SMALL)


@pytest.fixture
async def backend(options: PostgresOptions) -> AsyncIterator[PostgresBackend]:
    async with opened(options) as backend:
        yield backend


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Meddler]:
    url = make_url(database)
    async with Meddler.to(str(url.host), url.port or 5432) as proxy:
        yield proxy


def by_way_of(proxy: Meddler, options: PostgresOptions, **changes: object) -> PostgresOptions:
    where = {"host": "127.0.0.1", "port": proxy.port, "sslmode": "disable", "create_tables": False}
    return options.model_copy(update={**where, **changes})


def stream(data: bytes = WHOLE, size: int = 10_000) -> AsyncIterator[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return chunks()


async def content(backend: PostgresBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def drained(chunks: AsyncIterator[bytes], into: list[bytes] | None = None) -> None:
    async for chunk in chunks:
        if into is not None:
            into.append(chunk)


async def keys(backend: PostgresBackend) -> list[str]:
    return [found.key async for found in backend.list()]


async def counts(url: str, options: PostgresOptions) -> tuple[int, int]:
    """Rows of `objects` and of `chunks`, whoever they belong to."""
    tables = (f"{options.schema_name}.{table}" for table in ("objects", "chunks"))
    return tuple([(await ask(url, f"SELECT count(*) FROM {table}"))[0][0] for table in tables])  # noqa: S608 - a name of ours


class TestTables:
    async def test_without_them_the_error_says_how_to_make_them(self, database: str) -> None:
        options = postgres_options(database, create_tables=False)
        with pytest.raises(StorageError, match="create_tables: true") as raised:
            await PostgresBackend.connect(options)
        _, _, statements = str(raised.value).partition("or run: ")
        await ask(database, f"DO $do$ BEGIN {statements} END $do$")
        async with opened(options) as backend:
            assert (await backend.write("k", stream(), NOTHING)).created
            assert await content(backend, "k") == WHOLE

    async def test_workers_that_start_together_make_them_once(self, database: str) -> None:
        options = postgres_options(database)
        backends = await asyncio.gather(*(PostgresBackend.connect(options) for _ in range(6)))
        await asyncio.gather(*(each.write(f"k{n}", stream(), NOTHING) for n, each in enumerate(backends)))
        assert len(await keys(backends[0])) == 6
        for each in backends:
            await each.aclose()

    async def test_a_schema_that_is_there_is_used(self, database: str) -> None:
        options = postgres_options(database)
        await ask(database, f"CREATE SCHEMA {options.schema_name}")
        async with opened(options) as backend:
            await backend.health()

    async def test_a_row_tells_the_facts_of_an_object(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        receipt = await backend.write("a/b", stream(), Attributes("text/plain", {"url": "https://x/ü"}))
        (row,) = await ask(database, f"SELECT * FROM {options.schema_name}.objects")  # noqa: S608 - a name of ours
        assert (row["key"], row["size"], row["content_type"]) == ("a/b", len(WHOLE), "text/plain")
        assert row["sha256"].hex() == receipt.sha256
        assert row["metadata"] == '{"url": "https://x/ü"}'
        assert (str(row["uuid"]), row["storage_version"]) == (receipt.version, 1)
        assert row["created_at"] < row["stored_at"]

    async def test_an_object_can_be_read_with_sql(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        await backend.write("k", stream(), NOTHING)
        statement = """SELECT string_agg(data, '' ORDER BY number) FROM {0}.objects JOIN {0}.chunks ON object = uuid
            WHERE key = 'k' AND stored_at IS NOT NULL"""
        ((read,),) = await ask(database, statement.format(options.schema_name))
        assert read == WHOLE

    async def test_what_json_cannot_hold_is_replaced(self, backend: PostgresBackend) -> None:
        await backend.write("k", single(b"x"), Attributes("te\0xt", {"na\0me": "va\ud800lue\0"}))
        stat = await backend.stat("k")
        assert stat is not None
        assert (stat.content_type, dict(stat.metadata)) == ("te\ufffdxt", {"na\ufffdme": "va?lue\ufffd"})

    async def test_a_prefix_that_no_key_can_have_lists_nothing(self, backend: PostgresBackend) -> None:
        await backend.write("k", single(b"x"), NOTHING)
        for prefix in ("\0", "k\0", "\ud800"):
            assert [found async for found in backend.list(prefix)] == []
            assert await backend.sweep(0.0, prefix) == 0

    async def test_chunks_of_any_size_are_read_in_the_ports_chunks(self, database: str) -> None:
        options = postgres_options(database, chunk_size=3 * CHUNK_SIZE + 5)
        data = secrets.token_bytes(7 * CHUNK_SIZE)
        async with opened(options) as large:
            await large.write("k", single(data), NOTHING)
            async with opened(options.model_copy(update={"chunk_size": SMALL})) as small:
                async with small.open("k") as chunks:
                    read = [chunk async for chunk in chunks]
                assert b"".join(read) == data
                assert max(map(len, read)) <= CHUNK_SIZE
                assert not (await small.write("k", single(data), NOTHING)).created


class TestConnecting:
    async def test_a_wrong_password_is_a_refusal_that_does_not_repeat_it(self, database: str) -> None:
        with pytest.raises(PermissionDenied, match="correct user and password") as raised:
            await PostgresBackend.connect(postgres_options(database, password=SecretStr("canary-1234")))
        assert "canary-1234" not in f"{raised.value} {raised.value.__cause__}"

    async def test_a_missing_database_is_named(self, database: str) -> None:
        with pytest.raises(StorageError, match="create the database") as raised:
            await PostgresBackend.connect(postgres_options(database, database="nowhere"))
        assert not raised.value.retryable

    async def test_a_user_without_rights_is_told_which(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        await backend.health()
        role = f"r_{secrets.token_hex(4)}"
        await ask(database, f"CREATE ROLE {role} LOGIN PASSWORD 'test'")
        as_role = {"user": role, "password": SecretStr("test"), "create_tables": False}
        try:
            with pytest.raises(PermissionDenied):
                await PostgresBackend.connect(options.model_copy(update=as_role))
            await ask(database, f"GRANT USAGE ON SCHEMA {options.schema_name} TO {role}")
            with pytest.raises(PermissionDenied, match="GRANT SELECT, INSERT, UPDATE, DELETE"):
                await PostgresBackend.connect(options.model_copy(update=as_role))
            await ask(
                database,
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {options.schema_name} TO {role}",
            )
            async with opened(options.model_copy(update=as_role)) as limited:
                assert (await limited.write("k", stream(), NOTHING)).created
                assert await limited.delete("k")
        finally:
            await ask(database, f"DROP OWNED BY {role}")
            await ask(database, f"DROP ROLE {role}")

    async def test_a_server_that_may_forget_is_refused(self, database: str) -> None:
        role = f"r_{secrets.token_hex(4)}"
        await ask(database, f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'test'")
        await ask(database, f"ALTER ROLE {role} SET synchronous_commit = off")
        forgetful = postgres_options(database, user=role, password=SecretStr("test"))
        try:
            with pytest.raises(StorageError, match="synchronous_commit"):
                await PostgresBackend.connect(forgetful)
        finally:
            await ask(database, f"DROP OWNED BY {role}")
            await ask(database, f"DROP ROLE {role}")

    async def test_a_database_that_is_not_utf8_is_refused(self, postgresql: PostgresqlServer) -> None:
        async with postgresql.database(migrated=False, options="ENCODING 'LATIN1' LOCALE 'C'") as url:
            with pytest.raises(StorageError, match="ENCODING 'UTF8'"):
                await PostgresBackend.connect(postgres_options(url))

    async def test_nobody_there_is_unavailable(self, proxy: Meddler, options: PostgresOptions) -> None:
        await proxy.down()
        with pytest.raises(Unavailable):
            await PostgresBackend.connect(by_way_of(proxy, options))

    async def test_a_closed_backend_is_unavailable(self, options: PostgresOptions) -> None:
        backend = await PostgresBackend.connect(options)
        await backend.aclose()
        with pytest.raises(Unavailable):
            await backend.stat("k")

    @pytest.mark.parametrize("name", ["", "Upper", 'quo"te', "1st", "a" * 64, "a.b"])
    def test_a_schema_has_a_plain_name(self, name: str, database: str) -> None:
        with pytest.raises(ValidationError):
            postgres_options(database, schema_name=name)

    async def test_a_schema_may_have_the_name_of_a_keyword(self, postgresql: PostgresqlServer) -> None:
        async with (
            postgresql.database(migrated=False) as url,
            opened(postgres_options(url, schema_name="user")) as backend,
        ):
            await backend.write("k", stream(), NOTHING)
            assert await content(backend, "k") == WHOLE

    def test_the_location_names_no_credential(self, options: PostgresOptions) -> None:
        location = PostgresBackend.location_of(options.model_copy(update={"host": "::1", "port": 5433}))
        assert location == f"postgresql://[::1]:5433/{options.database}/{options.schema_name}/"

    async def test_no_transaction_stays_open_while_the_source_is_silent(
        self, pgbouncer: PgBouncer, database: str
    ) -> None:
        """More writes than the pooler has connections of the server's, all of them in the middle."""
        options = postgres_options(pgbouncer.through(database), pooler=True, chunk_size=SMALL)
        silent, go_on = asyncio.Barrier(13), asyncio.Event()

        async def halting() -> AsyncIterator[bytes]:
            yield WHOLE[:200_000]
            await silent.wait()
            await go_on.wait()
            yield WHOLE[200_000:]

        async with opened(options) as backend:
            writes = [asyncio.create_task(backend.write(f"k{n}", halting(), NOTHING)) for n in range(12)]
            await silent.wait()
            busy = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state LIKE '%in transaction%'"
            )
            assert (await ask(database, busy, options.database))[0][0] == 0
            go_on.set()
            assert all([(await write).created for write in writes])


class TestFailures:
    @pytest.mark.parametrize(
        ("state", "kind", "retryable"),
        [
            ("53100", Unavailable, True),
            ("58030", Unavailable, True),
            ("53200", Unavailable, True),
            ("57P03", Unavailable, True),
            ("40001", Unavailable, True),
            ("25006", Unavailable, True),
            ("42501", PermissionDenied, True),
            ("54000", Unsupported, False),
            ("XX001", IntegrityError, True),
            ("42883", StorageError, False),
        ],
        ids=[
            "ENOSPC", "EIO", "memory", "starting", "serialization", "read-only", "permission", "limit", "damage", "bug",
        ],
    )  # fmt: skip
    async def test_case_59_what_the_server_says_is_classed(  # also 57 and 58, as far as a client sees them
        self,
        backend: PostgresBackend,
        options: PostgresOptions,
        database: str,
        state: str,
        kind: type[StorageError],
        retryable: bool,
    ) -> None:
        fail = f"""CREATE FUNCTION {options.schema_name}.fail() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$"""
        trigger = """CREATE TRIGGER fail BEFORE INSERT ON {0}.chunks FOR EACH ROW WHEN (NEW.number <> 1)
            EXECUTE FUNCTION {0}.fail()"""
        await ask(database, fail)
        await ask(database, trigger.format(options.schema_name))
        for data in (b"one chunk", WHOLE):
            with pytest.raises(kind, match="on purpose") as raised:
                await backend.write("k", single(data), NOTHING)
            assert type(raised.value) is kind
            assert raised.value.retryable is retryable
            assert raised.value.__cause__ is not None
        assert await counts(database, options) == (0, 0)

    @pytest.mark.parametrize("data", [b"one chunk", WHOLE], ids=["one chunk", "many"])
    async def test_case_63_a_lost_reply_to_the_commit_is_no_failure(
        self, backend: PostgresBackend, proxy: Meddler, options: PostgresOptions, data: bytes
    ) -> None:
        digest = hashlib.sha256(data).digest()
        async with opened(by_way_of(proxy, options, max_connections=1)) as distant:
            lost = proxy.drop_reply(lambda said: digest in said)
            receipt = await distant.write("k", stream(data), NOTHING)
            assert lost.is_set()
        assert (receipt.created, receipt.sha256) == (True, digest.hex())
        assert await content(backend, "k") == data
        assert await backend.sweep(0.0) == 0

    @pytest.mark.parametrize("data", [b"one chunk", WHOLE], ids=["one chunk", "many"])
    async def test_case_63_a_commit_that_never_arrived_is_tried_again_later(
        self, backend: PostgresBackend, proxy: Meddler, options: PostgresOptions, data: bytes
    ) -> None:
        digest = hashlib.sha256(data).digest()
        async with opened(by_way_of(proxy, options, max_connections=1)) as distant:
            await distant.write("other", single(b"so that statements are prepared"), NOTHING)
            await distant.write("large", stream(WHOLE[::-1]), NOTHING)
            proxy.lose = digest
            with pytest.raises(Unavailable):
                await distant.write("k", stream(data), NOTHING)
            assert not proxy.lose
            assert await keys(backend) == ["large", "other"]
            assert await backend.sweep(0.0) == 0
            assert (await distant.write("k", stream(data), NOTHING)).created

    async def test_case_63_a_lost_reply_where_somebody_else_was_first_is_a_conflict(
        self, backend: PostgresBackend, proxy: Meddler, options: PostgresOptions
    ) -> None:
        async with opened(by_way_of(proxy, options, max_connections=1)) as distant:
            await backend.write("k", single(b"theirs"), NOTHING)
            proxy.drop_reply(lambda said: hashlib.sha256(b"ours").digest() in said)
            with pytest.raises(Conflict):
                await distant.write("k", single(b"ours"), NOTHING)
            assert await content(backend, "k") == b"theirs"

    @pytest.mark.parametrize("direction", ["requests", "replies"])
    async def test_case_64_a_half_open_connection_hits_the_deadline(
        self, backend: PostgresBackend, proxy: Meddler, options: PostgresOptions, direction: Direction
    ) -> None:
        distant = await PostgresBackend.connect(by_way_of(proxy, options, timeout=0.3, connect_timeout=0.3))
        await backend.write("there", stream(), NOTHING)

        async def turning_dark() -> AsyncIterator[bytes]:
            yield WHOLE[:100_000]
            proxy.black_hole(direction)
            yield WHOLE[100_000:]

        async with asyncio.timeout(8):
            with pytest.raises(Unavailable):
                await distant.write("k", turning_dark(), NOTHING)
            for call in (distant.stat("there"), distant.delete("other"), distant.health()):
                with pytest.raises(Unavailable):
                    await call
            with pytest.raises(Unavailable):
                await content(distant, "there")
            await distant.aclose()
        assert await keys(backend) == ["there"]
        await backend.sweep(0.0)
        assert (await backend.write("k", stream(), NOTHING)).created

    async def test_case_64_a_byte_a_second_hits_the_deadline(
        self, backend: PostgresBackend, proxy: Meddler, options: PostgresOptions
    ) -> None:
        await backend.write("there", stream(), NOTHING)
        async with opened(by_way_of(proxy, options, timeout=0.3, connect_timeout=0.3)) as distant:
            async with distant.open("there") as chunks:
                await anext(chunks)
                proxy.slow(rate=1.0)
                with pytest.raises(Unavailable):
                    await drained(chunks)
            with pytest.raises(Unavailable):
                await distant.write("k", stream(), NOTHING)
            proxy.heal()
            await backend.sweep(0.0)
            assert (await distant.write("k", stream(), NOTHING)).created

    async def test_case_64_whoever_waits_for_a_connection_waits_not_for_ever(
        self, proxy: Meddler, options: PostgresOptions
    ) -> None:
        async with opened(options):
            pass
        async with opened(by_way_of(proxy, options, timeout=0.3, max_connections=1)) as distant:
            proxy.black_hole()
            async with asyncio.timeout(5):
                calls = [distant.stat(f"k{n}") for n in range(4)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, Unavailable) for outcome in outcomes)

    async def test_cancelled_in_the_middle_of_a_statement_it_hangs_up_and_cleans_up(
        self, backend: PostgresBackend, proxy: Meddler, options: PostgresOptions, database: str
    ) -> None:
        async def slowing() -> AsyncIterator[bytes]:
            yield WHOLE[: 3 * SMALL]
            proxy.slow("replies", latency=30.0)
            yield WHOLE[3 * SMALL :]

        async with opened(by_way_of(proxy, options)) as distant:
            task = asyncio.create_task(distant.write("k", slowing(), NOTHING))
            async with asyncio.timeout(10):
                while await counts(database, options) != (1, 4):
                    pass
            before = proxy.accepted
            task.cancel()
            proxy.heal()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert proxy.accepted - before == 1, "the one that cleans up, and no request to cancel"
            assert await counts(database, options) == (0, 0)
            assert (await distant.write("k", stream(), NOTHING)).created
            assert await backend.sweep(0.0) == 0

    async def test_case_66_a_chunk_that_arrives_damaged_is_refused(
        self, proxy: Meddler, options: PostgresOptions, database: str
    ) -> None:
        async with opened(options):
            pass
        async with opened(by_way_of(proxy, options)) as distant:
            for data in (b"A" * 100, WHOLE + b"A" * SMALL):
                proxy.flip = b"A" * 50
                with pytest.raises(IntegrityError, match="damaged"):
                    await distant.write("k", single(data), NOTHING)
                assert await counts(database, options) == (0, 0)
            assert (await distant.write("k", single(b"A" * 100), NOTHING)).created

    @pytest.mark.parametrize("chunk", [0, 3])
    async def test_case_66_a_chunk_damaged_at_rest_is_noticed_before_it_is_handed_out(
        self, backend: PostgresBackend, options: PostgresOptions, database: str, chunk: int
    ) -> None:
        await backend.write("k", stream(), NOTHING)
        table = f"{options.schema_name}.chunks"
        change = f"UPDATE {table} SET data = set_byte(data, 7, 255) WHERE number = {chunk}"  # noqa: S608 - a name of ours
        with pytest.raises(Exception, match="chunks_whole"):
            await ask(database, change)
        await ask(database, f"ALTER TABLE {table} DROP CONSTRAINT chunks_whole")
        await ask(database, change)
        read: list[bytes] = []
        async with backend.open("k") as chunks:
            with pytest.raises(IntegrityError, match=f"chunk {chunk}"):
                await drained(chunks, read)
        assert b"".join(read) == WHOLE[: chunk * SMALL]

    async def test_case_66_a_damaged_chunk_is_not_copied(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        receipt = await backend.write("k", stream(), NOTHING)
        table = f"{options.schema_name}.chunks"
        await ask(database, f"ALTER TABLE {table} DROP CONSTRAINT chunks_whole")
        await ask(database, f"UPDATE {table} SET data = set_byte(data, 7, 255) WHERE number = 3")  # noqa: S608 - as above
        await ask(
            database,
            f"ALTER TABLE {table} ADD CONSTRAINT chunks_whole CHECK (sha256 = sha256(data)) NOT VALID",
        )
        with pytest.raises(IntegrityError):
            await backend.copy_from(backend, "k", "copy", NOTHING, Promise(receipt.size, receipt.sha256))
        assert await keys(backend) == ["k"]
        assert await backend.sweep(0.0) == 0

    async def test_case_71_credentials_that_end_in_mid_write(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        role = f"r_{secrets.token_hex(4)}"
        await ask(database, f"CREATE ROLE {role} LOGIN PASSWORD 'old'")
        schema = options.schema_name
        await ask(database, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        await ask(
            database, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
        )

        async def outlasting() -> AsyncIterator[bytes]:
            yield WHOLE
            await ask(database, f"ALTER ROLE {role} PASSWORD 'new'")
            await ask(
                database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
            )
            yield WHOLE

        login = {"user": role, "password": SecretStr("old"), "create_tables": False}
        try:
            async with opened(options.model_copy(update=login)) as expiring:
                with pytest.raises((PermissionDenied, Unavailable)) as raised:
                    await expiring.write("k", outlasting(), NOTHING)
                assert raised.value.retryable
                with pytest.raises(PermissionDenied):
                    await expiring.stat("k")
            assert await keys(backend) == []
            assert await backend.sweep(0.0) == 1, "who may not log in cannot clean up"
            async with opened(options.model_copy(update=login | {"password": SecretStr("new")})) as renewed:
                assert (await renewed.write("k", stream(), NOTHING)).created
        finally:
            await ask(database, f"DROP OWNED BY {role}")
            await ask(database, f"DROP ROLE {role}")


class TestCompany:
    async def test_case_60_of_two_commits_at_once_the_second_is_a_conflict(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        """Both looked when the key was free: the index decides, not the look."""
        uploads = [Upload(backend.database, "k") for _ in range(2)]
        for upload in uploads:
            assert await upload.begin(None, "{}")
            await upload.add(b"x")
        digest = hashlib.sha256(b"x").digest()
        outcomes = await asyncio.gather(*(upload.commit(1, digest) for upload in uploads))
        assert sorted(outcomes) == [False, True]
        abandoned = await asyncio.gather(*(upload.abandon() for upload in uploads))
        assert abandoned == outcomes, "who has committed cannot take it back"
        assert await counts(database, options) == (1, 1)

    async def test_a_key_that_is_taken_costs_no_chunks(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        await backend.write("k", stream(), NOTHING)
        chunks = (await counts(database, options))[1]

        async def looking() -> AsyncIterator[bytes]:
            async for piece in stream():
                yield piece
            assert (await counts(database, options))[1] == chunks

        assert not (await backend.write("k", looking(), NOTHING)).created

    async def test_a_swept_write_fails_and_may_be_tried_again(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        for data in (WHOLE, b""):  # noticed by the next chunk, or by the commit

            async def swept(rest: bytes = data) -> AsyncIterator[bytes]:
                yield WHOLE[: 4 * SMALL]
                assert await backend.sweep(0.0) == 1
                yield rest

            with pytest.raises(Unavailable, match="swept"):
                await backend.write("k", swept(), NOTHING)
            assert await counts(database, options) == (0, 0)

    async def test_a_doomed_write_cannot_become_an_object(
        self, backend: PostgresBackend, options: PostgresOptions, database: str
    ) -> None:
        upload = Upload(backend.database, "k")
        assert await upload.begin(None, "{}")
        await upload.add(b"x")
        await ask(database, f"UPDATE {options.schema_name}.objects SET doomed = true")  # noqa: S608 - a name of ours
        with pytest.raises(Unavailable, match="swept"):
            await upload.commit(1, hashlib.sha256(b"x").digest())
        assert await keys(backend) == []

    async def test_deleted_while_it_is_read_or_copied(self, backend: PostgresBackend) -> None:
        await backend.write("k", stream(), NOTHING)
        async with backend.open("k") as chunks:
            assert await anext(chunks)
            assert await backend.delete("k")
            with pytest.raises(Unavailable, match="ended after"):
                await drained(chunks)
        receipt = await backend.write("k", stream(), NOTHING)
        assert receipt.version is not None
        found = await backend.find("k")
        assert found is not None
        await backend.delete("k")
        upload = Upload(backend.database, "copy")
        assert await upload.begin(None, "{}")
        with pytest.raises(NotFound, match="deleted"):
            await upload.copy(backend.database, found["uuid"], found["size"])
        await upload.abandon()

    async def test_copies_go_between_the_schemas_of_a_database(
        self, backend: PostgresBackend, database: str, proxy: Meddler
    ) -> None:
        data = secrets.token_bytes(70 * SMALL)
        receipt = await backend.write("k", single(data), NOTHING)
        promise = Promise(receipt.size, receipt.sha256)
        async with opened(postgres_options(database)) as other:
            copied = await other.copy_from(backend, "k", "copy", NOTHING, promise)
            assert (copied.created, copied.sha256) == (True, receipt.sha256)
            assert await content(other, "copy") == data
            again = await other.copy_from(backend, "k", "copy", NOTHING, promise)
            assert (again.created, again.version) == (False, copied.version)
        elsewhere = by_way_of(proxy, postgres_options(database), create_tables=True)
        async with opened(elsewhere) as distant:
            with pytest.raises(Unsupported):
                await distant.copy_from(backend, "k", "copy", NOTHING, promise)


WRITER = """
import asyncio, sys
from backends.base import Attributes, Promise
from backends.postgres import PostgresBackend
from tests.support.postgres_target import postgres_options
from worker.failpoints import arm, parse

async def chunks(data):
    for start in range(0, len(data), 10_000):
        yield data[start:start + 10_000]

async def main(url, schema, failpoint, size):
    backend = await PostgresBackend.connect(postgres_options(url, schema_name=schema, chunk_size=65536))
    await backend.write("done", chunks(b"d" * size), Attributes())
    arm(parse(failpoint))
    if "copy" in failpoint:
        await backend.copy_from(backend, "done", "k", Attributes(), Promise())
    await backend.write("k", chunks(b"k" * size), Attributes())
    await backend.delete("done")
    raise SystemExit("nobody killed me")

asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
"""


@pytest.mark.parametrize(
    ("failpoint", "size", "left", "there"),
    [
        ("put.before=kill", 10, 0, ["done"]),
        ("put.after=kill", 10, 0, ["done", "k"]),
        ("begin.after=kill", 400_000, 1, ["done"]),
        ("add.after=kill@3", 400_000, 1, ["done"]),
        ("copy.after=kill", 400_000, 1, ["done"]),
        ("commit.before=kill", 400_000, 1, ["done"]),
        ("commit.after=kill", 400_000, 0, ["done", "k"]),
        ("delete.after=kill", 400_000, 1, ["k"]),
        ("clear.after=kill", 400_000, 1, ["k"]),
        ("remove.after=kill", 400_000, 0, ["k"]),
    ],
)
async def test_i5_i6_killed_anywhere_a_write_is_whole_or_absent_and_swept(
    backend: PostgresBackend,
    options: PostgresOptions,
    database: str,
    failpoint: str,
    size: int,
    left: int,
    there: list[str],
) -> None:
    arguments = (database, options.schema_name, f"postgres.{failpoint}", str(size))
    process = await begin("-c", WRITER, *arguments)
    assert await process.wait() == -signal.SIGKILL
    assert await keys(backend) == there
    for key in there:
        assert await content(backend, key) == key[:1].encode() * size
    assert await backend.sweep(3600.0) == 0
    assert await backend.sweep(0.0) == left
    assert await backend.sweep(0.0) == 0
    receipt = await backend.write("k", single(b"k" * size), NOTHING)
    assert receipt.created is ("k" not in there)
