"""The settings of a worker that has no file and no queue: those of a storage in the fetcher's own process.

worker/storage/storages.py says what it was asked for; here that becomes the same `Settings` that a file would. The OC Fetcher's
variables stand in for what its examples leave out; they are read here and nowhere else.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from backends.registry import BACKENDS
from handlers.transforms.registry import TRANSFORMS
from worker import seed_environment
from worker.provision.settings import ProvisionSettings
from worker.publishers.embedded import EmbeddedPublisherOptions
from worker.queues.memory import MemoryOptions
from worker.settings_places import (
    PublisherSettings,
    QueueSettings,
    RouteSettings,
    StagingSettings,
    StepSettings,
    TargetSettings,
)
from worker.settings_problems import unknown
from worker.settings_process import (
    AdminSettings,
    CloudWatchSettings,
    HousekeepingSettings,
    LedgerSettings,
    LogSettings,
    RelaySettings,
    WorkerSettings,
    sqlite_url,
)
from worker.settings_schema import Settings

ModelT = TypeVar("ModelT", bound=BaseModel)

TARGET: Final = "in-process"
"""Not `main`: a worker that somebody runs on this state does not know the target, and so announces nothing past the hooks."""
_STAGING: Final = "main"
CLAIM_SECONDS: Final = 5.0
"""A claim is renewed while it is worked on. When its process dies, the next one waits so long for it."""
_NO_PAUSE: Final = 0.001
"""Between two tries to announce: nobody tries by itself, whoever asks again wants it now."""
_LEAST_KEPT: Final = 1_296_000
"""As `housekeeping.keep_published` has it."""
_HOME: Final = "TRANSLOAD_HOME"
_READ: Final = (
    _HOME,
    seed_environment.ENDPOINT,
    seed_environment.PROFILE,
    seed_environment.QUEUE_URL,
    seed_environment.REGION,
)


class StorageOptionsError(ValueError):
    """What a storage was asked for cannot be. The message says what to change."""


@dataclass(frozen=True, slots=True)
class Storing:
    """What one storage is to do. `settings` makes a worker's settings of it."""

    home: Path
    """Where its state lies: ledger, completions, payloads on their way."""
    target: TargetSettings
    publisher: PublisherSettings | None = None
    """None: completions stay in `home`."""
    transforms: tuple[str, ...] = ()
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    cloudwatch: CloudWatchSettings = field(default_factory=CloudWatchSettings)
    provision: ProvisionSettings | None = None
    """What is to be made before the target is opened."""
    keep_state: float | None = None
    """Seconds that published bundles stay in the ledger; None: for ever."""
    why_not: str = ""
    """What is missing before a bundle can be begun; empty when nothing is."""

    def __post_init__(self) -> None:
        """Raises `StorageOptionsError`."""
        if self.keep_state is not None and not self.keep_state >= _LEAST_KEPT:
            raise StorageOptionsError(
                f"keep_state is {_LEAST_KEPT} seconds (15 days) at least, or None: for ever"
            )

    def through(self, *transforms: str) -> "Storing":
        """The same with these transforms applied first, each of them once."""
        for name in transforms:
            TRANSFORMS.load(name)
        return replace(self, transforms=tuple(dict.fromkeys((*transforms, *self.transforms))))

    def aimed(self, **changes: Any) -> "Storing":
        """The same with a target that differs in that. Raises `StorageOptionsError` for what no target has."""
        values = {**dict(self.target), **changes}
        return replace(self, target=checked(TargetSettings, values))

    def settings(self, staging: Path) -> Settings:
        """With payloads on their way in that directory."""
        embedded = EmbeddedPublisherOptions(path=self.home / "completions.db")
        steps = tuple(_step(name) for name in self.transforms)
        return Settings(
            home=self.home,
            # Nobody receives from it: its name is what routes could ask for.
            queue=QueueSettings(type="memory", options=MemoryOptions(name="in-process")),
            staging={
                _STAGING: StagingSettings(
                    name=_STAGING, options=BACKENDS.load("file").Options.model_validate({"root": staging})
                )
            },
            targets={TARGET: self.target},
            routes={"default": RouteSettings(name="default", targets=(TARGET,), transforms=steps)},
            ledger=LedgerSettings(url=sqlite_url(self.home / "ledger.db")),
            publisher=self.publisher or PublisherSettings(options=embedded),
            worker=self.worker,
            relay=RelaySettings(lease=CLAIM_SECONDS, retry_base=_NO_PAUSE, retry_cap=_NO_PAUSE),
            # Nothing runs in the background: whoever opens the storage forgets what is old enough.
            housekeeping=checked(HousekeepingSettings, {"enabled": False, "keep_published": self.keep_state}),
            admin=AdminSettings(enabled=False),
            logs=LogSettings(),
            provision=self.provision or ProvisionSettings(),
            cloudwatch=self.cloudwatch,
        )


def _step(name: str) -> StepSettings:
    transform: Any = TRANSFORMS.load(name)
    return StepSettings(name=name, options=transform.Options())


def checked(model: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    """The section with these values; None stands for the default. Raises `StorageOptionsError`."""
    return _told(
        lambda: model.model_validate({key: each for key, each in values.items() if each is not None}), model
    )


def _told(make: Callable[[], ModelT], model: type[ModelT]) -> ModelT:
    try:
        return make()
    except ValidationError as exc:
        # Never the value: it may be a secret.
        problems = exc.errors(include_url=False, include_input=False, include_context=False)
        raise StorageOptionsError("; ".join(_problem(each, model) for each in problems)) from None


def _problem(error: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: {unknown(where, model.model_fields)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def variables() -> Mapping[str, str]:
    """The OC Fetcher's variables that are set, of those a storage looks at."""
    return {name: value for name in _READ if (value := os.environ.get(name))}


def default_home(given: Mapping[str, str]) -> Path:
    """Where the state of storages lies that have no folder of their own."""
    return Path(given.get(_HOME) or "~/.transload").expanduser().absolute() / "in-process"
