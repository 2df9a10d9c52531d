"""How many pods there are: the checklist of scaling."""

from typing import Any

import pytest

from tests.helm.charts import Release, release, values_of
from tests.support.helm import Engine, HelmError


def keda(helm: Engine, **changes: Any) -> Release:
    return release(helm, values_of("sqs-keda", **changes))


def refused(helm: Engine, name: str, **changes: Any) -> str:
    with pytest.raises(HelmError) as caught:
        release(helm, values_of(name, **changes))
    return str(caught.value)


def test_queue_length_is_the_pods_concurrency(helm: Engine) -> None:
    metadata = keda(helm).triggers["aws-sqs-queue"]["metadata"]
    assert metadata == {
        "queueURL": "https://sqs.eu-central-1.amazonaws.com/123456789012/resources",
        "awsRegion": "eu-central-1",
        "queueLength": "16",
        "scaleOnInFlight": "true",
    }
    changed = keda(helm, config__worker__concurrency=5)
    assert changed.triggers["aws-sqs-queue"]["metadata"]["queueLength"] == "5"
    assert "one for every 5 messages" in changed.notes
    assert "config.worker.concurrency, what one pod works on at once" in changed.notes
    assert keda(helm, autoscaling__queueLength=4).triggers["aws-sqs-queue"]["metadata"]["queueLength"] == "4"


def test_a_queue_length_above_the_concurrency_is_refused(helm: Engine) -> None:
    told = refused(helm, "sqs-keda", autoscaling__queueLength=17)
    assert "autoscaling.queueLength: 17 is above config.worker.concurrency (16)" in told


@pytest.mark.parametrize("name", ["sqs-keda", "hpa"])
def test_a_drain_shorter_than_most_work_is_told(helm: Engine, name: str) -> None:
    """What docs/scaling.md shows for a steady load: pods that are taken away give back what takes longer."""
    short = release(helm, values_of(name, config__worker={"drain_timeout": 25}, autoscaling__serviceTimeP99Seconds=300))  # fmt: skip
    assert "raise drain_timeout to the same number" in short.notes
    long = release(helm, values_of(name, config__worker={"drain_timeout": 300}, autoscaling__serviceTimeP99Seconds=300))  # fmt: skip
    assert "raise drain_timeout" not in long.notes
    assert "raise drain_timeout" not in release(helm, values_of("minimal")).notes, "nothing takes pods away"


def test_rabbitmq_is_asked_over_http(helm: Engine) -> None:
    rendered = release(helm, values_of("rabbitmq-keda"))
    trigger = rendered.triggers["rabbitmq"]
    assert trigger["metadata"] == {
        "protocol": "http",
        "queueName": "resources",
        "vhostName": "fetch",
        "mode": "QueueLength",
        "value": "64",
        "excludeUnacknowledged": "false",
    }
    authentication = rendered.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
    assert authentication["spec"] == {
        "secretTargetRef": [{"parameter": "host", "name": "transload-keda-rabbitmq", "key": "host"}]
    }


def test_completions_never_wait_for_traffic(helm: Engine) -> None:
    rendered = keda(helm)
    assert rendered.one("ScaledObject")["spec"]["minReplicaCount"] == 0
    outbox = rendered.triggers["postgresql"]
    assert outbox["metadata"]["activationTargetQueryValue"] == "0"
    connection = rendered.one("TriggerAuthentication", outbox["authenticationRef"]["name"])
    assert connection["spec"]["secretTargetRef"][0]["parameter"] == "connection"
    assert "with no pod, completions would wait" in refused(
        helm, "sqs-keda", autoscaling__outbox={"enabled": False}
    )
    assert "enable autoscaling.outbox" in refused(helm, "scaledjob", autoscaling__outbox={"enabled": False})
    floor = keda(helm, autoscaling__outbox={"enabled": False}, autoscaling__minReplicas=1)
    assert set(floor.triggers) == {"aws-sqs-queue"}


def test_fallback_takes_nobody_away(helm: Engine) -> None:
    assert keda(helm).one("ScaledObject")["spec"]["fallback"] == {
        "failureThreshold": 3,
        "replicas": 2,
        "behavior": "currentReplicasIfHigher",
    }


