"""What README and docs show is run: settings are checked, Python is executed, commands are typed into a shell."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.blocks import BLOCKS, ROOT, Block, blocks_of, of_language
from tests.docs.shell import run
from worker.settings import load_settings

VALUES: Mapping[str, str] = {
    "DATABASE_URL": "postgresql://user:password@127.0.0.1:5432/database",
    "RABBITMQ_URL": "amqp://user:password@127.0.0.1:5672/vhost",
}
"""What the pages' variables hold, where any text will not do."""

NOT_RUN = {
    "README.md": 4,
    "docs/encryption.md": 2,
    "docs/getting-started.md": 1,
    "docs/image.md": 4,
    "docs/in-process.md": 1,
    "docs/kubernetes.md": 2,
    "docs/notifications.md": 1,
    "docs/operations.md": 3,
    "docs/runbooks.md": 13,
    "docs/secrets.md": 2,
    "docs/supply-chain.md": 3,
    "docs/targets/module.md": 1,
}
"""How many blocks of each page say `not run`."""


def with_shell() -> list[str]:
    return sorted({block.page for block in of_language("sh", "bash")})


@pytest.mark.parametrize("block", of_language("yaml"), ids=str)
def test_settings_are_valid(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "transload.yaml"
    file.write_text(block.text, encoding="utf-8")
    named = re.findall(r"\w+_env: (\w+)", block.text)
    settings = load_settings(
        file=file, home=tmp_path / "home", environ={name: VALUES.get(name, "x" * 16) for name in named}
    )
    assert set(yaml.safe_load(block.text)) <= set(type(settings).model_fields)


@pytest.mark.parametrize("block", of_language("json"), ids=str)
def test_json_can_be_read(block: Block) -> None:
    json.loads(block.text if block.text.startswith("{") else f"{{{block.text}}}")


@pytest.mark.parametrize("block", of_language("python"), ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSLOAD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.text, str(block), "exec"), names)  # noqa: S102 - the page's own code


@pytest.mark.parametrize("page", with_shell())
def test_commands_work(page: str, tmp_path: Path) -> None:
    """All of a page in one shell, in order, in a folder that holds the repository's docs."""
    script = "\n".join(block.text for block in blocks_of(ROOT / page) if block in of_language("sh", "bash"))
    folder, home = tmp_path / "transload", tmp_path / "user"
    shutil.copytree(ROOT / "docs/targets", folder / "docs/targets")
    home.mkdir()
    ran = run(script, folder, home, {"TRANSLOAD_ADMIN__PORT": "0"})
    assert ran.status == 0, f"{page}\n{ran.out}\n{ran.err}"


def test_what_is_not_run_says_why_and_is_counted() -> None:
    reasons = [block for block in BLOCKS if block.remark.startswith("not run: ")]
    assert all(len(block.remark) > len("not run: ") + 10 for block in reasons)
    assert Counter(block.page for block in reasons) == NOT_RUN


def test_what_another_test_runs_names_a_test() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = [block.remark.removeprefix("run by ") for block in BLOCKS if block.remark.startswith("run by ")]
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_block_has_a_language_that_is_looked_at() -> None:
    run_here = {"sh", "bash", "yaml", "json", "python"}
    shown = {"text", "mermaid", "toml", "sql", "console"}
    assert {block.language for block in BLOCKS} <= run_here | shown
    assert len([block for block in BLOCKS if block.language in run_here and block.is_run]) >= 29
