"""What holds for every file of the three rooms, and for the top of the repository."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("backends", "handlers", "worker")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

READS_THE_ENVIRONMENT = {"worker/cli.py", "worker/config_file.py"}
"""Besides worker/settings*.py: everything else is handed what it needs."""

MUTABLE = {
    "bytearray",
    "Counter",
    "MetaData",
    "Console",
    "defaultdict",
    "deque",
    "dict",
    "list",
    "OrderedDict",
    "set",
    "Event",
    "Lock",
    "Queue",
    "Semaphore",
    "ContextVar",
    "count",
    "iter",
}
DECLARATIONS = {("worker/ledger/schema.py", "metadata")}
"""SQLAlchemy's collection of tables: data that nobody changes once the module is read."""

TOP = {
    ".ci",
    ".dockerignore",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "backends",
    "docker-compose.yml",
    "docs",
    "handlers",
    "helm",
    "mkdocs.yml",
    "pyproject.toml",
    "requirements.lock",
    "tests",
    "worker",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def named(node: ast.expr) -> str:
    """`collections.deque` -> `deque`, `list[str]` -> `list`."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)):
        return True
    return isinstance(value, ast.Call) and named(value.func) in MUTABLE


def module_statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """What runs when the module is imported, also inside `if` and `try`, but not in functions and classes."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
            waiting += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


def mutable_state(tree: ast.Module) -> Iterator[str]:
    for statement in module_statements(tree):
        if isinstance(statement, ast.Assign) and is_mutable(statement.value):
            yield from (named(target) for target in statement.targets)
        elif isinstance(statement, ast.AnnAssign) and is_mutable(statement.value):
            yield named(statement.target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names


def environment_reads(tree: ast.Module) -> Iterator[int]:
    names = {"environ", "environb", "getenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in names)


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return listed.stdout.splitlines()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_module_keeps_mutable_state(path: Path) -> None:
    found = set(mutable_state(ast.parse(path.read_text())))
    assert {name for name in found if (relative(path), name) not in DECLARATIONS} <= {"__all__"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_entry_points_read_the_environment(path: Path) -> None:
    name = relative(path)
    if name not in READS_THE_ENVIRONMENT and not name.startswith("worker/settings"):
        assert list(environment_reads(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "x = []",
        "x: dict[str, int] = {}",
        "x = collections.deque()",
        "if True:\n    x = {1}",
        "try:\n    x = list[int]()\nexcept ValueError:\n    pass",
        "def f():\n    global x",
        "x = itertools.count()",
    ],
)
def test_the_search_finds_mutable_state(code: str) -> None:
    assert list(mutable_state(ast.parse(code))) == ["x"]


@pytest.mark.parametrize("code", ["os.environ['x']", "import os\nos.getenv('x')", "from os import environ"])
def test_the_search_finds_environment_reads(code: str) -> None:
    assert list(environment_reads(ast.parse(code)))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_says_which_room_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), (
        "a module docstring says what this is and who calls it"
    )


def test_there_is_no_drawer() -> None:
    drawers = {"utils", "util", "helpers", "common", "core", "misc"}
    assert not [relative(path) for path in SOURCES if drawers & set(path.with_suffix("").parts[-2:])]


def test_every_decision_names_what_was_rejected() -> None:
    decisions = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert decisions, "docs/adr holds the decisions"
    assert not [path.name for path in decisions if "Rejected" not in path.read_text()]


def test_the_top_of_the_repository_holds_nothing_unexpected() -> None:
    top = {name.partition("/")[0] for name in tracked()}
    assert {"pyproject.toml", *ROOMS} <= top
    assert top <= TOP


def test_every_test_that_the_documents_name_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    rooms = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "backends/testing").rglob("*.py")]
    tests = "\n".join(path.read_text(encoding="utf-8") for path in rooms)
    assert named, "the README says which tests prove its guarantees"
    assert {name for name in named if f"def {name}(" not in tests and f"/{name}.py" not in tests} == set()


def test_case_99_no_log_line_carries_more_of_an_error_than_its_text() -> None:
    """Of `exc_info` structlog's default shows the values of all variables. worker/uncaught.py has what to give instead."""
    carrying = re.compile(r"\bexc_info=|\b_?log(ger\(.*\))?\.exception\(")
    assert not [relative(path) for path in SOURCES if carrying.search(path.read_text())]
