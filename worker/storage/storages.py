"""Where the OC Fetcher's storages store: a folder, or S3 with completions on SQS. The arguments are the OC Fetcher's.

What is no argument of its own, of `PipelineStorage` and `SqsPublisher`, is an option of our s3 target or sqs publisher.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from backends.registry import BACKENDS
from worker import seed_environment
from worker.provision.settings import ProvisionedBucket, ProvisionSettings
from worker.publishers.registry import PUBLISHERS
from worker.settings_in_process import TARGET, StorageOptionsError, Storing, checked, default_home, variables
from worker.settings_places import PublisherSettings, TargetSettings
from worker.settings_process import CloudWatchSettings, WorkerSettings
from worker.storage.own import OwnStorage

_BUCKET: Final = (
    "create_bucket",
    "bucket_policy",
    "allow_public",
    "versioning",
    "lifecycle_policy",
    "abort_incomplete_after_days",
    "tags",
)
"""Options of `provision.buckets`."""
_WHO: Final = ("region", "profile", "role_arn", "access_key_id", "secret_access_key", "session_token")
_CAP: Final = 60.0


class FileStorage(OwnStorage):
    """`{output_dir}/bundle_{bid}/`: each resource, its `.meta` beside it, and `bundle.meta`.

    Completions call their hooks and are kept in the state, which lies in `{output_dir}/.transload` unless `state_dir` says where.
    What the state knows of published bundles is forgotten after `keep_state` seconds, if that is given.
    """

    def __init__(
        self,
        output_dir: str | Path,
        create_dirs: bool = True,
        *,
        state_dir: str | Path | None = None,
        keep_state: float | None = None,
    ) -> None:
        """Raises `StorageOptionsError` when the folder is not there and is not to be made."""
        root = Path(output_dir).absolute()
        if not create_dirs and not root.is_dir():
            raise StorageOptionsError(f"{root} is not there; make it, or leave out create_dirs=False")
        options = checked(BACKENDS.load("file").Options, {"root": root})
        home = root / ".transload" if state_dir is None else _below(state_dir, root.name, str(root))
        super().__init__(
            Storing(
                home=home,
                target=checked(TargetSettings, {"name": TARGET, "options": options}),
                keep_state=keep_state,
            )
        )
        self.output_dir = str(output_dir)


class SqsPublisher:
    """The queue that completions go to. `PipelineStorage` opens it."""

    def __init__(
        self, queue_url: str, region: str | None = None, endpoint_url: str | None = None, **options: Any
    ) -> None:
        """Raises `StorageOptionsError`. A queue that is not AWS's is reached where its URL points."""
        self.queue_url = queue_url
        given = variables()
        values = {
            "queue_url": queue_url,
            "region": region or given.get(seed_environment.REGION),
            "endpoint_url": endpoint_url or seed_environment.endpoint_of(queue_url),
            **_profile(given, options),
            **options,
        }
        publisher: type[BaseModel] = PUBLISHERS.load("sqs").Options
        self.settings = checked(PublisherSettings, {"type": "sqs", "options": checked(publisher, values)})


class PipelineStorage(OwnStorage):
    """`{prefix}/bundles/{bid}/resources/` in a bucket, `metadata.json` beside it, and a notification on SQS for each bundle.

    A ledger on this machine holds what is not announced yet: below `state_dir`, by default in `~/.transload/in-process`. Where
    that does not outlive the process, give a `state_dir` that does. `keep_state` as with `FileStorage`.
    """

    def __init__(
        self,
        bucket_name: str | None = None,
        prefix: str = "",
        sqs_publisher: SqsPublisher | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        *,
        bucket: str | None = None,
        state_dir: str | Path | None = None,
        keep_state: float | None = None,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        exponential_backoff: bool = True,
        cloudwatch_metrics: bool = False,
        metrics_namespace: str | None = None,
        **options: Any,
    ) -> None:
        """Without `sqs_publisher` the variable `OC_SQS_QUEUE_URL` has to name the queue, or no bundle can be begun.

        Raises `StorageOptionsError`, or `MissingExtra` without the SDKs.
        """
        if (bucket_name is None) == (bucket is None):
            raise StorageOptionsError("give the bucket's name, once: bucket_name")
        if not isinstance(prefix, str):
            raise StorageOptionsError("prefix is text; pass the publisher as sqs_publisher=…")
        given = variables()
        self.bucket_name = str(bucket_name or bucket)
        provisioned: dict[str, Any] = {name: options.pop(name) for name in _BUCKET if name in options}
        values = {
            "bucket": self.bucket_name,
            "region": region or given.get(seed_environment.REGION),
            "endpoint_url": endpoint_url or given.get(seed_environment.ENDPOINT),
            "max_retries": max_retries,
            **_profile(given, options),
            **options,
        }
        s3: type[BaseModel] = BACKENDS.load("s3").Options
        target = checked(
            TargetSettings,
            {"name": TARGET, "backend": "s3", "prefix": prefix, "options": checked(s3, values)},
        )
        publisher = sqs_publisher or _queue_of(given)
        place = "\n".join((values["endpoint_url"] or "aws", self.bucket_name, target.prefix))
        super().__init__(
            Storing(
                home=_below(default_home(given) if state_dir is None else state_dir, self.bucket_name, place),
                target=target,
                keep_state=keep_state,
                publisher=None if publisher is None else publisher.settings,
                worker=_tries(max_retries, retry_delay, exponential_backoff),
                cloudwatch=checked(
                    CloudWatchSettings,
                    {
                        "enabled": cloudwatch_metrics,
                        "namespace": metrics_namespace,
                        **{name: values.get(name) for name in _WHO},
                    },
                ),
                provision=_provision(self.bucket_name, provisioned) if provisioned else None,
                why_not=""
                if publisher
                else "PipelineStorage has no queue to announce bundles on, so nobody would learn of them; pass "
                f"sqs_publisher=SqsPublisher(queue_url=…), or set {seed_environment.QUEUE_URL}",
            )
        )


def _queue_of(given: Mapping[str, str]) -> SqsPublisher | None:
    url = given.get(seed_environment.QUEUE_URL)
    return SqsPublisher(url) if url else None


def _profile(given: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, str | None]:
    """The variable's, where nothing says more exactly who asks."""
    return {} if "access_key_id" in options else {"profile": given.get(seed_environment.PROFILE)}


def _tries(retries: int, delay: float, growing: bool) -> WorkerSettings:
    values = {
        "max_attempts": 1 + retries,
        "max_outage_attempts": 1 + retries,
        "retry_base": delay,
        "retry_cap": max(delay, _CAP) if growing else delay,
    }
    return checked(WorkerSettings, values)


def _provision(name: str, options: Mapping[str, Any]) -> ProvisionSettings:
    described = checked(ProvisionedBucket, {"create_bucket": False, **options, "bucket": name})
    return checked(ProvisionSettings, {"buckets": {"bucket": described}})


def _below(folder: str | Path, name: str, place: str) -> Path:
    """A folder of its own for each place: the state of one is nothing to another."""
    return Path(folder).absolute() / f"{name}-{sha256(place.encode()).hexdigest()[:12]}"
