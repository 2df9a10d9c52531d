"""The alerts: over metrics that there are, each with a page to read on, and this release's own."""

import re
from typing import Any

import pytest
import yaml
from prometheus_client import Histogram

from tests.helm.charts import CHART, release, values_of
from tests.support.helm import Engine, HelmError
from worker.metrics import Metrics

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((CHART / "files" / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
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
ELSEWHERE = {
    "up",
    "keda_scaler_detail_errors_total",
    "kube_deployment_spec_replicas",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_status_current_replicas",
}
"""Of Prometheus, KEDA and kube-state-metrics."""
FROM_THE_LEDGER = (
    "transload_bundle_oldest",
    "transload_bundles",
    "transload_outbox_pending",
    "transload_outbox_oldest",
)


def known() -> set[str]:
    names = set()
    for collector in vars(Metrics()).values():
        for family in getattr(collector, "describe", list)():
            suffixes = {"counter": ["_total"], "gauge": [""], "info": ["_info"]}.get(
                family.type, ["_bucket", "_sum", "_count"]
            )
            names |= {family.name + suffix for suffix in suffixes}
    assert any(isinstance(value, Histogram) for value in vars(Metrics()).values())
    return names


def test_all_alerts_of_the_checklist_are_there() -> None:
    assert {rule["alert"] for rule in RULES} == LISTED


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_name_only_metrics_that_exist(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"([a-z_]+)\{", rule["expr"]))
    assert named
    assert named - ELSEWHERE <= known()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_gauges_of_the_ledger_are_aggregated_with_max_and_outlive_the_last_pod(rule: dict[str, Any]) -> None:
    for found in re.finditer(r"transload_[a-z_]+", rule["expr"]):
        if (
            found[0].startswith(FROM_THE_LEDGER)
            and "histogram" not in rule["expr"]
            and "publish" not in found[0]
        ):
            before = rule["expr"][: found.start()]
            assert re.search(r"max by \(job\) \(last_over_time\($", before), rule["alert"]


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
