"""From start to stop: the checklist of a pod's life."""

import json
import math
from typing import Any

import pytest
import yaml

from handlers.transforms.base import Limits
from tests.helm.charts import CASES, CHART, release, values_of
from tests.support.helm import Engine, HelmError
from worker import cloudwatch, opentelemetry_export, service
from worker.settings_process import AdminSettings, WorkerSettings

LAST_WORDS: int = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["drainMarginSeconds"]
"""Seconds after the drain, by default and at least."""


@pytest.mark.parametrize("name", CASES)
def test_grace_period_outlasts_the_drain(helm: Engine, name: str) -> None:
    values = values_of(name)
    drain = values["config"].get("worker", {}).get("drain_timeout", 25)
    rendered = release(helm, values)
    graces = [
        pod["terminationGracePeriodSeconds"]
        for pod in rendered.pods
        if pod["containers"][0]["args"][0] == "run"
    ]
    assert len(graces) == 1
    assert graces[0] > drain + LAST_WORDS
    assert f"{graces[0]} s from SIGTERM on" in rendered.notes


def test_the_margin_is_what_a_worker_may_take_after_the_drain() -> None:
    """Giving back and announcing, the last traces, the last metrics; the rest is for closing what is open."""
    margin = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"][
        "drainMarginSeconds"
    ]["minimum"]
    assert margin == LAST_WORDS
    assert margin > service._LAST_WORDS + opentelemetry_export._LAST_WORDS + cloudwatch._LAST_WORDS


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"terminationGracePeriodSeconds": 40}, "40 is not above"),
        ({"config__worker": {"drain_timeout": 44.5}, "terminationGracePeriodSeconds": 60}, "together (60)"),
        ({"drainMarginSeconds": 35, "terminationGracePeriodSeconds": 60}, "together (60)"),
    ],
)
def test_a_grace_period_that_is_too_short_is_refused(
    helm: Engine, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(HelmError, match="terminationGracePeriodSeconds") as caught:
        release(helm, values_of("minimal", **changes))
    assert told in str(caught.value)


def test_one_second_more_is_enough(helm: Engine) -> None:
    rendered = release(helm, values_of("minimal", terminationGracePeriodSeconds=41))
    assert rendered.pod["terminationGracePeriodSeconds"] == 41


@pytest.mark.parametrize("name", CASES)
def test_no_pre_stop_sleep(helm: Engine, name: str) -> None:
    for pod in release(helm, values_of(name)).pods:
        assert all("lifecycle" not in container for container in pod["containers"])


def test_probes_ask_the_admin_port_of_the_pod(helm: Engine) -> None:
    container = release(helm, values_of("hpa")).container
    assert container["ports"] == [{"name": "admin", "containerPort": 8080}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}
    assert container["startupProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    host = next(item for item in container["env"] if item["name"] == "TRANSLOAD_ADMIN__HOST")
    assert host["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_what_the_chart_assumes_are_the_workers_defaults(helm: Engine) -> None:
    worker = WorkerSettings()
    rendered = release(helm, values_of("sqs-keda", config__worker=None))
    trigger = rendered.triggers["aws-sqs-queue"]["metadata"]
    assert trigger["queueLength"] == str(worker.concurrency)
    assert rendered.pod["terminationGracePeriodSeconds"] == math.ceil(worker.drain_timeout) + LAST_WORDS + 5
    assert (
        rendered.container["resources"]["requests"]["memory"] == f"{128 + worker.transfer_memory // 2**20}Mi"
    )
    assert rendered.container["ports"][0]["containerPort"] == AdminSettings().port
    scratch = next(volume for volume in rendered.pod["volumes"] if volume["name"] == "scratch")
    assert scratch["emptyDir"]["sizeLimit"] == f"{1024 + Limits().spool // 2**20}Mi"


def test_memory_follows_what_transfers_share(helm: Engine) -> None:
    resources = release(helm, values_of("sqs-keda")).container["resources"]
    assert resources["requests"]["memory"] == "512Mi"
    assert resources["limits"]["memory"] == "704Mi"
    odd = release(helm, values_of("sqs-keda", config__worker__transfer_memory=2**30 + 1))
    assert odd.container["resources"]["requests"]["memory"] == "1153Mi"


def test_scratch_follows_the_spool(helm: Engine) -> None:
    def size(**changes: Any) -> str:
        pod = release(helm, values_of("rabbitmq-keda", **changes)).pod
        limit: str = next(
            volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "scratch"
        )
        return limit

    assert size() == "3072Mi"
    assert size(config__routes__other={"limits": {"spool": 4 * 2**30}}) == "5120Mi"
    assert size(scratch={"sizeLimit": "7Gi"}) == "7Gi"


@pytest.mark.parametrize("name", ["sqs-keda", "rabbitmq-keda"])
def test_migration_is_a_job_and_a_hook_by_toggle(helm: Engine, name: str) -> None:
    rendered = release(helm, values_of(name))
    job = rendered.one("Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["migrate"]
    (config,) = [volume["configMap"]["name"] for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == "config"]  # fmt: skip
    annotations = job["metadata"].get("annotations", {})
    if name == "sqs-keda":
        assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
        hooked = rendered.one("ConfigMap", config)
        assert hooked["metadata"]["annotations"]["helm.sh/hook"] == annotations["helm.sh/hook"]
        assert int(hooked["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
        assert hooked["data"] == rendered.one("ConfigMap", "rel-transload")["data"]
    else:
        assert annotations == {}
        assert config == rendered.one("ConfigMap")["metadata"]["name"]
    # Nothing sends a migration traffic, and no budget counts it.
    selector = rendered.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= labels.items()


def test_another_release_is_another_migration(helm: Engine) -> None:
    def name(**changes: Any) -> str:
        found: str = release(helm, values_of("rabbitmq-keda", **changes)).one("Job")["metadata"]["name"]
        return found

    assert name() == name()
    assert (
        len({name(), name(image__digest="sha256:" + "b" * 64), name(config__worker={"concurrency": 2})}) == 3
    )


def test_no_migration_where_it_is_somebody_elses(helm: Engine) -> None:
    assert release(helm, values_of("hpa")).all("Job") == []
