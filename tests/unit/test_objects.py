"""Addresses of objects, and files that appear whole."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.base import Attributes, single
from backends.errors import IntegrityError, PermissionDenied
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from worker import objects
from worker.ledger.values import StoredObject
from worker.objects import Address, Copied, Download, NoSuchPlace, destination
from worker.settings import Settings, load_settings

KNOWN = "main, lake, staging:main, staging:drop"


def load(home: Path, text: str) -> Settings:
    file = home / "t.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file=file, home=home, environ={"HOME": str(home)})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(
        tmp_path, "{targets: {main: {}, lake: {prefix: a/b}}, staging: {main: {}, drop: {prefix: in}}}"
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("main", Address("target", "main", None)),
        ("main:", Address("target", "main", "")),
        ("main:a:b:c", Address("target", "main", "a:b:c")),
        ("lake:staging:x", Address("target", "lake", "staging:x")),
        ("staging:drop", Address("staging", "drop", None)),
        ("staging:drop:a:b", Address("staging", "drop", "a:b")),
    ],
)
def test_only_the_colons_before_the_key_count(settings: Settings, text: str, address: Address) -> None:
    parsed = Address.parse(text, settings)
    assert parsed == address
    assert parsed.key is None or parsed.of(parsed.key) == text


@pytest.mark.parametrize("text", ["", ":x", "tape:x", "staging", "staging:lake:x", "Main:x"])
def test_an_unknown_place_names_those_there_are(settings: Settings, text: str) -> None:
    with pytest.raises(NoSuchPlace, match=f"there are: {KNOWN}$"):
        Address.parse(text, settings)


def test_a_target_may_be_called_staging(tmp_path: Path) -> None:
    settings = load(tmp_path, "targets: {staging: {}}")
    assert Address.parse("staging:main:x", settings) == Address("target", "staging", "main:x")


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("main", ""), ("lake", "a/b/"), ("lake:", ""), ("lake:x", "x"), ("staging:drop", "in/")],
)
def test_without_a_colon_keys_begin_with_the_places_prefix(
    settings: Settings, text: str, prefix: str
) -> None:
    assert Address.parse(text, settings).prefix(settings) == prefix


def test_where_a_copy_goes(tmp_path: Path) -> None:
    assert destination(None, "a/b.html", force=False) == Path("b.html")
    assert destination(tmp_path, "a/b.html", force=False) == tmp_path / "b.html"
    assert destination(tmp_path / "c", "a/b.html", force=False) == tmp_path / "c"
    with pytest.raises(FileNotFoundError, match="no folder"):
        destination(tmp_path / "c" / "d", "a", force=True)
    (tmp_path / "b.html").touch()
    with pytest.raises(FileExistsError, match="say --force"):
        destination(tmp_path, "a/b.html", force=False)
    assert destination(tmp_path, "a/b.html", force=True) == tmp_path / "b.html"
    (tmp_path / "link").symlink_to(tmp_path / "b.html")
    for special in (tmp_path / "link", Path("/dev/null")):
        with pytest.raises(FileExistsError, match="no plain file"):
            destination(special, "a", force=True)


def write(path: Path, content: bytes, *, force: bool, meanwhile: Callable[[], None] = lambda: None) -> None:
    with Download(path, force=force).writing() as file:
        file.write(content)
        file.flush()
        meanwhile()


def fail() -> None:
    raise ZeroDivisionError


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("force", [True, False])
def test_a_file_appears_whole(tmp_path: Path, force: bool) -> None:
    seen: list[bool] = []
    write(tmp_path / "f", b"new", force=force, meanwhile=lambda: seen.append((tmp_path / "f").exists()))
    assert seen == [False]
    assert files(tmp_path) == {"f": b"new"}


@pytest.mark.parametrize("force", [True, False])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, force: bool) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "f", b"new", force=force, meanwhile=fail)
    assert files(tmp_path) == {"f": b"old"}


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def theirs() -> None:
        (tmp_path / "f").write_bytes(b"theirs")

    with pytest.raises(FileExistsError, match="has appeared meanwhile"):
        write(tmp_path / "f", b"ours", force=False, meanwhile=theirs)
    assert files(tmp_path) == {"f": b"theirs"}


def test_what_is_there_is_replaced_when_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    write(tmp_path / "f", b"new", force=True)
    assert files(tmp_path) == {"f": b"new"}


def test_a_file_system_without_links_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "f", b"new", force=False)
    assert files(tmp_path) == {"f": b"new"}


async def test_a_copy_knows_its_digest() -> None:
    backend = await MemoryBackend.connect(MemoryOptions())
    content = b"x" * 3_000_000
    receipt = await backend.write("k", single(content), Attributes())
    advanced: list[float] = []
    file = io.BytesIO()
    async with backend.open("k") as chunks:
        got = await objects.copy(chunks, file, advanced.append)
    assert (file.getvalue(), sum(advanced)) == (content, len(content))
    assert got == Copied(len(content), receipt.sha256)
    got.check("k", None)
    got.check("k", StoredObject("t", "k", got.size, got.sha256))
    for other in (StoredObject("t", "k", 1, got.sha256), StoredObject("t", "k", got.size, "0" * 64)):
        with pytest.raises(IntegrityError, match="the ledger recorded"):
            got.check("k", other)


async def test_nothing_goes_before_it_is_written_down() -> None:
    backend = await MemoryBackend.connect(MemoryOptions())
    told: list[tuple[str, str | None, bool]] = []

    async def tell(action: str, detail: str | None) -> None:
        told.append((action, detail, await backend.stat("k") is not None))

    assert not await objects.remove(backend, "k", tell)
    await backend.write("k", single(b""), Attributes())
    with pytest.raises(PermissionDenied):
        await objects.remove(Undeletable(backend), "k", tell)
    assert await objects.remove(backend, "k", tell)
    assert told == [("removed", None, True), ("kept", "no", True), ("removed", None, True)]


class Undeletable(Wrapper):
    """A store that lets nothing go."""

    async def delete(self, key: str) -> bool:  # noqa: ARG002 - the port's name
        raise PermissionDenied("no")