@pytest.mark.parametrize(("name", "kind"), [("sqs-keda", "ScaledObject"), ("hpa", "HorizontalPodAutoscaler")])
def test_scale_down_waits_for_the_p99_and_takes_one_pod(helm: Engine, name: str, kind: str) -> None:
    spec = release(helm, values_of(name, autoscaling__serviceTimeP99Seconds=700)).one(kind)["spec"]
    behavior = spec.get("behavior") or spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"] == {
        "stabilizationWindowSeconds": 700,
        "selectPolicy": "Max",
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    }


def test_a_window_below_the_p99_is_refused(helm: Engine) -> None:
    told = refused(helm, "sqs-keda", autoscaling__stabilizationWindowSeconds=899)
    assert "899 is below serviceTimeP99Seconds (900)" in told
    assert "for longer work use workload scaledjob" in refused(
        helm, "sqs-keda", autoscaling__serviceTimeP99Seconds=3601
    )


@pytest.mark.parametrize("name", ["sqs-keda", "rabbitmq-keda", "scaledjob"])
def test_triggers_use_cached_metrics(helm: Engine, name: str) -> None:
    assert all(trigger["useCachedMetrics"] for trigger in release(helm, values_of(name)).triggers.values())


def test_a_prometheus_without_an_answer_is_an_error(helm: Engine) -> None:
    metadata = release(helm, values_of("rabbitmq-keda")).triggers["prometheus"]["metadata"]
    assert metadata["ignoreNullValues"] == "false"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"podIdentity": {"provider": "aws"}}),
        ({"identityOwner": "keda"}, {"podIdentity": {"provider": "aws", "identityOwner": "keda"}}),
        ({"identityOwner": "workload"}, {"podIdentity": {"provider": "aws", "identityOwner": "workload"}}),
        (
            {"roleArn": "arn:aws:iam::123456789012:role/keda"},
            {"podIdentity": {"provider": "aws", "roleArn": "arn:aws:iam::123456789012:role/keda"}},
        ),
        (
            {"type": "secret", "existingSecret": "keys"},
            {
                "secretTargetRef": [
                    {"parameter": "awsAccessKeyID", "name": "keys", "key": "AWS_ACCESS_KEY_ID"},
                    {"parameter": "awsSecretAccessKey", "name": "keys", "key": "AWS_SECRET_ACCESS_KEY"},
                ]
            },
        ),
    ],
)
def test_trigger_authentication(helm: Engine, given: dict[str, str], expected: dict[str, Any]) -> None:
    rendered = keda(helm, autoscaling__authentication=given)
    name = rendered.triggers["aws-sqs-queue"]["authenticationRef"]["name"]
    assert rendered.one("TriggerAuthentication", name)["spec"] == expected


