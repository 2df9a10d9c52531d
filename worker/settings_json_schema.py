"""The settings as a JSON Schema, for editors: `transload config schema` prints it.

worker/settings_reference.py makes its tables of the same sections.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from backends.registry import BACKENDS, Registry
from handlers.transforms.key_ring import KeyRingOptions
from worker.provision.settings import ProvisionSettings
from worker.publishers.registry import PUBLISHERS
from worker.queues.registry import QUEUES
from worker.settings_places import (
    HOME_DEFAULTS,
    PublisherSettings,
    QueueSettings,
    RouteSettings,
    StagingSettings,
    TargetSettings,
)
from worker.settings_process import (
    AdminSettings,
    AuditSettings,
    CloudWatchSettings,
    HousekeepingSettings,
    LedgerSettings,
    LogSettings,
    RelaySettings,
    TracingSettings,
    WorkerSettings,
)
from worker.settings_secrets import SecretsSettings

Schema = dict[str, Any]

ADAPTED: Final[Mapping[str, tuple[type[BaseModel], Registry[Any]]]] = MappingProxyType(
    {
        "queue": (QueueSettings, QUEUES),
        "staging": (StagingSettings, BACKENDS),
        "targets": (TargetSettings, BACKENDS),
        "publisher": (PublisherSettings, PUBLISHERS),
    }
)
"""Sections that name an adapter."""
NAMED: Final = frozenset({"staging", "targets"})
"""Those of them of which there are several, by name."""
PLAIN: Final[Mapping[str, type[BaseModel]]] = MappingProxyType(
    {
        "ledger": LedgerSettings,
        "worker": WorkerSettings,
        "relay": RelaySettings,
        "housekeeping": HousekeepingSettings,
        "encryption": KeyRingOptions,
        "provision": ProvisionSettings,
        "admin": AdminSettings,
        "logs": LogSettings,
        "audit": AuditSettings,
        "cloudwatch": CloudWatchSettings,
        "tracing": TracingSettings,
        "secrets": SecretsSettings,
    }
)
"""Sections that name none."""
_NAME: Final = "^[a-z0-9][a-z0-9_-]*$"
_HOME: Final = "Where everything embedded lives; default: `~/.transload`."


def json_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of the settings file, with every adapter's options.

    Raises `MissingExtra` when an adapter's package is not installed: a schema without it would refuse good files.
    """
    sections: Schema = {"home": {"type": "string", "description": _HOME}}
    definitions: Schema = {}
    for key, (model, registry) in ADAPTED.items():
        schema: Schema = {
            "oneOf": [_variant(key, model, registry, kind, definitions) for kind in registry.entries]
        }
        if key in NAMED:
            schema = {
                "type": "object",
                "propertyNames": {"pattern": _NAME},
                "additionalProperties": schema,
            }
        sections[key] = {"description": model.__doc__, **schema}
    route = object_schema(RouteSettings, definitions)
    del route["properties"]["name"]
    sections["routes"] = {
        "description": RouteSettings.__doc__,
        "type": "object",
        "propertyNames": {"pattern": _NAME},
        "additionalProperties": _with_references({**route, "required": []}),
    }
    for key, model in PLAIN.items():
        section = object_schema(model, definitions)
        section["required"] = []  # the only one there is, ledger.url, has its default in home
        sections[key] = _with_references(section, secrets=key != "secrets")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Transload settings",
        "type": "object",
        "properties": {**sections, "home_env": {"type": "string"}},
        "additionalProperties": False,
        "$defs": definitions,
    }


def object_schema(model: type[BaseModel], definitions: Schema) -> Schema:
    """The JSON Schema of one section; what it refers to is added to `definitions`."""
    schema = model.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    return schema


def _variant(
    key: str, model: type[BaseModel], registry: Registry[Any], kind: str, definitions: Schema
) -> Schema:
    """One section as it looks with one adapter: its own keys and the adapter's, side by side."""
    own = object_schema(model, definitions)["properties"]
    adapter = object_schema(registry.load(kind).Options, definitions)
    chooser = chooser_of(model)
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


def _with_references(schema: Schema, *, secrets: bool = True) -> Schema:
    """The same object with `X_env`, `X_file` and `X_secret` accepted in the place of every X, as config_references.py has it."""
    ways = {name: _ways(name, schema["properties"], secrets=secrets) for name in schema["properties"]}
    references = {
        each: {"type": "string", "description": about}
        for references in ways.values()
        for each, about in references.items()
    }
    either = [
        {"anyOf": [{"required": [each]} for each in (name, *ways[name])]}
        for name in schema.get("required", [])
    ]
    return {
        **{key: value for key, value in schema.items() if key != "required"},
        "properties": {**schema["properties"], **references},
        **({"allOf": either} if either else {}),
    }


def _ways(name: str, properties: Schema, *, secrets: bool) -> Mapping[str, str]:
    """The references to a value of that name, and what they hold."""
    ways = {f"{name}_env": f"The variable that holds {name}."}
    kinds = [properties[name], *properties[name].get("anyOf", [])]
    if not any(kind.get("format") == "path" for kind in kinds):
        ways[f"{name}_file"] = f"The file that holds {name}."
        if secrets:
            ways[f"{name}_secret"] = (
                f"The secret in AWS Secrets Manager that holds {name}: ID, ID#KEY, ID#KEY#STAGE."
            )
    return {each: about for each, about in ways.items() if each not in properties}


def chooser_of(model: type[BaseModel]) -> str:
    """The key that names the adapter."""
    return "backend" if "backend" in model.model_fields else "type"
