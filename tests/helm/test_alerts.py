"""The chart's alerts: those of tests/alerts, as this release's own, each with a page to read on."""

from typing import Any

import pytest
import yaml

from tests.helm.charts import CHART, release, values_of
from tests.support.helm import Engine, HelmError

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((CHART / "files" / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


def test_the_rules_are_this_releases_own(helm: Engine) -> None:
    rules = release(helm, values_of("sqs-keda")).one("PrometheusRule")["spec"]["groups"][0]["rules"]
    text = "\n".join(rule["expr"] for rule in rules)
    assert '"transload"' not in text
    assert 'job="ns/rel-transload"' in text
    assert 'namespace="ns", deployment="rel-transload"' in text
    assert 'horizontalpodautoscaler="rel-transload-keda"' in text
    assert 'scaledObject="rel-transload"' in text
    for rule, source in zip(rules, RULES, strict=True):
        page = "https://docs.example.org/transload/runbooks#" + rule["alert"].lower()
        assert rule["annotations"] == {
            **source["annotations"],
            "runbook_url": page,
            "dashboard_url": "https://grafana.example.org/d/transload",
        }
        assert (rule.get("for"), rule["labels"]) == (source.get("for"), source["labels"])


def test_without_keda_the_autoscaler_has_its_own_name(helm: Engine) -> None:
    rule = {"enabled": True, "runbookUrl": "https://r", "dashboardUrl": "https://d"}
    rules = release(helm, values_of("hpa", prometheusRule=rule)).one("PrometheusRule")["spec"]["groups"][0][
        "rules"
    ]
    assert 'horizontalpodautoscaler="rel-transload"' in "\n".join(rule["expr"] for rule in rules)


@pytest.mark.parametrize("missing", ["runbookUrl", "dashboardUrl"])
def test_an_alert_without_a_page_is_refused(helm: Engine, missing: str) -> None:
    with pytest.raises(HelmError, match="give runbookUrl and dashboardUrl"):
        release(helm, values_of("sqs-keda", **{f"prometheusRule__{missing}": ""}))
