"""docs/licences.md, and under which licences a worker's packages may be."""

from collections.abc import Mapping

import pytest

from tests.supply.licences import PAGE, allowed, licence_of, page
from tests.supply.packages import brought_by, locked


@pytest.fixture(scope="module")
def workers() -> Mapping[str, set[str]]:
    """The packages of a worker."""
    return brought_by()


def test_case_110_the_list_of_licences_is_of_the_lock(workers: Mapping[str, set[str]]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(workers), "make licences"


def test_case_110_a_worker_has_packages_under_permissive_or_weak_licences_only(
    workers: Mapping[str, set[str]],
) -> None:
    assert [f"{name}: {licence_of(name)}" for name in sorted(workers) if not allowed(licence_of(name))] == []


@pytest.mark.parametrize(
    ("expression", "is_allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("LGPL-2.1-or-later", False),
        ("EPL-2.0 OR GPL-2.0-or-later", True),
        ("MIT AND GPL-2.0-only", False),
        ("GPL-2.0-only OR MIT AND Apache-2.0", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
    ],
)
def test_case_110_a_choice_of_licences_is_judged_by_the_best(expression: str, *, is_allowed: bool) -> None:
    assert allowed(expression) is is_allowed


def test_case_110_what_is_for_development_is_no_part_of_a_worker(workers: Mapping[str, set[str]]) -> None:
    development = {"pytest", "mypy", "hatchling", "hypothesis", "ruff"}
    assert development <= set(locked())
    assert not development & set(workers)
    assert workers["asyncssh"] == {"sftp"}
    assert workers["greenlet"] == {"postgres"}, "an extra of a package is told from the package"
