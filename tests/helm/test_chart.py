"""What the chart puts up around the workers: its own checklist."""

import re
from typing import Any

import pytest

from tests.helm.charts import CASES, CHART, release, values_of
from tests.support.helm import Engine, HelmError


def refused(helm: Engine, **changes: Any) -> str:
    with pytest.raises(HelmError) as caught:
        release(helm, values_of("minimal", **changes))
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_pods_are_restricted(helm: Engine, name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and more."""
    pods = list(release(helm, values_of(name)).pods)
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (
            True,
            65532,
            65532,
        )
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("name", CASES)
def test_only_scratch_is_written_to(helm: Engine, name: str) -> None:
    for pod in release(helm, values_of(name)).pods:
        (container,) = pod["containers"]
        environ = {item["name"]: item.get("value") for item in container["env"]}
        assert (environ["TMPDIR"], environ["TRANSLOAD_HOME"]) == ("/scratch", "/scratch/home")
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert [path for path, mount in mounts.items() if not mount.get("readOnly")] == ["/scratch"]
        (scratch,) = [volume for volume in pod["volumes"] if volume["name"] == mounts["/scratch"]["name"]]
        assert re.fullmatch(r"\d+[MG]i", scratch["emptyDir"]["sizeLimit"])


def test_the_image_is_pinned_by_its_digest(helm: Engine) -> None:
    digest = values_of("minimal")["image"]["digest"]
    rendered = release(helm, values_of("minimal", image__tag="1.0"))
    for pod in rendered.pods:
        assert pod["containers"][0]["image"] == f"registry.example.org/transload@{digest}"
    assert "image.digest: give the digest" in refused(helm, image__digest="")
    tagged = release(helm, values_of("sqs-roles"))
    assert tagged.container["image"] == "registry.example.org/transload:0.1.0"
    assert "image.digest pins them" in tagged.notes
    assert "image.digest" not in rendered.notes


def test_a_changed_file_is_a_new_pod(helm: Engine) -> None:
    def checksum(**changes: Any) -> str:
        template = release(helm, values_of("minimal", **changes)).one("Deployment")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["checksum/config"]
        return found

    assert checksum() == checksum(replicas=3)
    assert checksum() != checksum(config__logs={"level": "debug"})


def test_the_service_account_is_named_and_annotated(helm: Engine) -> None:
    rendered = release(helm, values_of("sqs-keda"))
    account = rendered.one("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith(":role/transload")
    assert rendered.pod["serviceAccountName"] == account["metadata"]["name"]
    other = release(helm, values_of("hpa"))
    assert other.all("ServiceAccount") == []
    assert other.pod["serviceAccountName"] == "storage"


def test_disruptions_are_bounded_by_what_may_be_missing(helm: Engine) -> None:
    rendered = release(helm, values_of("minimal"))
    spec = rendered.one("PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec
    assert spec["selector"] == rendered.one("Deployment")["spec"]["selector"]
    off = release(helm, values_of("minimal", podDisruptionBudget={"enabled": False}))
    assert off.all("PodDisruptionBudget") == []


def test_pods_are_spread_over_zones_and_nodes(helm: Engine) -> None:
    rendered = release(helm, values_of("minimal"))
    spread = rendered.pod["topologySpreadConstraints"]
    assert [item["topologyKey"] for item in spread] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    workers = rendered.one("Deployment")["spec"]["selector"]
    assert all(item["labelSelector"] == workers for item in spread)
    off = release(helm, values_of("minimal", topologySpread={"enabled": False}))
    assert "topologySpreadConstraints" not in off.pod


def test_nothing_but_metrics_may_be_reached(helm: Engine) -> None:
    rendered = release(helm, values_of("sqs-keda"))
    spec = rendered.one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert spec["ingress"] == [{"ports": [{"port": "admin", "protocol": "TCP"}], "from": [monitoring]}]
    for kind in ("Deployment", "Job"):
        labels = rendered.one(kind)["spec"]["template"]["metadata"]["labels"]
        assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    everybody = release(helm, values_of("minimal")).one("NetworkPolicy")["spec"]
    assert everybody["ingress"] == [{"ports": [{"port": "admin", "protocol": "TCP"}]}]
    assert release(helm, values_of("sqs-roles")).one("NetworkPolicy")["spec"]["policyTypes"] == ["Ingress", "Egress"]  # fmt: skip
    off = release(helm, values_of("minimal", networkPolicy={"enabled": False}))
    assert off.all("NetworkPolicy") == []


def test_prometheus_scrapes_pods_with_the_token(helm: Engine) -> None:
    rendered = release(helm, values_of("sqs-keda"))
    spec = rendered.one("PodMonitor")["spec"]
    assert spec["selector"] == rendered.one("Deployment")["spec"]["selector"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] == rendered.container["ports"][0]["name"]
    token = {"name": "transload-metrics", "key": "token"}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": token}
    given = next(item for item in rendered.container["env"] if item["name"] == "TRANSLOAD_ADMIN__TOKEN")
    assert given["valueFrom"] == {"secretKeyRef": token}
    assert "put one into a Secret" in refused(helm, podMonitor={"enabled": True})
    assert not [item for name in CASES for item in release(helm, values_of(name)).all("Service")]


def test_what_the_values_give_to_the_pod_is_there(helm: Engine) -> None:
    values = values_of("sqs-roles")
    rendered = release(helm, values)
    for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets"):
        assert all(pod[key] == values[key] for pod in rendered.pods)
    for pod in rendered.pods:
        assert values["extraVolumes"][0] in pod["volumes"]
        assert values["extraVolumeMounts"][0] in pod["containers"][0]["volumeMounts"]
        assert values["env"][0] in pod["containers"][0]["env"]
    metadata = rendered.one("Deployment")["spec"]["template"]["metadata"]
    assert metadata["annotations"]["example.org/owner"] == "data"
    assert metadata["labels"]["team"] == "data"
    assert rendered.container["resources"] == {
        "requests": {"cpu": 1, "memory": "320Mi", "ephemeral-storage": "4Gi"},
        "limits": {"cpu": "2", "memory": "512Mi"},
    }


def test_secrets_are_mounted_for_the_worker_only(helm: Engine) -> None:
    for pod in release(helm, values_of("rabbitmq-keda")).pods:
        (volume,) = [volume for volume in pod["volumes"] if "secret" in volume]
        assert volume["secret"] == {"secretName": "transload-keys", "defaultMode": 0o400}
        (mount,) = [item for item in pod["containers"][0]["volumeMounts"] if item["name"] == volume["name"]]
        assert mount["mountPath"] == "/etc/transload-secrets/keys"
        assert pod["securityContext"]["fsGroup"] == 65532


@pytest.mark.parametrize(("name", "told"), [
    ("sqs-keda", "Completions that wait keep a pod as well"),
    ("hpa", "2 to 6, by what they do"),
    ("minimal", "Pods: 2, whatever the queue holds"),
    ("minimal", "Nothing scrapes these yet"),
    ("sqs-keda", "pods at autoscaling.maxReplicas (20)"),
])  # fmt: skip
def test_notes_say_what_to_watch(helm: Engine, name: str, told: str) -> None:
    notes = release(helm, values_of(name)).notes
    assert told in notes
    assert "transload_outbox_oldest_pending_age_seconds" in notes
    assert "\n\n\n" not in notes


def test_the_chart_is_of_this_version() -> None:
    import importlib.metadata

    import yaml

    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert about["appVersion"] == importlib.metadata.version("transload")
