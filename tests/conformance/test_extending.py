"""The adapter of docs/extending.md, as it is printed there, runs the suite; and it can be configured once it is installed."""

import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from backends.testing import BackendConformance
from worker import stores
from worker.settings import load_settings

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def my_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's first block of Python as an installed distribution with its entry point."""
    text = PAGE.read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (points,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_store.py").write_text(code, encoding="utf-8")
    installed = tmp_path / "my_store-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-store\nVersion: 1\n", encoding="utf-8"
    )
    (line,) = re.findall(r'^mystore = "(.*)"$', points, re.MULTILINE)
    (installed / "entry_points.txt").write_text(f"[transload.backends]\nmystore = {line}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import my_store as module  # type: ignore[import-not-found] # it is there since a moment ago

    yield module
    del sys.modules["my_store"]


class TestMyStore(BackendConformance):
    huge = 64 << 20

    @pytest.fixture
    async def backend(self, my_store: Any) -> AsyncIterator[Any]:
        backend = await my_store.MyStore.connect(my_store.MyOptions(shelf="test"))
        yield backend
        await backend.aclose()


async def test_it_is_configured_by_its_name(my_store: Any, tmp_path: Path) -> None:
    yaml = "\n".join(re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    (tmp_path / "t.yaml").write_text(yaml, encoding="utf-8")
    settings = load_settings(file=tmp_path / "t.yaml", home=tmp_path, environ={})
    async with stores.open_targets(settings) as targets:
        assert isinstance(targets["mine"], my_store.MyStore)
        assert targets["mine"].location == "mystore://first/"


async def test_the_class_of_the_page_is_the_one_that_runs_here(my_store: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    _, proof = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(proof, names)  # noqa: S102 - the page's own code
    assert issubclass(names["TestMyStore"], BackendConformance)
    assert names["TestMyStore"].huge == TestMyStore.huge
    assert names["MyStore"] is my_store.MyStore
