"""The documentation is a site without a link that leads nowhere, and what its diagrams name is what the code has."""

import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from tests.docs.blocks import ROOT
from tests.support.mkdocs import SCRIPT, MkDocs
from worker.ledger.values import BundleState, OutboxState


def states(title: str) -> set[str]:
    """The states in the diagram below a heading of docs/concepts.md."""
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(rf"## {title}\n\n```mermaid\n(.*?)```", text, re.DOTALL)
    return set(re.findall(r"\b(\w+) -->", diagram)) | set(re.findall(r"--> (\w+)", diagram))


def test_the_site_is_built_without_a_warning(mkdocs: MkDocs, tmp_path: Path) -> None:
    built = mkdocs.build(tmp_path / "site")
    assert built.returncode == 0, built.stderr + built.stdout
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    drawn = {path.name for path, text in pages.items() if f'<script src="{SCRIPT}"></script>' in text}
    assert drawn == {"index.html", "concepts.html"}, "they have diagrams; others need not load it"
    assert {path.name for path, text in pages.items() if 'class="mermaid"' in text} == drawn
    assert b"mermaid" in (tmp_path / "site" / SCRIPT).read_bytes()
    taken = re.compile(r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    assert [taken.findall(text) for text in pages.values() if taken.search(text)] == [], (
        "nothing from elsewhere"
    )


@pytest.mark.parametrize("wrong", ["[there](nowhere.md)", "[there](cli.md#no-such-heading)"])
def test_a_link_that_leads_nowhere_ends_the_build(mkdocs: MkDocs, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/cli.md", tmp_path / "docs/cli.md")
    (tmp_path / "docs/index.md").write_text(f"# Here\n\n{wrong}\n", encoding="utf-8")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[0]
    # The theme takes a second, and looks at no link.
    settings = re.sub(r"\ntheme:\n(?: .*\n|\n)+", "\ntheme: {name: mkdocs}\n", settings)
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    built = mkdocs.build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert built.returncode != 0
    assert wrong.partition("](")[2].rstrip(")").partition("#")[2] in built.stderr + built.stdout


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "helm/transload/README.md"])
def test_pages_beside_the_site_link_to_what_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs/adr/index.md").read_text(encoding="utf-8")
    lines = {line for line in listed.splitlines() if line.startswith("- ")}
    expected = {
        f"- [{path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}]({path.name})"
        for path in (ROOT / "docs/adr").glob("0*.md")
    }
    assert lines == expected


def test_the_diagrams_have_the_states_of_the_code() -> None:
    assert states("The life of a bundle") == set(get_args(BundleState))
    assert states("The life of a completion") == set(get_args(OutboxState))
