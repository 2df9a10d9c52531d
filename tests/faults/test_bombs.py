"""Group F: what a hostile payload costs. tests/faults/bombs.py has the payloads."""

import json
import subprocess
import sys
from typing import Any

import pytest

from handlers.transforms.base import Limits
from tests.faults.bombs import BOMBS

ALLOWED = Limits().memory + (64 << 20)
"""Bytes by which a process may grow over one payload."""


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.bombs"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return {report["name"]: report for report in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_cases_84_85_91_92_93_memory_stays_within_its_limit(
    reports: dict[str, dict[str, Any]], name: str
) -> None:
    assert reports[name]["grown"] < ALLOWED


@pytest.mark.parametrize("name", [name for name, bomb in BOMBS.items() if bomb.stopped_by])
def test_cases_84_85_91_92_93_a_refusal_names_the_limit_and_the_entry(
    reports: dict[str, dict[str, Any]], name: str
) -> None:
    assert BOMBS[name].stopped_by in reports[name]["refusal"]
    assert BOMBS[name].entry in reports[name]["refusal"]


@pytest.mark.parametrize("name", [name for name, bomb in BOMBS.items() if not bomb.stopped_by])
def test_cases_84_92_what_is_within_the_limits_comes_out(
    reports: dict[str, dict[str, Any]], name: str
) -> None:
    assert reports[name]["refusal"] == ""
