"""Helm's engine and Kubernetes' schemas in a process of their own. Started by tests/support/helm.py, with the Python they live in.

A line of JSON in is a line of JSON out: `{"do": …}` gives `{"answer": …}`, or `{"error": …}` where Helm or a schema refuses.
The process ends with its standard input, so it cannot outlive the run.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import helm_python  # type: ignore[import-not-found]  # they live in the other Python
import jsonschema  # type: ignore[import-untyped,import-not-found,unused-ignore]
import kubernetes_validate  # type: ignore[import-not-found]


def version() -> str:
    return str(helm_python.helm_sdk_version())


def render(chart: str, values: dict[str, Any], name: str, namespace: str) -> dict[str, str]:
    """As `helm template` does: the values' schema first, then every template by its path."""
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        rendered: dict[str, str] = loaded.render(values, name=name, namespace=namespace)
        return rendered


def lint(chart: str, values: dict[str, Any]) -> list[str]:
    """As `helm lint --strict` does: what is worth a warning or more."""
    report = helm_python.lint(chart, values, strict=True)
    return [f"{found['path']}: {found['error']}" for found in report["messages"] if found["severity"] > 1]


def validate(document: dict[str, Any], kubernetes: str) -> str:
    return str(kubernetes_validate.validate(document, kubernetes, strict=True))


def validate_by(document: dict[str, Any], schema: dict[str, Any]) -> str:
    jsonschema.Draft202012Validator(schema).validate(document)
    return "valid"


CALLS: tuple[Callable[..., Any], ...] = (version, render, lint, validate, validate_by)


def answers() -> Iterator[dict[str, Any]]:
    calls = {call.__name__: call for call in CALLS}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            yield {"answer": calls[asked.pop("do")](**asked)}
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as exc:
            yield {"error": f"{'.'.join(map(str, exc.absolute_path))}: {exc.message}"}
        except Exception as exc:  # noqa: BLE001 - whatever it is, the test that asked has to see it
            yield {"error": f"{type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    for answer in answers():
        print(json.dumps(answer), flush=True)
