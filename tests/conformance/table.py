"""The table of conformance: what each storage backend did when it was held to the port. Run by `make conformance`.

    python -m tests.conformance.table [--slow] [--write docs/conformance.md] [-- pytest's own]

Runs the tests of `backends.testing` on every backend there is, as a plugin of the pytest that it starts, and tells from their
reports what became of each: kept, refused as `Unsupported`, not offered, failed, not run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import cast

import pytest

from backends.base import Features, StorageBackend
from backends.registry import BACKENDS
from backends.testing import BackendConformance
from backends.testing.truth import OUTCOME, Truth
from backends.wrapper import bare

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conformance.md"
COMMAND = "make conformance"
_RESULT = "conformance result"
_VARIABLE = "TRANSLOAD_CONFORMANCE_RESULTS"
"""Names the file for what the tests told; the processes that `-n` spreads them over inherit it and leave it alone."""
_WORD = re.compile(r"[A-Z]+[0-9]*(?![a-z])|[A-Z]?[a-z0-9]+")
_NUMBERED = re.compile(r"(case_\d+|i\d)_(.*)")
_MARKS: Mapping[str, str] = MappingProxyType(
    {"passed": "yes", "refused": "refused", "not offered": "not offered", "failed": "**failed**"}
)

_HEAD = """# Conformance

Written by `{command}`: the suite in `backends/testing`, which says what `backends/base.py` promises, run on every backend
against what it really stores in.

- *yes*: the promise was kept
- *refused*: the backend says in its `Features` that it cannot, and every call of it raised `Unsupported`; for a key that its
  store cannot have, `InvalidKey`
- *not offered*: it says that it cannot, and there is no call that could be refused
- *-*: not run; the long ones are with `ARGS=--slow`

A test with several parameters is one row, and all of them have to pass."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one test told about one backend."""

    subject: str
    """The column: a registered name, or that of another form of one."""
    adapter: str
    """The registered name of what did the work, empty if it never came to that."""
    features: Mapping[str, str]
    """In words: `yes`, `no`, or what of several."""
    part: str
    test: str
    outcome: str
    """`passed`, `refused`, `not offered` or `failed`."""


# The plugin of the pytest that `main` starts.


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only the suite of the backends, on whatever runs it."""
    kept = [item for item in items if part_of(item) is not None]
    config.hook.pytest_deselected(items=[item for item in items if part_of(item) is None])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to the report what only the process that ran the test can know of it."""
    report = yield
    part = part_of(item)
    if part is not None and isinstance(item, pytest.Function) and (report.when == "call" or report.failed):
        report.user_properties.append((_RESULT, asdict(_result(item, part, report))))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called in the process that spread the tests, or ran them."""
    path = os.environ.get(_VARIABLE)
    if path is None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    with Path(path).open("a", encoding="utf-8") as file:
        for name, value in report.user_properties:
            if name == _RESULT:
                file.write(json.dumps(value) + "\n")


def part_of(item: pytest.Item) -> str | None:
    """The class of the suite that a test comes from; None if it is not the suite's."""
    cls, name = getattr(item, "cls", None), getattr(item, "originalname", "")
    if cls is None or not issubclass(cls, Truth):
        return None
    return next((part.__name__ for part in BackendConformance.__mro__ if name in vars(part)), None)


def _result(item: pytest.Function, part: str, report: pytest.TestReport) -> Result:
    backend = cast("StorageBackend | None", item.funcargs.get("backend"))
    adapter = bare(backend, "k")[0] if backend is not None else None
    path = f"{type(adapter).__module__}:{type(adapter).__qualname__}"
    told = dict(report.user_properties).get(OUTCOME, "passed")
    parameters: Mapping[str, object] = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("key") in getattr(item.cls, "untold_keys", ()) and part == "Naming":
        told = "refused"
    return Result(
        subject=subject_of(str(getattr(item.cls, "__name__", "")), parameters),
        adapter=next((name for name, entry in BACKENDS.entries.items() if entry.path == path), ""),
        features={name: _told(value) for name, value in asdict(backend.features).items()} if backend else {},
        part=part,
        test=item.originalname,
        outcome="failed" if report.failed else str(told),
    )


def subject_of(class_name: str, parameters: Mapping[str, object]) -> str:
    """`TestHttpBackendOnNginx` is `http on nginx`; where a class runs for several, its parameter says which."""
    words = (word.lower() for word in _WORD.findall(class_name.removeprefix("Test")))
    name = " ".join(word for word in words if word not in {"backend", "backends"})
    which = parameters.get("backend")
    return ": ".join(str(told) for told in (name, which) if told)


# The page.


