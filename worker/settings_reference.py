"""The settings described for others: a JSON Schema for editors, and the tables of docs/configuration.md.

`transload config schema` calls `json_schema`. `python -m worker.settings_reference > docs/configuration.md` writes the
document; a test compares the two.
"""

import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from backends.registry import BACKENDS, Registry
from worker.provision.settings import ProvisionSettings
from worker.publishers.registry import PUBLISHERS
from worker.queues.registry import QUEUES
from worker.settings_schema import (
    HOME_DEFAULTS,
    AdminSettings,
    AuditSettings,
    CloudWatchSettings,
    HousekeepingSettings,
    LedgerSettings,
    LogSettings,
    PublisherSettings,
    QueueSettings,
    RelaySettings,
    RouteSettings,
    StagingSettings,
    TargetSettings,
    WorkerSettings,
)

Schema = dict[str, Any]

_ADAPTED: Final[Mapping[str, tuple[type[BaseModel], Registry[Any]]]] = MappingProxyType(
    {
        "queue": (QueueSettings, QUEUES),
        "staging": (StagingSettings, BACKENDS),
        "targets": (TargetSettings, BACKENDS),
        "publisher": (PublisherSettings, PUBLISHERS),
    }
)
_NAMED: Final = frozenset({"staging", "targets"})
_PLAIN: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {
        "ledger": LedgerSettings,
        "worker": WorkerSettings,
        "relay": RelaySettings,
        "housekeeping": HousekeepingSettings,
        "provision": ProvisionSettings,
        "admin": AdminSettings,
        "logs": LogSettings,
        "audit": AuditSettings,
        "cloudwatch": CloudWatchSettings,
    }
)
_NAME: Final = "^[a-z0-9][a-z0-9_-]*$"
_HOME: Final = "Where everything embedded lives; default: `~/.transload`."


def json_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of the settings file, with every adapter's options.

    Raises `MissingExtra` when an adapter's package is not installed: a schema without it would refuse good files.
    """
    sections: Schema = {"home": {"type": "string", "description": _HOME}}
    definitions: Schema = {}
    for key, (model, registry) in _ADAPTED.items():
        schema: Schema = {
            "oneOf": [_variant(key, model, registry, kind, definitions) for kind in registry.entries]
        }
        if key in _NAMED:
            schema = {
                "type": "object",
                "propertyNames": {"pattern": _NAME},
                "additionalProperties": schema,
            }
        sections[key] = {"description": model.__doc__, **schema}
    route = _object(RouteSettings, definitions)
    del route["properties"]["name"]
    sections["routes"] = {
        "description": RouteSettings.__doc__,
        "type": "object",
        "propertyNames": {"pattern": _NAME},
        "additionalProperties": _with_references({**route, "required": []}),
    }
    for key, model in _PLAIN.items():
        section = _object(model, definitions)
        section["required"] = []  # the only one there is, ledger.url, has its default in home
        sections[key] = _with_references(section)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Transload settings",
        "type": "object",
        "properties": {**sections, "home_env": {"type": "string"}},
        "additionalProperties": False,
        "$defs": definitions,
    }


def _object(model: type[BaseModel], definitions: Schema) -> Schema:
    schema = model.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    return schema


def _described(model: type[BaseModel]) -> Schema:
    """As `_object`, with the models it refers to beside it."""
    definitions: Schema = {}
    return {**_object(model, definitions), "definitions": definitions}


def _variant(
    key: str, model: type[BaseModel], registry: Registry[Any], kind: str, definitions: Schema
) -> Schema:
    """One section as it looks with one adapter: its own keys and the adapter's, side by side."""
    own = _object(model, definitions)["properties"]
    adapter = _object(registry.load(kind).Options, definitions)
    chooser = _chooser(model)
    default = model.model_fields[chooser].default
    in_home = HOME_DEFAULTS.get((key, kind), ("", ""))[0]
    required = [name for name in adapter.get("required", []) if name != in_home]
    own = {name: schema for name, schema in own.items() if name not in {"name", "options"}}
    return _with_references(
        {
            "type": "object",
            "properties": {**adapter["properties"], **own, chooser: {**own[chooser], "const": kind}},
            "required": required if kind == default else [*required, chooser],
            "additionalProperties": False,
        }
    )


def _with_references(schema: Schema) -> Schema:
    """The same object with `X_env` accepted in the place of every X."""
    names = list(schema["properties"])
    references = {
        f"{name}_env": {"type": "string", "description": f"The variable that holds {name}."} for name in names
    }
    either = [
        {"anyOf": [{"required": [name]}, {"required": [f"{name}_env"]}]}
        for name in schema.get("required", [])
    ]
    return {
        **{key: value for key, value in schema.items() if key != "required"},
        "properties": {**schema["properties"], **references},
        **({"allOf": either} if either else {}),
    }


def _chooser(model: type[BaseModel]) -> str:
    return "backend" if "backend" in model.model_fields else "type"


