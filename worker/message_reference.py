"""The messages as documents for machines: docs/messages.schema.json and docs/asyncapi.yaml, made of the models.

`python -m worker.message_reference messages.schema.json > docs/messages.schema.json` writes the one, with `asyncapi.yaml` the other; a
test compares them with what is there. Consumers and producers in other languages generate their types from them.
"""

import json
import sys
from typing import Any, Final

import yaml
from pydantic import TypeAdapter

from handlers.messages import BundleClosed, ResourceFetched
from worker.notification_fields import Completion, CompletionAttributes

Schema = dict[str, Any]

SCHEMA_FILE: Final = "messages.schema.json"
ASYNCAPI_FILE: Final = "asyncapi.yaml"
_IN: Final = ("ResourceFetched", "BundleClosed")
_OUT: Final = "Completion"


def json_schema() -> Schema:
    """JSON Schema (draft 2020-12): any one of the messages; each alone is under `$defs`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Transload messages",
        "description": "What a worker takes (ResourceFetched, BundleClosed) and what it announces (Completion). "
        "Unknown fields are ignored.",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in (*_IN, _OUT)],
        "$defs": _definitions("#/$defs/{model}"),
    }


def asyncapi() -> Schema:
    """An AsyncAPI 3.0.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Transload",
            "version": "1",
            "description": "The version is that of the messages. Queues are named by the configuration.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "resources": {
                "address": None,
                "description": "The queue that workers take from.",
                "messages": {name: _reference("messages", name) for name in _IN},
            },
            "completions": {
                "address": None,
                "description": "Where complete bundles are announced.",
                "messages": {_OUT: _reference("messages", _OUT)},
            },
        },
        "operations": {
            "store": {
                "action": "receive",
                "channel": {"$ref": "#/channels/resources"},
                "summary": "At least once, in any order.",
            },
            "announce": {
                "action": "send",
                "channel": {"$ref": "#/channels/completions"},
                "summary": "At least once; all copies have the same bytes.",
            },
        },
        "components": {
            "messages": {
                "ResourceFetched": _message("resource.fetched", "One payload lies in staging."),
                "BundleClosed": _message("bundle.closed", "The fetch has ended, with the final count."),
                "Completion": {
                    **_message("completion", "All of a bundle's resources are durable.", _OUT),
                    "headers": _reference("schemas", "CompletionAttributes"),
                },
            },
            "schemas": _definitions("#/components/schemas/{model}"),
        },
    }


def documents() -> dict[str, str]:
    """Both files, by their names."""
    return {
        SCHEMA_FILE: json.dumps(json_schema(), indent=2) + "\n",
        ASYNCAPI_FILE: f"# Written by `python -m worker.message_reference {ASYNCAPI_FILE}`; a test keeps it so.\n"
        + yaml.safe_dump(asyncapi(), sort_keys=False, width=120),
    }


def _definitions(template: str) -> Schema:
    models: tuple[Any, ...] = (ResourceFetched, BundleClosed, Completion, CompletionAttributes)
    _, schema = TypeAdapter.json_schemas(
        [(model.__name__, "validation", TypeAdapter(model)) for model in models], ref_template=template
    )
    definitions: Schema = schema["$defs"]
    for name in _IN:
        # Their defaults are for our own producer: what arrives has to say what it is.
        definitions[name]["required"] = ["type", "version", *definitions[name]["required"]]
    return definitions


def _message(name: str, summary: str, model: str = "") -> Schema:
    model = model or "".join(part.capitalize() for part in name.split("."))
    return {
        "name": name,
        "summary": summary,
        "contentType": "application/json",
        "payload": _reference("schemas", model),
    }


def _reference(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


if __name__ == "__main__":
    sys.stdout.write(documents()[sys.argv[1]])
