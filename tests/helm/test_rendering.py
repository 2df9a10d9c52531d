"""Every values file of ci/ is linted, rendered and held to the schemas of Kubernetes, KEDA and Prometheus's operator."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.charts import CASES, CHART, Object, release, values_of
from tests.support.helm import Engine, HelmError

KUBERNETES = ("1.30", "1.37")
"""The oldest that the chart allows, and the newest there is a schema of."""
INTERFACES: Mapping[str, Any] = yaml.safe_load(
    Path(__file__).with_name("interfaces.yaml").read_text(encoding="utf-8")
)
OWN = {key for key in INTERFACES if key != "definitions"}


def interface(item: Object) -> Mapping[str, Any]:
    kind = f"{item['apiVersion']}/{item['kind']}"
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": INTERFACES[kind]},
        "definitions": INTERFACES["definitions"],
    }


def judge(helm: Engine, item: Object, kubernetes: str) -> None:
    """Raises `HelmError` where the object has a field that the API does not know, lacks one, or has a wrong value."""
    if f"{item['apiVersion']}/{item['kind']}" not in OWN:
        helm.ask("validate", document=item, kubernetes=kubernetes)
        return
    helm.ask("validate_by", document=item, schema=interface(item))
    # Its metadata, and the Job within it, are Kubernetes' own.
    spec = item["spec"].get("jobTargetRef", {"template": {"spec": {"containers": [{"name": "x"}]}}})
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": item["metadata"], "spec": spec}
    helm.ask("validate", document=job, kubernetes=kubernetes)


@pytest.mark.parametrize("name", CASES)
def test_helm_lint(helm: Engine, name: str) -> None:
    assert helm.lint(CHART, values_of(name)) == []


def test_helm_lint_without_values(helm: Engine) -> None:
    assert helm.lint(CHART, {}) == []


def test_helm_lint_sees_what_is_wrong(helm: Engine, tmp_path: Path) -> None:
    broken = shutil.copytree(CHART, tmp_path / "transload")
    (broken / "templates" / "more.yaml").write_text("kind: [\n", encoding="utf-8")
    assert helm.lint(broken, values_of("minimal"))


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("name", CASES)
def test_manifests_keep_to_the_schemas(helm: Engine, name: str, kubernetes: str) -> None:
    for item in release(helm, values_of(name)).objects:
        judge(helm, item, kubernetes)


def test_every_kind_is_rendered_somewhere(helm: Engine) -> None:
    kinds = {item["kind"] for name in CASES for item in release(helm, values_of(name)).objects}
    assert kinds == {
        "ConfigMap",
        "CronJob",
        "Deployment",
        "HorizontalPodAutoscaler",
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PodMonitor",
        "PrometheusRule",
        "ScaledJob",
        "ScaledObject",
        "ServiceAccount",
        "TriggerAuthentication",
    }


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_the_schemas_refuse_what_no_api_knows(helm: Engine, kubernetes: str) -> None:
    rendered = release(helm, values_of("sqs-keda"))
    for item in [*rendered.objects, *release(helm, values_of("scaledjob")).all("ScaledJob")]:
        odd = json.loads(json.dumps(item))
        odd["data" if item["kind"] == "ConfigMap" else "odd"] = 1
        with pytest.raises(HelmError):
            judge(helm, odd, kubernetes)
    job = json.loads(json.dumps(release(helm, values_of("scaledjob")).one("ScaledJob")))
    job["spec"]["jobTargetRef"]["template"]["spec"]["containers"][0]["arguments"] = []
    with pytest.raises(HelmError, match="arguments"):
        judge(helm, job, kubernetes)


@pytest.mark.parametrize("name", CASES)
def test_names_are_cut_to_63_with_their_suffix(helm: Engine, name: str) -> None:
    long = release(helm, values_of(name), name="r" * 53)
    names = [(item["kind"], item["metadata"]["name"]) for item in long.objects]
    assert len(set(names)) == len(names)
    assert all(len(given) <= 63 for _, given in names)
    longer = release(helm, values_of(name, fullnameOverride="f" * 63), name="r")
    for item in longer.objects:
        given = item["metadata"]["name"]
        # https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/: a CronJob's has 52 at most.
        assert len(given) == (52 if item["kind"] == "CronJob" else 63) or item["kind"] == "ServiceAccount"
        labels = item["metadata"]["labels"].values()
        assert all(len(str(value)) <= 63 for value in labels)
    suffixes = {"TriggerAuthentication": ("-queue", "-outbox"), "Job": ("-migrate",), "ScaledObject": ("f",)}
    for kind, allowed in suffixes.items():
        for item in longer.all(kind):
            ours = item["metadata"]["name"].removesuffix(item["metadata"]["name"][-9:])
            assert item["metadata"]["name"].endswith(allowed) or ours.endswith("-migrate")


def test_two_releases_share_no_name(helm: Engine) -> None:
    for name in CASES:
        one, two = (
            {(item["kind"], item["metadata"]["name"]) for item in release(helm, values_of(name), name=given).objects}
            for given in ("one", "two")
        )  # fmt: skip
        assert not {kind for kind, _ in one & two} - {"ServiceAccount"}


def test_the_dashboard_is_put_up_where_there_is_one(helm: Engine, tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "transload")
    values = values_of("minimal", dashboard={"enabled": True})
    (chart / "files" / "dashboard.json").unlink(missing_ok=True)
    assert len(release(helm, values, chart=chart).all("ConfigMap")) == 2
    (chart / "files" / "dashboard.json").write_text('{"title": "Transload"}\n', encoding="utf-8")
    found = release(helm, values, chart=chart).one("ConfigMap", "-dashboard")
    assert json.loads(found["data"]["rel-transload.json"]) == {"title": "Transload"}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
