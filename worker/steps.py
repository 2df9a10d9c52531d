"""Makes the transforms that routes name. The part of worker/bootstrap.py about payloads."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from handlers.transforms.base import Part, Transform, Work
from handlers.transforms.key_ring import KeyRing, load_ring
from handlers.transforms.max_size import MaxSize
from handlers.transforms.registry import KEYED, TRANSFORMS, NoOptions
from handlers.transforms.size_policy import Ceiling, Split, Squeeze
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
    """The route's transforms, in order, with those that hold what comes out to its `max_size`."""
    steps = tuple(_made(step, keys) for step in route.transforms)
    return steps if route.max_size is None else _limited(steps, route.max_size, keys)


def _limited(steps: tuple[Transform, ...], policy: MaxSize, keys: KeyRing | None) -> tuple[Transform, ...]:
    if policy.over == "split":
        return (*steps, Split(policy.bytes))
    ceiling = Ceiling(policy.bytes)
    if policy.over == "reject":
        return (*steps, ceiling)
    # Nothing makes a ciphertext smaller.
    encrypt: Any = steps[-1] if steps and steps[-1].name == "encrypt" else None
    before, after = (steps, ()) if encrypt is None else (steps[:-1], steps[-1:])
    room = policy.bytes if encrypt is None or keys is None else encrypt.room(policy.bytes)
    compress: Any = TRANSFORMS.load("compress")
    return (*before, Squeeze(room, compress()), *after, ceiling)


def _made(step: StepSettings, keys: KeyRing | None) -> Transform:
    transform: Any = TRANSFORMS.load(step.name)
    if step.name in KEYED:
        made: Transform = Named(step.name) if keys is None else transform(keys)
    else:
        made = transform() if transform.Options is NoOptions else transform(step.options)
    return made
