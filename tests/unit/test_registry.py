"""Adapters of other distributions: found by entry point, loaded when their name is used, and clear when they are broken."""

import secrets
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.base import Attributes, single
from backends.errors import StorageError
from backends.registry import BACKENDS, BrokenAdapter, UnknownName
from worker.publishers.registry import PUBLISHERS
from worker.queues.registry import QUEUES

Install = Callable[..., str]

ADAPTER = """
from typing import ClassVar
from pydantic import Field
from backends.base import BackendOptions
from backends.memory import MemoryBackend, MemoryOptions

class TheirOptions(MemoryOptions):
    shelf: int = Field(default=1, description="Which shelf.")

class TheirBackend(MemoryBackend):
    Options: ClassVar[type[BackendOptions]] = TheirOptions
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Builds a wheel and puts it on the path, where it works as it is; the name of the module in it."""
    before = set(sys.modules)

    def build(entry_points: str, code: str = ADAPTER, *, name: str = "theirs") -> str:
        module = f"theirs_{secrets.token_hex(6)}"
        wheel = tmp_path / f"{name}-1.2-py3-none-any.whl"
        information = f"{name}-1.2.dist-info"
        files = {
            f"{module}.py": code,
            f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n",
            f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{information}/entry_points.txt": entry_points.format(module=module),
            f"{information}/RECORD": "",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        monkeypatch.syspath_prepend(str(wheel))
        return module

    yield build
    for module in set(sys.modules) - before:
        if module.startswith("theirs_"):
            del sys.modules[module]


async def test_an_installed_adapter_has_a_name_like_ours(install: Install) -> None:
    module = install("[transload.backends]\ntheirs = {module}:TheirBackend\n")
    assert "theirs" in BACKENDS.names()
    assert "theirs" not in BACKENDS.entries
    assert module not in sys.modules, "nothing of it is imported before it is used"
    adapter = BACKENDS.load("theirs")
    assert (adapter.__module__, adapter.__name__) == (module, "TheirBackend")
    backend = await adapter.connect(adapter.Options.model_validate({"shelf": 3}))
    assert (await backend.write("k", single(b"x"), Attributes())).created
    await backend.aclose()


def test_our_own_names_win(install: Install) -> None:
    module = install("[transload.backends]\nfile = {module}:TheirBackend\n")
    assert BACKENDS.load("file").__module__ == "backends.file"
    assert module not in sys.modules
    assert BACKENDS.names().count("file") == 1


def test_an_unknown_name_is_answered_with_all_that_there_are(install: Install) -> None:
    install("[transload.backends]\ntheirs = {module}:TheirBackend\n")
    with pytest.raises(UnknownName, match=r"file, .*memory, .*theirs"):
        BACKENDS.load("their")


@pytest.mark.parametrize(
    ("code", "value", "said"),
    [
        ("raise RuntimeError('on purpose')", ":TheirBackend", "RuntimeError: on purpose"),
        ("raise SystemExit(1)", ":TheirBackend", "SystemExit"),
        ("import not_installed_anywhere", ":TheirBackend", "not_installed_anywhere"),
        ("def f(:", ":TheirBackend", "SyntaxError"),
        ("", ":TheirBackend", "AttributeError"),
        ("", ".missing:TheirBackend", "ModuleNotFoundError"),
        ("TheirBackend = 3", ":TheirBackend", "lacks an `Options`"),
        ("class TheirBackend: ...", ":TheirBackend", "lacks an `Options`"),
        (
            "from backends.base import BackendOptions\nclass TheirBackend:\n    Options = BackendOptions\n    connect = open = 1",
            ":TheirBackend",
            "lacks `aclose`, `copy_from`, .*`write`",
        ),
    ],
)
def test_a_broken_one_is_told_when_it_is_used_and_disturbs_nobody_else(
    install: Install, code: str, value: str, said: str
) -> None:
    install(f"[transload.backends]\nbroken = {{module}}{value}\n", code)
    assert "broken" in BACKENDS.names()
    assert BACKENDS.load("memory").__module__ == "backends.memory"
    with pytest.raises(BrokenAdapter, match=said) as raised:
        BACKENDS.load("broken")
    assert "backend 'broken' of theirs 1.2 (theirs_" in str(raised.value)
    assert isinstance(raised.value, StorageError)
    assert not raised.value.retryable


def test_one_name_of_two_distributions_is_nobodys(install: Install) -> None:
    install("[transload.backends]\ntwice = {module}:TheirBackend\n", name="first")
    install("[transload.backends]\ntwice = {module}:TheirBackend\n", name="second")
    with pytest.raises(BrokenAdapter, match=r"first 1\.2 and second 1\.2; uninstall all but one"):
        BACKENDS.load("twice")


def test_queues_and_publishers_are_ours_only(install: Install) -> None:
    install("[transload.backends]\ntheirs = {module}:TheirBackend\n[transload.queues]\ntheirs = {module}:X\n")
    for registry in (QUEUES, PUBLISHERS):
        assert registry.names() == sorted(registry.entries)
        with pytest.raises(UnknownName):
            registry.load("theirs")
