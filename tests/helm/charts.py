"""The chart as the tests of this folder look at it: rendered once for each values file, taken apart into its objects."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.helm import Engine

CHART = Path(__file__).resolve().parents[2] / "helm" / "transload"
CASES = tuple(sorted(path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*-values.yaml")))
"""What is rendered and judged: one values file each."""

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Release:
    """What one `helm template` gave."""

    objects: tuple[Object, ...]
    notes: str

    def all(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> Object:
        """The only object of that kind, or the only one whose name ends so."""
        (found,) = [item for item in self.all(kind) if item["metadata"]["name"].endswith(suffix)]
        return found

    @property
    def pods(self) -> Iterator[Object]:
        """Every pod template's spec: of workers, of the migration and of the sweep."""
        for item in self.objects:
            if item["kind"] in {"Deployment", "Job"}:
                yield item["spec"]["template"]["spec"]
            elif item["kind"] == "ScaledJob":
                yield item["spec"]["jobTargetRef"]["template"]["spec"]
            elif item["kind"] == "CronJob":
                yield item["spec"]["jobTemplate"]["spec"]["template"]["spec"]

    @property
    def pod(self) -> Object:
        """A Deployment's worker."""
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        container: Object
        (container,) = self.pod["containers"]
        return container

    @property
    def triggers(self) -> Mapping[str, Object]:
        """KEDA's triggers by their type."""
        (scaled,) = self.all("ScaledObject") or self.all("ScaledJob")
        return {trigger["type"]: trigger for trigger in scaled["spec"]["triggers"]}


@cache
def _read(name: str) -> Any:
    return yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))


def values_of(name: str, **changes: Any) -> dict[str, Any]:
    """The values of `ci/<name>-values.yaml`; `changes` are put into their mappings, two underscores lead a level down."""
    values: dict[str, Any] = copy.deepcopy(_read(name))
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = values
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return values


def release(helm: Engine, values: Mapping[str, Any], *, name: str = "rel", chart: Path = CHART) -> Release:
    """Rendered. Raises `HelmError` where the chart refuses the values."""
    rendered = helm.render(chart, values, name=name)
    notes = rendered.pop("transload/templates/NOTES.txt")
    documents = (item for text in rendered.values() for item in yaml.safe_load_all(text))
    return Release(tuple(item for item in documents if item), notes)
