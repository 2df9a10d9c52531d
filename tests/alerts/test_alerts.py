"""Each alert fires when it should and is silent when it should be, by promtool, and leads to a page that says what to do."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests.alerts.rules import CASES, ROOT, RULES, alerts
from tests.support.prometheus import promtool
from worker.cli import app

LISTED = {
    "QueueAgeSLO",
    "ConsumerStalled",
    "DLQGrowing",
    "OutboxLag",
    "OutboxPublishFailing",
    "BundleStuck",
    "BackendErrorRatio",
    "IntegrityFailure",
    "VisibilityExtensionFailing",
    "AtMaxReplicas",
    "KedaScalerErrors",
    "TargetDown",
}
ALERTS = alerts()
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")


def expectations(path: Path) -> list[tuple[str, Any]]:
    tests = yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
    return [(case["alertname"], case["exp_alerts"]) for test in tests for case in test["alert_rule_test"]]


def commands() -> list[str]:
    """What the pages tell to type, and what they mention in passing."""
    spans = re.findall(r"`[^`\n]*?(transload [a-z][^`\n]*)`|^(transload .*)$", RUNBOOKS, flags=re.MULTILINE)
    return sorted({"".join(each) for each in spans})


def test_every_alert_of_the_checklist_is_there() -> None:
    assert set(ALERTS) == LISTED


@pytest.mark.usefixtures("prometheus")
def test_the_rules_are_rules() -> None:
    assert f"SUCCESS: {len(LISTED)} rules found" in promtool("check", "rules", RULES)


@pytest.mark.usefixtures("prometheus")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_promtool_agrees(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_is_seen_firing_and_silent() -> None:
    seen = [each for path in CASES for each in expectations(path)]
    assert {name for name, expected in seen if expected} == LISTED
    assert {name for name, expected in seen if not expected} == LISTED


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert notes["dashboard_url"] == "/d/transload"
    assert notes["runbook_url"] == f"docs/runbooks.md#{name.lower()}"


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOKS, flags=re.MULTILINE)
    assert sorted(headings) == sorted(LISTED)
    for name, body in zip(headings, re.split(r"^## \w+$", RUNBOOKS, flags=re.MULTILINE)[1:], strict=True):
        parts = re.findall(r"^\*\*(.+?)\.\*\*", body, flags=re.MULTILINE)
        assert parts == ["It means", "Look first", "Do", "Call"], name


@pytest.mark.parametrize("line", commands(), ids=str)
def test_the_pages_name_only_commands_that_there_are(line: str) -> None:
    found: Any = typer.main.get_command(app)
    words = line.split()[1:]
    while hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
