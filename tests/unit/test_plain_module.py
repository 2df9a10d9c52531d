"""Plain modules as targets: the seed's own example, how arguments are handed over, and what modules may do wrong."""

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backends.base import Attributes, Features, StorageBackend, single
from backends.errors import (
    Conflict,
    IntegrityError,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.plain_module import ModuleBackend
from backends.plain_module_loading import ModuleOptions

NOTHING = Attributes()

# The file example of the vCon server's guide; only the lookup in Redis is another.
VCON_FILE = '''
import json
import os
from logging import getLogger

logger = getLogger(__name__)

default_options = {
    "path": "/data/vcons",
    "file_extension": ".json"
}

def save(vcon_uuid, opts=default_options):
    """Save vCon to file system."""
    options = {**default_options, **opts}

    vcon = json.loads(options["payload"])

    if vcon is None:
        logger.error(f"vCon not found: {vcon_uuid}")
        raise ValueError(f"vCon not found: {vcon_uuid}")

    # Ensure directory exists
    os.makedirs(options["path"], exist_ok=True)

    # Write to file
    file_path = os.path.join(
        options["path"],
        f"{vcon_uuid}{options['file_extension']}"
    )

    with open(file_path, 'w') as f:
        json.dump(vcon, f, indent=2)

    logger.info(f"Saved {vcon_uuid} to {file_path}")

def get(vcon_uuid, opts=default_options):
    """Retrieve vCon from file system."""
    options = {**default_options, **opts}

    file_path = os.path.join(
        options["path"],
        f"{vcon_uuid}{options['file_extension']}"
    )

    if not os.path.exists(file_path):
        logger.debug(f"vCon not found: {file_path}")
        return None

    with open(file_path, 'r') as f:
        data = json.load(f)

    logger.debug(f"Retrieved {vcon_uuid} from {file_path}")
    return data

def delete(vcon_uuid, opts=default_options):
    """Delete vCon from file system."""
    options = {**default_options, **opts}

    file_path = os.path.join(
        options["path"],
        f"{vcon_uuid}{options['file_extension']}"
    )

    if os.path.exists(file_path):
        os.remove(file_path)
        logger.info(f"Deleted {vcon_uuid} from {file_path}")
        return True

    return False
'''

REMEMBERING = """
kept = {}

def save(key, opts, payload):
    kept[key] = payload

def get(key, opts):
    return kept.get(key)

def delete(key, opts):
    return kept.pop(key, None) is not None
"""

Write = Callable[[str], str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module; its import path."""
    monkeypatch.syspath_prepend(tmp_path)
    package = f"storage_{secrets.token_hex(4)}"
    (tmp_path / package).mkdir()
    before = set(sys.modules)

    def write(code: str) -> str:
        name = f"m{secrets.token_hex(4)}"
        (tmp_path / package / f"{name}.py").write_text(code)
        return f"{package}.{name}"

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == package:
            del sys.modules[name]


async def connected(module: str, **options: Any) -> ModuleBackend:
    return await ModuleBackend.connect(ModuleOptions(module=module, **options))


async def content(backend: StorageBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


class TestTheVconForm:
    async def test_the_guides_file_example(self, written: Write, tmp_path: Path) -> None:
        where = tmp_path / "vcons"
        backend = await connected(
            written(VCON_FILE), options={"path": str(where), "file_extension": ".vcon.json"}
        )
        vcon = {"uuid": "0191-ü", "parties": [{"tel": "+1"}], "n": 1}
        payload = json.dumps(vcon, indent=4).encode()
        await backend.health()
        receipt = await backend.write("bundles/0191/a.json", single(payload), NOTHING)
        assert (receipt.size, receipt.created) == (len(payload), True)
        (file,) = where.iterdir()
        assert (file.name, json.loads(file.read_text())) == ("bundles%2F0191%2Fa.json.vcon.json", vcon)
        assert not (await backend.write("bundles/0191/a.json", single(payload), NOTHING)).created
        with pytest.raises(Conflict):
            await backend.write("bundles/0191/a.json", single(payload.replace(b"1", b"2")), NOTHING)
        assert json.loads(await content(backend, "bundles/0191/a.json")) == vcon
        assert await backend.delete("bundles/0191/a.json") is True
        assert await backend.delete("bundles/0191/a.json") is False
        assert await backend.stat("bundles/0191/a.json") is None
        with pytest.raises(NotFound):
            await content(backend, "bundles/0191/a.json")

    async def test_default_options_are_merged_under_options(self, written: Write) -> None:
        code = """
default_options = {"path": "default", "file_extension": ".json"}
seen = []
def save(key, opts, payload):
    seen.append(dict(opts))
    opts["path"] = "changed"
"""
        name = written(code)
        backend = await connected(name, options={"path": "ours"})
        await backend.write("k", single(b"x"), NOTHING)
        await backend.write("k", single(b"x"), NOTHING)
        assert sys.modules[name].seen == [{"path": "ours", "file_extension": ".json"}] * 2
        assert sys.modules[name].default_options["path"] == "default"

    @pytest.mark.parametrize(
        "parameters",
        [
            "key, opts, payload",
            "key, opts={}, payload=b''",
            "key, opts, *rest",
            "key, opts, *, payload",
            "key, opts, **named",
        ],
    )
    async def test_a_save_that_takes_the_payload_gets_it(self, written: Write, parameters: str) -> None:
        name = written(f"def save({parameters}):\n    global seen\n    seen = locals()")
        backend = await connected(name)
        await backend.write("a/b%", single(b"the bytes"), NOTHING)
        assert b"the bytes" in repr(sys.modules[name].seen).encode()
        assert "payload" not in sys.modules[name].seen["opts"]
        assert sys.modules[name].seen["key"] == "a%2Fb%25"

    async def test_keys_as_they_are_where_that_is_wanted(self, written: Write) -> None:
        name = written(REMEMBERING)
        backend = await connected(name, flat_keys=False)
        await backend.write("a/b%", single(b"x"), NOTHING)
        assert sys.modules[name].kept == {"a/b%": b"x"}

    async def test_functions_may_be_coroutines(self, written: Write) -> None:
        name = written(REMEMBERING.replace("def ", "async def "))
        backend = await connected(name)
        assert (await backend.write("k", single(b"x"), NOTHING)).created
        assert not (await backend.write("k", single(b"x"), NOTHING)).created
        assert await content(backend, "k") == b"x"
        assert await backend.delete("k")

    @pytest.mark.parametrize(
        ("code", "features"),
        [
            (REMEMBERING, Features(attributes=False, lists=False)),
            (
                "def save(k, o): ...",
                Features(attributes=False, lists=False, reads=False, deletes=False, create_only=False),
            ),
            (
                "def save(k, o): ...\ndef delete(k, o): ...",
                Features(attributes=False, lists=False, reads=False, create_only=False),
            ),
        ],
    )
    async def test_features_are_the_functions_that_are_there(
        self, written: Write, code: str, features: Features
    ) -> None:
        options = ModuleOptions(module=written(code))
        assert ModuleBackend.features_of(options) == features
        assert (await ModuleBackend.connect(options)).features == features
        assert ModuleBackend.location_of(options) == f"module://{options.module}/"

    @pytest.mark.parametrize("returned", ["b'text'", "bytearray(b'text')", "'text'"])
    async def test_bytes_and_text_are_read_as_they_are(self, written: Write, returned: str) -> None:
        backend = await connected(
            written(f"def save(k, o): ...\ndef get(k, o):\n    return {returned}"), compare=False
        )
        assert await content(backend, "k") == b"text"

    async def test_a_document_is_read_as_compact_json(self, written: Write) -> None:
        backend = await connected(written("def save(k, o): ...\ndef get(k, o):\n    return {'ü': [1, None]}"))
        assert await content(backend, "k") == '{"ü":[1,null]}'.encode()
        stat = await backend.stat("k")
        assert stat is not None
        assert stat.size == 15

    @pytest.mark.parametrize("other", [b'{"a": true}', b'{"a": 1.0}', b'{"a": 1', b"\xff", b"[" * 100_000])
    async def test_documents_that_python_would_call_equal_are_not(self, written: Write, other: bytes) -> None:
        backend = await connected(written("def save(k, o): ...\ndef get(k, o):\n    return {'a': 1}"))
        assert not (await backend.write("k", single(b' {"a":1}'), NOTHING)).created
        with pytest.raises(Conflict):
            await backend.write("k", single(other), NOTHING)


class TestLimits:
    async def test_max_size_is_refused_before_anything_is_saved(self, written: Write) -> None:
        name = written(REMEMBERING)
        backend = await connected(name, max_size=10)
        asked = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal asked
            while True:
                asked += 1
                yield b"12345"

        with pytest.raises(Unsupported, match="max_size"):
            await backend.write("k", endless(), NOTHING)
        assert (asked, sys.modules[name].kept) == (3, {})
        assert (await backend.write("k", single(b"1234567890"), NOTHING)).size == 10

    @pytest.mark.parametrize(
        "name", ["", "a b", "../x", "a..b", "a/b", "os;x", "a:b", "1a", ".a", "a.", "a\n"]
    )
    def test_a_module_is_an_import_path(self, name: str) -> None:
        with pytest.raises(ValidationError):
            ModuleOptions(module=name)

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("raise RuntimeError('broken on purpose')", "broken on purpose"),
            ("raise SystemExit(3)", "SystemExit"),
            ("def save(:", "SyntaxError"),
            ("import not_installed_anywhere", "not_installed_anywhere"),
            ("def get(k, o): ...", "no function `save`"),
            ("save = 3", "no function"),
            ("def save(k): ...", "is called as save"),
            ("def save(k, o, p, q): ...", "is called as save"),
            ("default_options = []\ndef save(k, o): ...", "default_options"),
            ("default_options = {'payload': 1}\ndef save(k, o): ...", "rename yours"),
        ],
    )
    async def test_a_module_that_cannot_be_used_says_why(self, written: Write, code: str, said: str) -> None:
        with pytest.raises(StorageError, match=said):
            await connected(written(code))

    async def test_a_module_that_is_not_there_says_where_it_could_be(self) -> None:
        with pytest.raises(StorageError, match="PYTHONPATH"):
            await connected("nowhere.at_all")

    async def test_no_more_calls_at_once_than_threads(self, written: Write) -> None:
        code = """
import threading, time
lock, now, most = threading.Lock(), 0, 0
barrier = threading.Barrier(3)
def save(k, o, p):
    global now, most
    with lock:
        now += 1
        most = max(most, now)
    barrier.wait(10)
    with lock:
        now -= 1
"""
        name = written(code)
        backend = await connected(name, threads=3)
        await asyncio.gather(*(backend.write(f"k{n}", single(b"x"), NOTHING) for n in range(12)))
        assert sys.modules[name].most == 3


class TestFailures:
    @pytest.mark.parametrize(
        ("raised", "kind", "retryable"),
        [
            ("ConnectionResetError('gone')", Unavailable, True),
            ("TimeoutError()", Unavailable, True),
            ("OSError(28, 'No space left on device')", Unavailable, True),
            ("OSError(5, 'Input/output error')", Unavailable, True),
            ("OSError(30, 'Read-only file system')", Unavailable, True),
            ("PermissionError(13, 'Permission denied')", PermissionDenied, True),
            ("FileNotFoundError(2, 'No such file')", StorageError, False),
            ("ValueError('bad')", StorageError, False),
            ("StopIteration()", StorageError, False),
            ("SystemExit(1)", StorageError, False),
            ("OurOwn('later')", Unavailable, True),
        ],
    )
    @pytest.mark.parametrize("coroutine", [False, True])
    async def test_case_59_what_a_module_raises_is_classed(
        self, written: Write, raised: str, kind: type[StorageError], retryable: bool, coroutine: bool
    ) -> None:
        code = f"""
class Base(Exception): ...
class OurOwn(Base): ...
{"async " if coroutine else ""}def save(key, opts, payload):
    raise {raised}
"""
        name = written(code)
        backend = await connected(name, retry_on=[f"{name}.Base"])
        with pytest.raises(kind) as caught:
            await backend.write("k", single(b"x"), NOTHING)
        assert type(caught.value) is kind
        assert caught.value.retryable is retryable
        assert caught.value.__cause__ is not None

    async def test_a_storage_error_of_the_modules_own_comes_out(self, written: Write) -> None:
        code = "from backends.errors import Conflict\ndef save(k, o, p):\n    raise Conflict('mine')"
        with pytest.raises(Conflict, match="mine"):
            await (await connected(written(code))).write("k", single(b"x"), NOTHING)

    async def test_a_secret_among_the_options_is_not_repeated(self, written: Write) -> None:
        code = "def save(k, o, p):\n    raise ValueError('401 for ' + o['api_key'] + ' at ' + o['base_url'])"
        options = {"api_key": "canary-5678", "base_url": "https://api.example.com"}
        backend = await connected(written(code), options=options)
        with pytest.raises(StorageError, match=r"401 for \*+ at https://api") as raised:
            await backend.write("k", single(b"x"), NOTHING)
        assert "canary" not in str(raised.value)
        assert "canary" not in repr(backend._options)

    async def test_a_save_that_swallows_its_error_is_found_out(self, written: Write) -> None:
        """The guide's own "partial failures" pattern."""
        code = """
def save(key, opts, payload):
    try:
        raise ConnectionError("down")
    except Exception:
        pass
def get(key, opts):
    return None
"""
        with pytest.raises(Unavailable, match="finds nothing"):
            await (await connected(written(code))).write("k", single(b"x"), NOTHING)

    async def test_case_66_a_save_that_keeps_something_else_is_found_out(self, written: Write) -> None:
        code = REMEMBERING.replace("= payload", "= payload[:-1]")
        with pytest.raises(IntegrityError):
            await (await connected(written(code))).write("k", single(b"xyz"), NOTHING)

    async def test_where_get_returns_something_else_comparing_can_be_switched_off(
        self, written: Write
    ) -> None:
        backend = await connected(written(REMEMBERING.replace("= payload", "= payload[:-1]")), compare=False)
        assert (await backend.write("k", single(b"xyz"), NOTHING)).created
        assert not backend.features.create_only
        assert await content(backend, "k") == b"xy"

    async def test_a_get_that_returns_no_payload_is_an_error(self, written: Write) -> None:
        backend = await connected(written("def save(k, o): ...\ndef get(k, o):\n    return object()"))
        with pytest.raises(StorageError, match="neither bytes nor JSON"):
            await content(backend, "k")

    async def test_case_64_a_call_that_hangs_hits_the_deadline(self, written: Write) -> None:
        code = """
import threading
release = threading.Event()
def save(key, opts, payload):
    release.wait(30)
"""
        name = written(code)
        backend = await connected(name, timeout=0.1, threads=1)
        try:
            with pytest.raises(Unavailable, match="no answer within"):
                await backend.write("k", single(b"x"), NOTHING)
            with pytest.raises(Unavailable, match="threads were busy"):
                await backend.write("k", single(b"x"), NOTHING)
        finally:
            sys.modules[name].release.set()
        await backend.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await backend.write("k", single(b"x"), NOTHING)

    async def test_a_hanging_coroutine_is_cancelled(self, written: Write) -> None:
        code = """
import asyncio
ended = []
async def save(key, opts, payload):
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(key)
"""
        name = written(code)
        backend = await connected(name, timeout=0.1, threads=1)
        for number in range(2):
            with pytest.raises(Unavailable):
                await backend.write(f"k{number}", single(b"x"), NOTHING)
        assert sys.modules[name].ended == ["k0", "k1"]

    async def test_a_cancelled_caller_waits_for_the_thread(self, written: Write) -> None:
        code = """
import threading
begun, go_on, done = threading.Event(), threading.Event(), False
def save(key, opts, payload):
    global done
    begun.set()
    go_on.wait(30)
    done = True
"""
        name = written(code)
        backend = await connected(name)
        task = asyncio.create_task(backend.write("k", single(b"x"), NOTHING))
        await asyncio.sleep(0)
        module = sys.modules[name]
        await asyncio.to_thread(module.begun.wait, 10)
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()
        task.cancel()
        module.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert module.done

    async def test_a_hanging_thread_does_not_keep_the_process(self, written: Write, tmp_path: Path) -> None:
        name = written("import threading\ndef save(key, opts, payload):\n    threading.Event().wait()")
        code = f"""
import asyncio
from backends.base import Attributes, single
from backends.errors import Unavailable
from backends.plain_module import ModuleBackend
from backends.plain_module_loading import ModuleOptions

async def main():
    backend = await ModuleBackend.connect(ModuleOptions(module="{name}", timeout=0.1))
    try:
        await backend.write("k", single(b"x"), Attributes())
    except Unavailable:
        print("in time")

asyncio.run(main())
"""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
        assert (process.returncode, output) == (0, b"in time\n")

    async def test_health_asks_get(self, written: Write) -> None:
        code = "def save(k, o): ...\ndef get(k, o):\n    raise ConnectionError('down')"
        with pytest.raises(Unavailable):
            await (await connected(written(code))).health()
        await (await connected(written("def save(k, o): ..."))).health()
