"""Finds failpoints, and the durable side effects that have none, by reading the source.

tests/architecture/test_failpoints.py asserts with it, and the crash matrix takes the names it visits from `known`.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("backends", "handlers", "worker")

EFFECTS = (
    # A file system, by the system calls.
    "os.fsync",
    "os.fdatasync",
    "os.link",
    "os.mkdir",
    "os.makedirs",
    "os.remove",
    "os.rename",
    "os.replace",
    "os.symlink",
    "os.truncate",
    "os.unlink",
    "os.write",
    "os.open(O_CREAT)",
    "*.mkdir",
    "*.touch",
    "*.unlink",
    "*.write_bytes",
    "*.write_text",
    "*_tree.create",
    # An object store, by either SDK.
    "obstore.put*",
    "obstore.delete*",
    "obstore.copy*",
    "obstore.rename*",
    "*.put_object",
    "*.copy_object",
    "*.delete_object",
    "*.delete_objects",
    "*.create_multipart_upload",
    "*.upload_part",
    "*.upload_part_copy",
    "*.complete_multipart_upload",
    "*.abort_multipart_upload",
    "*.stage_block",
    "*.commit_block_list",
    "*.upload_blob",
    "*.delete_blob",
    "*.start_copy_from_url",
    "*.abort_copy",
    "*.set_http_headers",
    "*_client.put",
    # Queues and publishers. To receive is to hide from the others.
    "*.receive_message",
    "*.send_message",
    "*.send_message_batch",
    "*.delete_message",
    "*.delete_message_batch",
    "*.change_message_visibility",
    "*.change_message_visibility_batch",
    "*.basic_publish",
    "*.basic_ack",
    "*.basic_nack",
    "*.basic_reject",
    "*exchange.publish",
    "*publisher.publish",
    # Transactions.
    "*conn*.commit",
    "*engine.begin",
    "*database.run",
    "*database.write",
    "*.execute(COMMIT)",
)
"""Calls that outlive a SIGKILL and that another process or a later run can see, as `called` names them."""
_EFFECT = re.compile("|".join(map(translate, EFFECTS)))


@dataclass(frozen=True, slots=True)
class Site:
    """One call of `failpoint`. `name` is empty when it is no literal."""

    path: str
    line: int
    function: str
    name: str


@dataclass(frozen=True, slots=True)
class Effect:
    """One durable side effect and the failpoints around it."""

    path: str
    line: int
    function: str
    call: str
    marked: bool
    """There is a pair of one name around it."""


@dataclass(frozen=True, slots=True)
class Source:
    """What one module does, in the order of its lines."""

    sites: tuple[Site, ...]
    effects: tuple[Effect, ...]


@cache
def sources(pattern: str = "*") -> tuple[Source, ...]:
    """Every module of the three rooms whose path is like `pattern`."""
    paths = sorted(
        path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")
    )
    return tuple(
        read((ROOT / path).read_text(encoding="utf-8"), path) for path in paths if fnmatchcase(path, pattern)
    )


def known(pattern: str = "*") -> tuple[str, ...]:
    """The name of every failpoint in those, in alphabetical order."""
    return tuple(sorted(site.name for source in sources(pattern) for site in source.sites))


def read(code: str, path: str = "worker/example.py") -> Source:
    """The failpoints and the durable side effects in `code`."""
    reader = _Reader(path)
    reader.visit(ast.parse(code))
    return Source(tuple(reader.sites), tuple(reader.effects()))


def called(call: ast.Call) -> str:
    """`os.fsync`, `self._client.put_object`; for calls that say in an argument what they do, that as well."""
    name = ast.unparse(call.func)
    first = call.args[0] if call.args else None
    words = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
    if name.endswith("._call") and words:
        return f"{name}.{words}"
    if name.rpartition(".")[2] in {"execute", "exec_driver_sql"} and words.upper().startswith("COMMIT"):
        return f"{name.rpartition('.')[0]}.execute(COMMIT)"
    if name == "os.open" and any("CREAT" in ast.unparse(argument) for argument in call.args[1:]):
        return "os.open(O_CREAT)"
    return name


class _Reader(ast.NodeVisitor):
    """Walks a module and remembers which functions are around each call."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: list[str] = []
        self._functions: list[ast.AST] = []
        self.sites: list[Site] = []
        self._points: list[tuple[ast.AST | None, Site]] = []
        self._found: list[tuple[Sequence[ast.AST], Effect]] = []

    def effects(self) -> Iterator[Effect]:
        for around, effect in self._found:
            marked = any(self._encloses(function, effect.line) for function in around)
            yield Effect(effect.path, effect.line, effect.function, effect.call, marked)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._names.append(node.name)
        self._functions.append(node)
        self.generic_visit(node)
        self._functions.pop()
        self._names.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - as above

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._functions.append(node)
        self.generic_visit(node)
        self._functions.pop()

    def visit_Call(self, node: ast.Call) -> None:
        name, function = called(node), ".".join(self._names)
        if name.rpartition(".")[2] == "failpoint":
            argument = node.args[0] if node.args else None
            literal = argument.value if isinstance(argument, ast.Constant) else None
            site = Site(self._path, node.lineno, function, literal if isinstance(literal, str) else "")
            self.sites.append(site)
            self._points.append((self._functions[-1] if self._functions else None, site))
        elif _EFFECT.match(name):
            effect = Effect(self._path, node.lineno, function, name, marked=False)
            self._found.append((tuple(self._functions), effect))
        self.generic_visit(node)

    def _encloses(self, function: ast.AST, line: int) -> bool:
        """Whether `function` itself, not one inside it, passes a pair of one name around the line."""
        own = [site for owner, site in self._points if owner is function]
        begun = {_stem(site) for site in own if site.name.endswith(".before") and site.line < line}
        ended = {_stem(site) for site in own if site.name.endswith(".after") and site.line > line}
        return bool(begun & ended)


def _stem(site: Site) -> str:
    return site.name.rpartition(".")[0]