def page(results: Sequence[Result], *, slow: bool) -> str:
    """The whole of docs/conformance.md."""
    subjects = sorted({result.subject for result in results})
    main = [name for name in subjects if name in BACKENDS.entries]
    others = [name for name in subjects if name not in BACKENDS.entries]
    lines = [
        *_HEAD.format(command=f"{COMMAND} ARGS=--slow" if slow else COMMAND).splitlines(),
        "",
        "## Adapters",
        "",
        *_table(results, main),
    ]
    if others:
        lines += ["## Other forms", "", "Wrappers, and adapters on another store or with other options.", ""]
        lines += _table(results, others)
    return "\n".join(lines)


def _table(results: Sequence[Result], subjects: Sequence[str]) -> Iterator[str]:
    yield "| | " + " | ".join(subjects) + " |"
    yield "|---" * (len(subjects) + 1) + "|"
    yield "| **What it says it can** |" + " |" * len(subjects)
    for name in (field.name for field in fields(Features)):
        told = (
            _one_of({one.features[name] for one in results if one.subject == subject and one.features})
            for subject in subjects
        )
        yield f"| {name.replace('_', ' ')} | " + " | ".join(told) + " |"
    for part in [cls for cls in BackendConformance.__mro__ if cls not in {BackendConformance, Truth}]:
        tests = [name for name in vars(part) if name.startswith("test_")]
        if tests:
            yield f"| **{part.__name__}** |" + " |" * len(subjects)
        for test in tests:
            cells = (
                cell([one.outcome for one in results if (one.subject, one.test) == (subject, test)])
                for subject in subjects
            )
            yield f"| {in_words(test)} | " + " | ".join(cells) + " |"
    yield ""


def _told(feature: bool | frozenset[str]) -> str:
    if isinstance(feature, bool):
        return "yes" if feature else "no"
    return ", ".join(sorted(feature)) or "none"


def _one_of(told: set[str]) -> str:
    """`by store` where a column is of wrappers over several."""
    return "-" if not told else told.pop() if len(told) == 1 else "by store"


def cell(outcomes: Sequence[str]) -> str:
    """One word for the outcomes of a test with all its parameters."""
    if not outcomes:
        return "-"
    kinds = set(outcomes)
    if len(kinds) == 1 or "failed" in kinds:
        return _MARKS["failed" if "failed" in kinds else outcomes[0]]
    refused = len(outcomes) - outcomes.count("passed")
    return f"yes, {refused} of {len(outcomes)} refused"


def in_words(test: str) -> str:
    """`test_case_60_other_content_is_a_conflict` is `other content is a conflict (case 60)`."""
    name = test.removeprefix("test_")
    if found := _NUMBERED.fullmatch(name):
        number = found[1].replace("_", " ") if found[1].startswith("case") else found[1].upper()
        return f"{found[2].replace('_', ' ')} ({number})"
    return name.replace("_", " ")


def missing(results: Sequence[Result]) -> list[str]:
    """Registered names that no result is of: neither by name nor by what did the work."""
    there = {result.subject for result in results if result.subject == result.adapter}
    return sorted(set(BACKENDS.entries) - there)


def run(arguments: Sequence[str], outcomes: Path) -> tuple[int, list[Result]]:
    """Run the suite, its reports by way of the file `outcomes`; pytest's exit status and what was told."""
    # One of the processes that pytest-xdist spreads tests over tells nobody but its own controller.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**own, _VARIABLE: str(outcomes)}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conformance.table", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    lines = outcomes.read_text(encoding="utf-8").splitlines() if outcomes.exists() else []
    return status, [Result(**json.loads(line)) for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write. 1 when a test failed or a registered backend was not among them."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--slow", action="store_true", help="the tests marked slow as well")
    parser.add_argument("--jobs", default="3", help="processes to spread the tests over")
    parser.add_argument("--write", type=Path, default=PAGE, help="the page to write (docs/conformance.md)")
    parser.add_argument("pytest", nargs="*", help="more arguments for pytest, after --")
    told = parser.parse_args(arguments)
    chosen = ["-m", "slow or not slow"] if told.slow else []
    with tempfile.TemporaryDirectory() as directory:
        spread = ["-q", "-n", told.jobs, "--dist", "worksteal"]
        status, results = run(
            ["tests/conformance", *spread, *chosen, *told.pytest], Path(directory) / "outcomes"
        )
    text = page(results, slow=told.slow)
    print(text)
    if status in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        told.write.write_text(text, encoding="utf-8")
    if absent := missing(results):
        print(f"not in the suite: {', '.join(absent)}", file=sys.stderr)
    return int(bool(status or absent))


if __name__ == "__main__":
    sys.exit(main())