def test_a_trigger_authentication_of_ones_own(helm: Engine) -> None:
    own = {"type": "existing", "existingName": "shared", "existingKind": "ClusterTriggerAuthentication"}
    rendered = keda(helm, autoscaling__authentication=own)
    reference = rendered.triggers["aws-sqs-queue"]["authenticationRef"]
    assert reference == {"name": "shared", "kind": "ClusterTriggerAuthentication"}
    assert [item["metadata"]["name"] for item in rendered.all("TriggerAuthentication")] == [
        "rel-transload-outbox"
    ]


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("sqs-keda", {"serviceAccount": {}}, "(IRSA, not EKS Pod Identity)"),
        ("sqs-keda", {"autoscaling__authentication__roleArn": "arn:aws:iam::123456789012:role/k"}, "keep one of them"),
        ("sqs-keda", {"autoscaling__authentication": {"type": "secret"}}, "authentication.existingSecret"),
        ("sqs-keda", {"autoscaling__authentication": {"type": "existing"}}, "authentication.existingName"),
        ("sqs-keda", {"config__queue__region": None}, "KEDA has to know queue_url and region"),
        ("sqs-keda", {"autoscaling__outbox__existingSecret": ""}, "autoscaling.outbox.existingSecret"),
        ("rabbitmq-keda", {"autoscaling__rabbitmq": {}}, "over AMQP, messages in work cannot be seen"),
        ("rabbitmq-keda", {"config__queue__queue": ""}, "KEDA has to know the queue's name"),
        ("rabbitmq-keda", {"autoscaling__prometheus__query": ""}, "give serverAddress and query"),
        ("sqs-keda", {"autoscaling__minReplicas": 21}, "autoscaling.minReplicas: above maxReplicas"),
        ("hpa", {"autoscaling__minReplicas": 0}, "without KEDA nothing starts the first pod"),
        ("minimal", {"workload": "scaledjob"}, "set autoscaling.mode to keda"),
    ],
)  # fmt: skip
def test_what_cannot_scale_is_refused(
    helm: Engine, name: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(helm, name, **changes)


@pytest.mark.parametrize(("name", "replicas"), [("minimal", 2), ("sqs-keda", None), ("hpa", None)])
def test_replicas_are_left_out_where_something_scales(helm: Engine, name: str, replicas: int | None) -> None:
    assert release(helm, values_of(name)).one("Deployment")["spec"].get("replicas") == replicas


def test_hpa_without_keda(helm: Engine) -> None:
    rendered = release(helm, values_of("hpa"))
    spec = rendered.one("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == rendered.one("Deployment")["metadata"]["name"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    own = [
        {
            "type": "Pods",
            "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "48"}},
        }
    ]
    changed = release(helm, values_of("hpa", autoscaling__hpa={"metrics": own}))
    assert changed.one("HorizontalPodAutoscaler")["spec"]["metrics"] == own


def test_scaled_jobs_roll_out_gradually_and_run_once(helm: Engine) -> None:
    rendered = release(helm, values_of("scaledjob"))
    spec = rendered.one("ScaledJob")["spec"]
    assert spec["rollout"] == {"strategy": "gradual"}
    assert spec["minReplicaCount"] == 0
    (container,) = spec["jobTargetRef"]["template"]["spec"]["containers"]
    assert container["args"] == ["run", "--until-empty", "60"]
    assert spec["jobTargetRef"]["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["jobTargetRef"]["backoffLimit"] == 0
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert not [
        *rendered.all("Deployment"),
        *rendered.all("PodDisruptionBudget"),
        *rendered.all("ScaledObject"),
    ]
    assert "nothing to do for 60 s" in rendered.notes


def test_a_jobs_node_is_left_to_it(helm: Engine) -> None:
    """By what makes nodes fewer; a node that is drained by hand still ends it, and it drains."""

    def annotations(**changes: Any) -> Any:
        job = release(helm, values_of("scaledjob", **changes)).one("ScaledJob")
        return job["spec"]["jobTargetRef"]["template"]["metadata"]["annotations"]

    safe = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    assert (annotations()[safe], annotations()["karpenter.sh/do-not-disrupt"]) == ("false", "true")
    assert annotations(podAnnotations={safe: "true"})[safe] == "true"
    pods = release(helm, values_of("sqs-keda")).one("Deployment")["spec"]["template"]
    assert safe not in pods["metadata"]["annotations"]


def test_jobs_are_scraped_and_their_alerts_are_about_jobs(helm: Engine) -> None:
    rule = {"enabled": True, "runbookUrl": "https://r", "dashboardUrl": "https://d"}
    scraped = {"metrics": {"existingSecret": "m"}, "podMonitor": {"enabled": True}, "prometheusRule": rule}
    rendered = release(helm, values_of("scaledjob", **scraped))
    monitor = rendered.one("PodMonitor")["spec"]
    template = rendered.one("ScaledJob")["spec"]["jobTargetRef"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["containers"][0]["ports"][0]["name"] == monitor["podMetricsEndpoints"][0]["port"]

    def asked(found: Release) -> str:
        groups = found.one("PrometheusRule")["spec"]["groups"]
        return "\n".join(each["expr"] for group in groups for each in group["rules"])

    assert 'type="scaledobject"' not in asked(rendered)
    assert 'type="scaledjob"' in asked(rendered)
    # With nothing scraped, no Job would ever seem to run.
    unscraped = release(helm, values_of("scaledjob", prometheusRule=rule))
    assert 'type="scaledjob"' not in asked(unscraped)


def test_what_jobs_do_not_live_long_enough_for_is_done_by_the_clock(helm: Engine) -> None:
    sweep = release(helm, values_of("scaledjob")).one("CronJob")
    (container,) = sweep["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["sweep"]
    assert sweep["spec"]["concurrencyPolicy"] == "Forbid"
    for off in (
        {"autoscaling__scaledJob": {"sweepSchedule": ""}},
        {"config__housekeeping": {"enabled": False}},
    ):
        assert release(helm, values_of("scaledjob", **off)).all("CronJob") == []
    assert release(helm, values_of("sqs-keda")).all("CronJob") == []
