"""Every registered backend is held to the suite, and the table says of it what the tests said."""

import importlib
from pathlib import Path

import pytest

from backends.base import Attributes, Features, Promise, Receipt, StorageBackend
from backends.errors import Unsupported
from backends.memory import MemoryBackend, MemoryOptions
from backends.registry import BACKENDS
from backends.testing import BackendConformance, needs
from backends.testing.copies import Copies
from backends.testing.truth import OUTCOME, Truth
from backends.wrapper import Wrapper
from tests.conformance import test_backends
from tests.conformance.table import PAGE, Result, cell, in_words, missing, page, run, subject_of


def in_the_suite() -> set[str]:
    """The names that test_backends.py lists, and those of modules `test_NAME_backend.py` that run the suite."""
    found = set(test_backends.SUBJECTS)
    for path in Path(__file__).parent.glob("test_*_backend.py"):
        module = importlib.import_module(f"tests.conformance.{path.stem}")
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        if any(issubclass(cls, BackendConformance) and cls is not BackendConformance for cls in classes):
            found.add(path.stem.removeprefix("test_").removesuffix("_backend"))
    return found


def test_every_registered_backend_is_in_the_suite() -> None:
    assert set(BACKENDS.entries) - in_the_suite() == set()


class Less(Wrapper):
    """Memory that can neither delete nor copy, and is not sure to be create-only."""

    @property
    def features(self) -> Features:
        return Features(attributes=True, deletes=False, create_only=False)

    async def delete(self, key: str) -> bool:
        raise Unsupported(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        raise Unsupported(f"{source.location}{source_key} to {key}: {attributes} {promise}")


class Sample(Truth):
    @needs("deletes")
    async def deletes(self, backend: StorageBackend) -> None:
        pytest.fail(f"{backend} cannot")

    @needs("create_only")
    async def creates(self, backend: StorageBackend) -> None:
        pytest.fail(f"{backend} cannot")

    @needs("reads")
    async def reads(self, backend: StorageBackend) -> None:
        await backend.stat("k")


async def test_a_test_tells_how_it_came_to_pass() -> None:
    told: list[tuple[str, object]] = []
    backend = Less(await MemoryBackend.connect(MemoryOptions()))
    sample = Sample()
    sample._record = lambda name, value: told.append((name, value))
    await sample.deletes(backend)
    await sample.creates(backend)
    await sample.reads(backend)
    assert told == [(OUTCOME, "refused"), (OUTCOME, "not offered")]
    copies = Copies()
    copies._record = sample._record
    assert await copies.refused(backend)
    assert told[2:] == [(OUTCOME, "refused")]


async def test_one_that_says_it_cannot_and_can_does_not_pass() -> None:
    class Boasting(Less):
        async def delete(self, key: str) -> bool:
            return bool(key)

    sample = Sample()
    sample._record = lambda _name, _value: None
    with pytest.raises(pytest.fail.Exception):
        await sample.deletes(Boasting(await MemoryBackend.connect(MemoryOptions())))


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([], "-"),
        (["passed", "passed"], "yes"),
        (["refused", "refused"], "refused"),
        (["not offered"], "not offered"),
        (["passed", "refused", "passed"], "yes, 1 of 3 refused"),
        (["passed", "failed", "refused"], "**failed**"),
    ],
)
def test_a_cell_speaks_for_all_parameters(outcomes: list[str], said: str) -> None:
    assert cell(outcomes) == said


def test_names_in_words() -> None:
    assert in_words("test_case_60_other_content_is_a_conflict") == "other content is a conflict (case 60)"
    assert in_words("test_i5_a_broken_source_leaves_nothing") == "a broken source leaves nothing (I5)"
    assert in_words("test_missing_objects") == "missing objects"
    assert subject_of("TestSFTPBackendWithoutExtensions", {}) == "sftp without extensions"
    assert subject_of("TestS3OnRadosgw", {"size": 1}) == "s3 on radosgw"
    assert subject_of("TestBackends", {"backend": "file"}) == "file"
    assert subject_of("TestGuards", {"backend": "retry"}) == "guards: retry"


def test_a_registered_backend_without_results_is_missed() -> None:
    def result(subject: str, adapter: str) -> Result:
        return Result(subject, adapter, {}, "Reading", "test_x", "passed")

    everyone = [result(name, name) for name in BACKENDS.entries]
    assert missing(everyone) == []
    # A form of it, or another that runs under its name, is not it.
    assert missing([*everyone[1:], result("other form", everyone[0].adapter)]) == [everyone[0].adapter]
    assert missing([*everyone[1:], result(everyone[0].adapter, "memory")]) == [everyone[0].adapter]


def test_the_outcomes_are_those_of_real_tests(tmp_path: Path) -> None:
    chosen = "OnlyTakes and (a_copy_is_proven or one_huge_piece or (identical and 10))"
    status, results = run(
        ["tests/conformance/test_http_backend.py", "-q", "-k", chosen, "-p", "no:cacheprovider"],
        tmp_path / "outcomes",
    )
    assert status == 0
    assert {(one.subject, one.adapter) for one in results} == {("http that only takes", "http")}
    assert {(one.part, one.test, one.outcome) for one in results} == {
        ("Reading", "test_one_huge_piece_is_written_whole", "passed"),
        ("Atomicity", "test_identical_writers_at_once_all_succeed", "passed"),
        ("Copies", "test_a_copy_is_proven", "refused"),
    }
    text = page(results, slow=False)
    assert "| one huge piece is written whole | yes |" in text
    assert "| a copy is proven | refused |" in text
    assert "| server copy | no |" in text
    assert "| fifty writes at once | - |" in text


def test_the_page_names_every_promise_of_the_suite() -> None:
    text = PAGE.read_text(encoding="utf-8")
    promises = [name for name in dir(BackendConformance) if name.startswith("test_")]
    assert [name for name in promises if f"| {in_words(name)} |" not in text] == []
    assert [name for name in BACKENDS.entries if f" {name} |" not in text] == []
