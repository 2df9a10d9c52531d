"""The long tests begin at once, on all processes."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.support.order import LONG, dealt


def item(name: str, *scopes: str) -> pytest.Item:
    path, _, function = name.partition("::")
    fixtures = {str(number): [SimpleNamespace(scope=scope)] for number, scope in enumerate(scopes)}
    made = SimpleNamespace(
        nodeid=name,
        path=Path(path),
        name=function,
        originalname=function.partition("[")[0],
        _fixtureinfo=SimpleNamespace(name2fixturedefs=fixtures),
    )
    return cast("pytest.Item", made)


def names(items: Sequence[pytest.Item]) -> list[str]:
    return [item.nodeid for item in items]


def test_every_stretch_begins_with_its_share_of_the_long_tests() -> None:
    quick = [item(f"tests/unit/test_a.py::test_{number}") for number in range(20)]
    long = [item(f"tests/faults/test_b.py::test_{number}") for number in range(6)]
    order = dealt([*quick, *long], 3)
    assert sorted(names(order)) == sorted(names([*quick, *long]))
    for start, end in ((0, 8), (8, 17), (17, 26)):
        kinds = [each.nodeid.startswith(LONG) for each in order[start:end]]
        assert kinds == [True] * 2 + [False] * (end - start - 2)


def test_tests_of_one_function_and_of_one_server_stay_together() -> None:
    of_one = [item(f"tests/faults/test_c.py::test_{number}", "session", "module") for number in range(3)]
    variants = [item(f"tests/faults/test_b.py::test_x[{number}]", "function") for number in range(3)]
    quick = [item(f"tests/unit/test_a.py::test_{number}") for number in range(6)]
    order = dealt([*variants, *quick, *of_one], 2)
    assert names(order[:3]) in (names(variants), names(of_one))
    assert names(order[6:9]) in (names(variants), names(of_one))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_nothing_is_lost_where_there_is_little(count: int) -> None:
    items = [item(f"tests/e2e/test_a.py::test_{number}", "module") for number in range(count)]
    assert sorted(names(dealt(items, 3))) == names(items)
