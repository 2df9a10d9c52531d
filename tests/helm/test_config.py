"""The settings file that the pods read is the one the command reads, and no secret is in it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.helm.charts import CASES, release, values_of
from tests.support.helm import Engine, HelmError
from worker.cli import app
from worker.settings import json_schema
from worker.settings_json_schema import Schema

SECRETS: Mapping[str, str] = {
    "DATABASE_URL": "postgresql://u:p@db/transload",
    "RABBITMQ_URL": "amqp://u:p@rabbit:5672/fetch",
    "TRANSLOAD_ADMIN__TOKEN": "0123456789abcdef",
}


def environ_of(container: Mapping[str, Any], config: Path) -> dict[str, str]:
    """What the container's process would see, with secrets of ours."""
    environ = {}
    for item in container["env"]:
        source = item.get("valueFrom", {})
        if "secretKeyRef" in source:
            environ[item["name"]] = SECRETS.get(item["name"], "a secret")
        elif "fieldRef" in source:
            environ[item["name"]] = "10.1.2.3"
        else:
            environ[item["name"]] = item["value"]
    return environ | {"TRANSLOAD_CONFIG": str(config), "TRANSLOAD_HOME": str(config.parent / "home")}


@pytest.mark.parametrize("name", CASES)
def test_config_check_accepts_the_rendered_file(helm: Engine, name: str, tmp_path: Path) -> None:
    rendered = release(helm, values_of(name))
    config = tmp_path / "transload.yaml"
    for pod in rendered.pods:
        (container,) = pod["containers"]
        mounted = next(volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "config")
        (found,) = [item for item in rendered.all("ConfigMap") if item["metadata"]["name"] == mounted]
        config.write_text(found["data"]["transload.yaml"], encoding="utf-8")
        assert container["env"] == [item for item in container["env"] if item["name"] != "HOME"]
        done = CliRunner().invoke(app, ["config", "check"], env=environ_of(container, config))
        assert done.exit_code == 0, (done.exception, done.output)


def test_config_check_refuses_what_no_setting_is(helm: Engine, tmp_path: Path) -> None:
    rendered = release(helm, values_of("minimal", config__worker={"concurency": 3}))
    config = tmp_path / "transload.yaml"
    config.write_text(rendered.one("ConfigMap", "rel-transload")["data"]["transload.yaml"], encoding="utf-8")
    done = CliRunner().invoke(app, ["config", "check"], env=environ_of(rendered.container, config))
    assert "worker.concurency: unknown key" in str(done.exception)


def below(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The keys of a mapping; `x` where they are the user's."""
    yield from schema.get("properties", {}).items()
    for inner in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
        if isinstance(inner, dict):
            yield "x", inner
    for option in (*schema.get("oneOf", ()), *schema.get("anyOf", ())):
        yield from below(option)


def texts(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every key of the settings with a text in it, and whether that text is a secret."""
    inner = list(below(schema))
    for name, field in inner:
        yield from texts(field, (*path, name))
    kinds = [schema, *schema.get("anyOf", [])]
    if not inner and any(kind.get("type") == "string" for kind in kinds):
        yield path, any(kind.get("format") == "password" for kind in kinds)


def resolved(schema: Any, definitions: Schema) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {key: resolved(value, definitions) for key, value in schema.items() if key != "$defs"}
    return [resolved(item, definitions) for item in schema] if isinstance(schema, list) else schema


def nested(values: dict[str, Any], path: tuple[str, ...], text: str) -> dict[str, Any]:
    """The values with a text put there."""
    inner = values
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = text
    return values


def test_no_secret_in_values(helm: Engine) -> None:
    schema = json_schema()
    known = set(texts(resolved(schema, schema["$defs"])))
    hidden = {path for path, secret in known if secret}
    assert {path[-1] for path in hidden} >= {"token", "secret_access_key", "key", "password", "url"}
    # Any other key may be given; the chart has objections of its own to some of these sections.
    plain = {path for path, secret in known if not secret} - hidden
    plain = {
        path for path in plain if path[0] not in {"home", "home_env", "admin", "queue", "publisher", "ledger"}
    }
    assert len(plain) > 100
    for path in hidden:
        with pytest.raises(HelmError, match=f"config.{'.'.join(path)}: a secret does not belong into values"):
            release(helm, {"config": nested({}, path, "amqp://u:p@h/v")})
    config = values_of("minimal")["config"]
    for path in plain:
        nested(config, path, "x")
    release(helm, values_of("minimal", config=config))


@pytest.mark.parametrize(
    "changes",
    [
        {"config__ledger": {"url": "postgresql://u:p@db/transload"}},
        {"config__targets": {"t": {"backend": "module", "options": {"api_secret": "x"}}}},
        {"config__targets": {"t": {"backend": "module", "options": {"all": [{"password": "x"}]}}}},
        {"env": [{"name": "LEDGER", "value": "postgresql://u:p@db/transload"}]},
        {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]},
    ],
)
def test_no_secret_behind_another_name(helm: Engine, changes: dict[str, Any]) -> None:
    with pytest.raises(HelmError, match="a secret does not belong into values"):
        release(helm, values_of("minimal", **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"config__queue": {"type": "embedded"}}, "pods cannot share a queue of type embedded"),
        ({"config__publisher": None}, "what a publisher of type embedded keeps in a pod is lost"),
        ({"config__ledger": None}, "a ledger in a pod is lost with it"),
        ({"config__ledger": {"url": "sqlite:////data/ledger.db"}}, "a ledger in a pod is lost with it"),
        ({"config__home": "/data"}, "config.home: the chart puts it on the scratch volume"),
        ({"config__admin": {"host": "0.0.0.0"}}, "the chart gives host and token"),  # noqa: S104 - refused
        ({"config__admin": {"token_env": "TOKEN"}}, "the chart gives host and token"),
        ({"config__admin": {"enabled": False}}, "the probes ask the admin port"),
        ({"config__admin": {"port": 0}}, "a pod needs a fixed port"),
    ],
)
def test_settings_that_no_pod_can_have_are_refused(helm: Engine, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(HelmError) as caught:
        release(helm, values_of("minimal", **changes))
    assert told in str(caught.value)


def test_large_numbers_stay_whole(helm: Engine, tmp_path: Path) -> None:
    rendered = release(helm, values_of("minimal", config__worker={"transfer_memory": 34_359_738_368}))
    config = tmp_path / "transload.yaml"
    config.write_text(rendered.one("ConfigMap", "rel-transload")["data"]["transload.yaml"], encoding="utf-8")
    done = CliRunner().invoke(app, ["config", "show"], env=environ_of(rendered.container, config))
    assert "transfer_memory: 34359738368\n" in done.output