def reference() -> str:
    """The whole of docs/configuration.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    for key, (model, registry) in _ADAPTED.items():
        chooser = _chooser(model)
        own = _described(model)
        own["properties"] = {
            name: schema for name, schema in own["properties"].items() if name not in {"name", "options"}
        }
        own["properties"][chooser]["enum"] = list(registry.entries)
        yield from _section(f"{key}.<name>" if key in _NAMED else key, str(model.__doc__), own)
        for kind in registry.entries:
            schema = _described(registry.load(kind).Options)
            option, default = HOME_DEFAULTS.get((key, kind), ("", ""))
            if option:
                schema["properties"][option]["default"] = f"{{home}}/{default}"
            yield from _section(f"with {chooser}: {kind}", "", schema, level=3)
    route = _described(RouteSettings)
    del route["properties"]["name"]
    yield from _section("routes.<name>", str(RouteSettings.__doc__), {**route, "required": []})
    for key, model in _PLAIN.items():
        yield from _section(key, str(model.__doc__), _described(model))
    yield _SEED


def _section(title: str, about: str, schema: Schema, level: int = 2) -> Iterator[str]:
    yield f"\n{'#' * level} `{title}`\n"
    if not schema["properties"]:
        yield "No further keys."
        return
    if about:
        yield f"{about}\n"
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    required = schema.get("required", [])
    for name, field in _flat(schema):
        cells = (
            f"`{name}`",
            _kind(field),
            _default(field, required=name in required),
            field.get("description", ""),
        )
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _flat(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The keys, and below each that is a mapping its own: `breaker`, `breaker.threshold`."""
    for name, field in schema["properties"].items():
        inner = _definition(field, schema)
        yield name, {**field, "type": "mapping"} if inner else field
        for key, below in (inner or {"properties": {}})["properties"].items():
            yield f"{name}.{key}", below


def _definition(field: Schema, schema: Schema) -> Schema | None:
    """The object that a reference to another model means."""
    references = [option["$ref"] for option in (field, *field.get("anyOf", [])) if "$ref" in option]
    if not references:
        return None
    found: Schema = schema["definitions"][references[0].rpartition("/")[2]]
    return found


def _kind(field: Schema) -> str:
    options = [option for option in field.get("anyOf", []) if option.get("type") != "null"]
    field = {**field, **options[0]} if options else field
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("format") == "password":
        return "text, secret"
    if field.get("format") in {"path", "file-path", "directory-path"}:
        return "path"
    name: str = field["type"]
    name = {"string": "text", "boolean": "true or false", "array": "list"}.get(name, name)
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join(
        [name, *(f"{word} {_number(field[key])}" for key, word in bounds.items() if key in field)]
    )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _default(field: Schema, *, required: bool) -> str:
    default = field.get("default")
    if default is None and required:
        return "required" if "default:" not in field.get("description", "") else ""
    if default is None or default == []:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else "empty"


_INTRODUCTION: Final = """\
# Configuration

Written by `python -m worker.settings_reference > docs/configuration.md`; a test keeps it so.

Transload runs without any configuration: queue, staging, target, ledger and completions then live in one directory,
`home`. What differs is said in one YAML file, named by `--config` or `TRANSLOAD_CONFIG`:

```yaml
home: ./transload-home
targets:
  main:
    backend: s3
    bucket: my-bundles
    prefix: captures
    secret_access_key_env: BUNDLES_SECRET
worker:
  concurrency: 32
```

`transload config check` lists everything that is wrong at once, `transload config show` prints what is in force without
secrets, `transload config schema` prints a JSON Schema for editors.

- **Later wins:** defaults, the file, the environment, the command line's `--home`.
- **Environment:** `TRANSLOAD_` and the key's path in capitals, levels parted by two underscores:
  `TRANSLOAD_WORKER__CONCURRENCY=8`, `TRANSLOAD_TARGETS__MAIN__PREFIX=captures`. The text is taken as it is and its type is
  the key's; a value that begins with `[` or a quote is read as YAML, `null` and `~` take a value away, an empty variable
  counts as not set. Names with a dash or two underscores cannot be reached this way.
- **References:** any key with `_env` added names the environment variable that holds the value:
  `secret_access_key_env: BUNDLES_SECRET`. A variable that is not set is an error.
- **Paths:** `~` is the home directory of the user. Relative paths start from the folder of the file; `--home`,
  `TRANSLOAD_HOME`, and everything else when there is no file, from the working directory.
- **Several places:** without a `root`, `main` has the directory named below, any other name `{home}/staging-<name>` or
  `{home}/storage-<name>`.
- **Strictness:** an unknown or repeated key is an error, as are YAML anchors, aliases and tags.
- **Routes:** without `routes`, every message goes to every target.
- Staging must not lie inside a target or another staging source, nor one of them inside it.

| key | value | default | meaning |
|---|---|---|---|
| `home` | path | `~/.transload` | Where everything embedded lives. |"""

_SEED: Final = """
## Without a file: the OC Fetcher's variables

They are honoured only when no file is given; `TRANSLOAD_…` variables still win over them.

| variable | means |
|---|---|
| `OC_STORAGE_TYPE` | `s3` or `file`: the backend of the target `main` |
| `OC_S3_BUCKET`, `OC_S3_PREFIX`, `OC_S3_ENDPOINT_URL` | bucket, prefix and endpoint of the target, with `s3` |
| `AWS_REGION` | region of bucket and queue |
| `OC_STORAGE_PIPELINE_AWS_PROFILE` | credentials profile for bucket and queue |
| `OC_SQS_QUEUE_URL` | the SQS queue completions go to; required with `s3` |
| `OC_STORAGE_FILE_PATH` | the target's directory, with `file` |
| `OC_STORAGE_USE_UNZIP`, `OC_STORAGE_USE_BUNDLER` | not available in this version: true is an error |"""


if __name__ == "__main__":
    sys.stdout.write(reference())
