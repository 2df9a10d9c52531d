"""The OC Fetcher's environment variables as settings, so that its deployments run without a configuration file.

`settings.load_settings` calls this when no file is given. With a file the variables are not looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from worker.config_file import UNRESOLVED, Draft

TYPE: Final = "OC_STORAGE_TYPE"
BUCKET: Final = "OC_S3_BUCKET"
PREFIX: Final = "OC_S3_PREFIX"
ENDPOINT: Final = "OC_S3_ENDPOINT_URL"
REGION: Final = "AWS_REGION"
QUEUE_URL: Final = "OC_SQS_QUEUE_URL"
FILE_PATH: Final = "OC_STORAGE_FILE_PATH"
PROFILE: Final = "OC_STORAGE_PIPELINE_AWS_PROFILE"
UNZIP: Final = "OC_STORAGE_USE_UNZIP"
BUNDLER: Final = "OC_STORAGE_USE_BUNDLER"

_FALSE: Final = frozenset({"false", "0", "no", "off"})


def read_seed_environment(environ: Mapping[str, str]) -> Draft:
    """A draft with target `main` and the publisher as the variables say; an empty one when none is set."""
    draft = Draft(source="environment", base=Path.cwd())
    if _is_on(environ, UNZIP):
        draft.values["routes"] = {"default": {"transforms": ["gunzip", "unzip"]}}
        draft.origins["routes", "default", "transforms"] = f"environment {UNZIP}"
    kind = environ.get(TYPE)
    if kind == "s3":
        _put_bucket(draft, environ)
    elif kind == "file":
        _put(draft, environ, "targets", "main", backend=TYPE, root=FILE_PATH)
    elif kind:
        _add(draft, TYPE, "names no storage type; set it to s3 or file")
    elif environ.get(BUCKET) or environ.get(FILE_PATH):
        _add(draft, TYPE, f"not set beside {BUCKET} or {FILE_PATH}; set it to s3 or file")
    if _is_on(environ, BUNDLER):
        draft.values.setdefault("targets", {}).setdefault("main", {})["archive"] = "zip"
        draft.origins["targets", "main", "archive"] = f"environment {BUNDLER}"
    if environ.get(QUEUE_URL):
        _put_publisher(draft, environ)
    return draft


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return (environ.get(name) or "false").strip().lower() not in _FALSE


def _put_bucket(draft: Draft, environ: Mapping[str, str]) -> None:
    for name, what in ((BUCKET, "the bucket's name"), (QUEUE_URL, "the URL of the queue for completions")):
        if not environ.get(name):
            _add(draft, name, f"not set, and {TYPE}=s3 needs it; set it to {what}")
    _put(draft, environ, "targets", "main", backend=TYPE, bucket=BUCKET, prefix=PREFIX, endpoint_url=ENDPOINT)
    _put(draft, environ, "targets", "main", region=REGION, profile=PROFILE)
    draft.values["targets"]["main"].setdefault("bucket", UNRESOLVED)


def _put_publisher(draft: Draft, environ: Mapping[str, str]) -> None:
    _put(draft, environ, "publisher", queue_url=QUEUE_URL, region=REGION, profile=PROFILE)
    publisher = draft.values["publisher"]
    publisher["type"] = "sqs"
    if endpoint := endpoint_of(environ[QUEUE_URL]):
        publisher["endpoint_url"] = endpoint


def endpoint_of(queue_url: str) -> str | None:
    """The seed has no variable for it: a queue that is not AWS's is reached where its URL points."""
    scheme, _, rest = queue_url.partition("://")
    authority = rest.partition("/")[0]
    return f"{scheme}://{authority}" if authority and ".amazonaws.com" not in authority else None


def _put(draft: Draft, environ: Mapping[str, str], *section: str, **variables: str) -> None:
    values: dict[str, Any] = draft.values
    for key in section:
        values = values.setdefault(key, {})
    for key, name in variables.items():
        if environ.get(name):
            values[key] = environ[name]
            draft.origins[*section, key] = f"environment {name}"


def _add(draft: Draft, name: str, what: str) -> None:
    draft.problems.append(f"environment {name}: {what}")
