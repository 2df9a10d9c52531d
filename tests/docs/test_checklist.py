"""docs/checklist.md names tests that there are, and says of the slow ones that they are."""

import ast
import re
from functools import cache

import pytest

from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs/checklist.md").read_text(encoding="utf-8")
_GROUP = re.compile(r"(\(?)`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)")
NAMED = [
    (file, name, bool(bracket))
    for line in PAGE.splitlines()
    for bracket, file, names in _GROUP.findall(line)
    for name in re.findall(r"`(\w+)`", names)
]


@cache
def found_in(file: str) -> dict[str, bool]:
    """A file's tests, and whether each is slow."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    all_slow = "pytestmark = pytest.mark.slow" in marks
    return {
        node.name: all_slow or "pytest.mark.slow" in [ast.unparse(each) for each in node.decorator_list]
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize(("file", "name", "bracketed"), NAMED)
def test_a_test_that_is_named_is_there(file: str, name: str, bracketed: bool) -> None:
    assert found_in(file)[name] is bracketed, "in brackets are the slow ones" if bracketed else "it is slow"


def test_every_line_has_one() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what ")]
    assert len(lines) >= 60
    assert [line for line in lines if not _GROUP.search(line)] == []
    assert len(NAMED) == len(re.findall(r"`test_\w+`", PAGE)), "one of them is not read here"
