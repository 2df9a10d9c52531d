"""In which order tests run. Used by tests/conftest.py.

pytest-xdist's `worksteal` gives each process one stretch of the list, and who is through takes from the end of another's stretch.
As they are collected, the tests that start processes and wait for leases would be one stretch, and begin last.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import pytest

LONG = ("tests/faults/", "tests/e2e/")


def dealt(items: Sequence[pytest.Item], processes: int) -> list[pytest.Item]:
    """Stretches of one length, each of which begins with its share of the long tests."""
    long = [item for item in items if item.nodeid.startswith(LONG)]
    groups: dict[Hashable, list[pytest.Item]] = defaultdict(list)
    for item in long:
        groups[_together(item)].append(item)
    hands: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(hands, key=len).extend(group)
    short = [item for item in items if not item.nodeid.startswith(LONG)]
    for number, hand in enumerate(hands):
        wanted = len(items) * (number + 1) // processes - len(items) * number // processes
        room = max(0, wanted - len(hand))
        hand.extend(short[:room])
        del short[:room]
    return [*(item for hand in hands for item in hand), *short]


def _together(item: pytest.Item) -> Hashable:
    """What has a server to itself stays in one process: the server is started in each."""
    fixtures = getattr(item, "_fixtureinfo", None)
    definitions = fixtures.name2fixturedefs.values() if fixtures is not None else ()
    if any(definition.scope == "module" for found in definitions for definition in found):
        return item.path
    return item.path, getattr(item, "originalname", item.name)
