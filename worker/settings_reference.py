"""The settings as tables for people: docs/configuration.md.

`python -m worker.settings_reference > docs/configuration.md` writes the document; a test compares the two.
"""

import sys
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel

from handlers.transforms.key_ring import KeyOptions
from handlers.transforms.registry import TRANSFORMS
from worker.settings_json_schema import ADAPTED, NAMED, PLAIN, Schema, chooser_of, object_schema
from worker.settings_places import HOME_DEFAULTS, RouteSettings


def reference() -> str:
    """The whole of docs/configuration.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    for key, (model, registry) in ADAPTED.items():
        chooser = chooser_of(model)
        own = _described(model)
        own["properties"] = {
            name: schema for name, schema in own["properties"].items() if name not in {"name", "options"}
        }
        own["properties"][chooser]["enum"] = list(registry.entries)
        yield from _section(f"{key}.<name>" if key in NAMED else key, str(model.__doc__), own)
        for kind in registry.entries:
            schema = _described(registry.load(kind).Options)
            option, default = HOME_DEFAULTS.get((key, kind), ("", ""))
            if option:
                schema["properties"][option]["default"] = f"{{home}}/{default}"
            yield from _section(f"with {chooser}: {kind}", "", schema, level=3)
    route = _described(RouteSettings)
    del route["properties"]["name"]
    yield from _section("routes.<name>", str(RouteSettings.__doc__), {**route, "required": []})
    for name in TRANSFORMS.entries:
        options: type[BaseModel] = TRANSFORMS.load(name).Options  # type: ignore[attr-defined] # registry.py says so
        if options.model_fields:
            yield from _section(f"with transforms: {name}", "", _described(options), level=3)
    for key, model in PLAIN.items():
        yield from _section(key, str(model.__doc__), _described(model))
    yield from _section("encryption.keys.<id>", str(KeyOptions.__doc__), _described(KeyOptions))
    yield _SEED


def _described(model: type[BaseModel]) -> Schema:
    """As `object_schema`, with the models it refers to beside it."""
    definitions: Schema = {}
    return {**object_schema(model, definitions), "definitions": definitions}


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
    if default is None or default == [] or isinstance(default, dict) or len(str(default)) > _LONG:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else "empty"


_LONG: Final = 200
"""Characters of a default that is not shown: its key's own page does."""

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
    access_key_id: AKIAEXAMPLE
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
- **References:** any key with `_env` added names the environment variable that holds the value
  (`secret_access_key_env: BUNDLES_SECRET`), with `_file` the file (`token_file: /run/secrets/token`, without the newline at its
  end), with `_secret` the secret in AWS Secrets Manager (`password_secret: prod/db#password`). What cannot be had is an error.
  [Secrets](secrets.md) says more.
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
| `OC_STORAGE_USE_UNZIP` | `transforms` of the route: `[gunzip, unzip]` |
| `OC_STORAGE_USE_BUNDLER` | `archive` of the target: `zip` |"""


if __name__ == "__main__":
    sys.stdout.write(reference())
