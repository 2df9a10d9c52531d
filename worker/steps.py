"""Makes the transforms that routes name. The part of worker/bootstrap.py about payloads."""

from handlers.transforms.base import Transform
from handlers.transforms.registry import TRANSFORMS
from worker.settings_places import RouteSettings


def steps_of(route: RouteSettings) -> tuple[Transform, ...]:
    """The route's transforms, in order."""
    return tuple(TRANSFORMS.load(step.name)(step.options) for step in route.transforms)  # type: ignore[call-arg] # registry.py says how
