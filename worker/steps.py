"""Makes the transforms that routes name. The part of worker/bootstrap.py about payloads."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from handlers.transforms.base import Part, Transform, Work
from handlers.transforms.key_ring import KeyRing, load_ring
from handlers.transforms.registry import KEYED, TRANSFORMS, NoOptions
from worker.settings import Settings
from worker.settings_places import RouteSettings, StepSettings


@dataclass(frozen=True, slots=True)
class Named:
    """In place of a transform whose keys are not loaded: for those who plan, and carry nothing out."""

    name: str
    early: bool = False

    def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:  # noqa: ARG002 - as the port has it
        raise ValueError(f"{self.name} has no keys; load them before a plan is carried out")


async def open_keys(settings: Settings) -> KeyRing | None:
    """The keys that routes encrypt with. Raises `KeyUnusable`, or a `StorageError` where KMS is asked for them."""
    return None if settings.encryption is None else await load_ring(settings.encryption)


def steps_of(route: RouteSettings, keys: KeyRing | None) -> tuple[Transform, ...]:
    """The route's transforms, in order."""
    return tuple(_made(step, keys) for step in route.transforms)


def _made(step: StepSettings, keys: KeyRing | None) -> Transform:
    transform: Any = TRANSFORMS.load(step.name)
    if step.name in KEYED:
        made: Transform = Named(step.name) if keys is None else transform(keys)
    else:
        made = transform() if transform.Options is NoOptions else transform(step.options)
    return made
