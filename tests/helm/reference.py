"""What the chart's values mean, as a page for people: helm/transload/README.md.

`python -m tests.helm.reference > helm/transload/README.md` writes it out of values.schema.json and values.yaml; a test compares
the two.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from tests.helm.charts import CHART

Schema = Mapping[str, Any]

_INTRODUCTION: Final = """\
# The Helm chart

Written by `python -m tests.helm.reference > helm/transload/README.md`; a test keeps it so.

Runs Transload's workers on Kubernetes 1.30 or newer, as many as the queue's depth asks for where
[KEDA](https://keda.sh) 2.17 or newer is there. The settings are the same YAML that `transload --config` reads, below `config`;
secrets stay in Secrets of yours, and a secret among the values is refused:

```yaml
# values.yaml
image:
  repository: registry.example.org/transload
  digest: sha256:…
config:
  queue:
    type: sqs
    queue_url: https://sqs.eu-central-1.amazonaws.com/123456789012/resources
    region: eu-central-1
  staging:
    main: {backend: s3, bucket: my-staging, region: eu-central-1}
  targets:
    lake: {backend: s3, bucket: my-lake, region: eu-central-1}
  publisher:
    type: sqs
    queue_url: https://sqs.eu-central-1.amazonaws.com/123456789012/bundles-complete
    region: eu-central-1
  ledger:
    url_env: DATABASE_URL
secretEnv:
  DATABASE_URL: {name: transload-db, key: url}
serviceAccount:
  annotations:
    eks.amazonaws.com/role-arn: arn:aws:iam::123456789012:role/transload
autoscaling:
  mode: keda
  maxReplicas: 20
```

```sh
helm upgrade --install transload helm/transload --values values.yaml
```

`ci/` has more of such files; the tests render each of them and hold the result to the schemas of two Kubernetes versions. It
has not been installed into a cluster yet.

- **How many pods.** KEDA starts one for every `autoscaling.queueLength` messages, waiting and in work; that is
  `config.worker.concurrency` unless you say less. A larger one is refused: ten pods with four messages each, at a target of 20,
  would become two as soon as nothing waits, and the eight that go are busy. Pods go one at a time, and not before
  `serviceTimeP99Seconds` have passed since they were needed.
- **RabbitMQ** is asked over its management API. Over AMQP messages in work are invisible, and their pods would go.
- **Completions** are announced by the workers themselves. So there is always one (`minReplicas` 1 or more), or the outbox is a
  trigger of its own (`autoscaling.outbox`) and `minReplicas` may be 0.
- **Work of hours** is better done by Jobs, which nobody scales down: `workload: scaledjob`. A Job ends (`transload run
  --until-empty`) when the queue has given it nothing for a minute and nothing is in work in it; it does not wait for what others
  have in work. Under a load that never pauses it does not end, and so keeps its version: delete it, and it drains. What Jobs do
  not live long enough for, a CronJob does (`transload sweep`).
- **Stopping.** `terminationGracePeriodSeconds` is longer than `config.worker.drain_timeout` and what is said afterwards
  (`drainMarginSeconds`), or the chart does not render. There is no preStop hook: a worker stops taking at SIGTERM. Where work takes
  longer than the drain, the notes after `helm install` say what that costs.
- **Probes** ask `/livez` and `/readyz` on the pod's address (`config.admin.port`). A busy worker is ready. `/metrics` on the same port
  wants a bearer token: `metrics.existingSecret`.
- **The schema** of the ledger is brought up to date by a Job, by default a hook before install and upgrade. It runs under the
  service account `migration.serviceAccountName`, which has to be there before.

## Values

| key | value | default | meaning |
|---|---|---|---|"""


def reference() -> str:
    """The whole of helm/transload/README.md."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return "\n".join([_INTRODUCTION, *_rows(schema, values, "")]) + "\n"


def _rows(schema: Schema, values: Any, above: str) -> Iterator[str]:
    for name, field in schema["properties"].items():
        if name == "global":
            continue
        default = values[name]
        if "properties" in field:
            yield from _rows(field, default, f"{above}{name}.")
            continue
        cells = (f"`{above}{name}`", _kind(field), _default(default), field["description"])
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _kind(field: Schema) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"] if value)
    kinds = field.get("type") or [option["type"] for option in field["anyOf"]]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    words = {"string": "text", "boolean": "true or false", "array": "list", "object": "mapping"}
    kind = " or ".join(words.get(name, name) for name in kinds if name != "null")
    return f"{kind} from {field['minimum']}" if field.get("minimum") else kind


def _default(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return ""
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
