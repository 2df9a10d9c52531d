"""Each alert fires when it should and is silent when it should be, by promtool, and leads to a page that says what to do."""

import re
from collections.abc import Iterator
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


def seconds(duration: str) -> int:
    return sum(
        int(number) * {"s": 1, "m": 60, "h": 3600}[unit]
        for number, unit in re.findall(r"(\d+)([smh])", duration)
    )


def there(values: str) -> list[bool]:
    """For each sample of promtool's notation whether the series is there."""
    found: list[bool] = []
    for each in values.split():
        times = re.fullmatch(r"(.*)x(\d+)", each)
        missing = each.startswith(("_", "stale"))
        found += [not missing] * (1 if times is None else int(times[2]) + (0 if missing else 1))
    return found


def without_pods() -> Iterator[tuple[str, bool]]:
    """What is expected of each alert, in promtool's cases, at a time when there is no series of a worker."""
    for path in CASES:
        for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            workers = [
                there(given["values"])
                for given in case["input_series"]
                if re.match(r'(?:up|transload_\w+)\{job="transload"', given["series"])
            ]
            for asked in case["alert_rule_test"]:
                now = seconds(asked["eval_time"]) // seconds(case["interval"])
                # What ends without being stale is taken for there.
                if not any(each[min(now, len(each) - 1)] for each in workers):
                    yield asked["alertname"], bool(asked["exp_alerts"])


@pytest.mark.parametrize(
    "name", ["QueueAgeSLO", "OutboxLag", "BundleStuck", "OutboxPublishFailing", "DLQGrowing"]
)
def test_alerts_about_what_waits_survive_scale_to_zero(name: str) -> None:
    """`test_promtool_agrees` has it judged; here it is seen that the case is among them."""
    assert (name, True) in set(without_pods())


def test_no_pod_is_missed_while_none_is_wanted() -> None:
    assert ("TargetDown", False) in set(without_pods())
    assert ("ConsumerStalled", True) not in set(without_pods()), "who is not there cannot stall"


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
