"""The values' schema refuses what the chart does not know; the page about them is the generated one."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.docs.blocks import ROOT, blocks_of
from tests.helm.charts import CHART, release, values_of
from tests.helm.reference import reference
from tests.support.helm import Engine, HelmError

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if "properties" in schema:
        yield path, schema
        for name, field in schema["properties"].items():
            yield from objects(field, f"{path}.{name}".lstrip("."))


def test_nothing_unknown_is_accepted() -> None:
    assert [path for path, schema in objects(SCHEMA) if schema["additionalProperties"] is not False] == []


def test_the_schema_knows_the_values_and_no_others() -> None:
    def keys(schema: Any, values: Any) -> None:
        assert list(schema["properties"]) == [*values, *(["global"] if schema is SCHEMA else [])]
        for name, field in schema["properties"].items():
            if "properties" in field:
                keys(field, values[name])
            elif name != "global":
                assert field["description"]

    keys(SCHEMA, VALUES)


def test_the_reference_is_the_generated_one() -> None:
    assert (CHART / "README.md").read_text(encoding="utf-8") == reference(), (
        "run: python -m tests.helm.reference > helm/transload/README.md"
    )


def test_the_values_of_the_page_are_rendered(helm: Engine) -> None:
    """Each block of docs/kubernetes.md on top of those before it, without a warning of its notes but the one that it explains."""
    values: dict[str, Any] = {}
    seen = []
    for block in blocks_of(ROOT / "docs/kubernetes.md"):
        if block.language == "yaml":
            values |= yaml.safe_load(block.text)
            seen.append(release(helm, values, name="transload"))
    deployed, jobs = seen
    assert deployed.one("ScaledObject")["spec"]["maxReplicaCount"] == 20
    assert "raise drain_timeout" in deployed.notes
    assert "Nothing scrapes these yet" not in deployed.notes
    page = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    there = {(item["kind"].lower(), item["metadata"]["name"]) for item in deployed.objects}
    asked = re.findall(r"\b(deploy|job)/([a-z-]+)", page + deployed.notes)
    assert {("deployment" if kind == "deploy" else kind, name) for kind, name in asked} <= there
    assert len(asked) >= 4
    assert jobs.one("ScaledJob")


@pytest.mark.parametrize("path", [path for path, _ in objects(SCHEMA)])
def test_an_unknown_key_is_refused(helm: Engine, path: str) -> None:
    key = f"{path}__colour".replace(".", "__").removeprefix("__")
    with pytest.raises(HelmError, match="colour"):
        release(helm, values_of("minimal", **{key: "red"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workload", "statefulset"),
        ("replicas", -1),
        ("replicas", "2"),
        ("terminationGracePeriodSeconds", 0),
        ("drainMarginSeconds", 14),
        ("autoscaling__scaledJob__emptySeconds", 0),
        ("image__digest", "latest"),
        ("image__digest", "sha256:abc"),
        ("image__repository", ""),
        ("image__pullPolicy", "always"),
        ("config", "transload.yaml"),
        ("env", {"A": "b"}),
        ("secretEnv", {"A": "the secret itself"}),
        ("secretEnv", {"A": {"name": "s"}}),
        ("secretEnv", {"A": {"name": "s", "key": "k", "value": "v"}}),
        ("secretEnv", {"lower-case": {"name": "s", "key": "k"}}),
        ("secretFiles", {"Keys": {"name": "s"}}),
        ("metrics__existingSecret", "Not A Name"),
        ("resources__cpuRequest", "half"),
        ("scratch__sizeLimit", "20 GB"),
        ("autoscaling__mode", "auto"),
        ("autoscaling__queueLength", 0),
        ("autoscaling__maxReplicas", 0),
        ("autoscaling__authentication__type", "workload"),
        ("autoscaling__authentication__identityOwner", "pod"),
        ("autoscaling__authentication__roleArn", "keda"),
        ("autoscaling__prometheus__threshold", 5),
        ("podDisruptionBudget__maxUnavailable", 0),
        ("podDisruptionBudget__maxUnavailable", "0%"),
        ("podDisruptionBudget__minAvailable", 1),
        ("podMonitor__interval", "30"),
        ("podLabels", {"app.kubernetes.io/name": "mine"}),
        ("topologySpread__whenUnsatisfiable", "Never"),
        ("serviceAccount__automountServiceAccountToken", True),
        ("nameOverride", "Upper"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(helm: Engine, key: str, value: Any) -> None:
    with pytest.raises(HelmError, match=key.rpartition("__")[2]):
        release(helm, values_of("minimal", **{key: value}))
