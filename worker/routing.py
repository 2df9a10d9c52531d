"""Settings in, the handlers with their routes out. Called by worker/bootstrap.py, and by commands that look at messages only."""

from backends.registry import BACKENDS
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.layouts import make_layout
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Match, Route, Routes, Target
from handlers.transforms.key_ring import KeyRing
from worker import stores
from worker.settings import Settings
from worker.settings_places import RouteSettings
from worker.steps import steps_of


def make_handlers(settings: Settings, keys: KeyRing | None = None) -> Handlers:
    """The handlers with their routes and staging sources; `keys` are for plans that are carried out."""
    routes = Routes(
        tuple(_route(settings, route, keys) for route in settings.routes.values() if route.enabled),
        settings.queue.options.queue_name,
    )
    return Handlers(
        ResourceFetchedHandler(stores.staging_sources(settings), routes),
        BundleClosedHandler(routes),
        stores.object_created(settings),
    )


def _route(settings: Settings, route: RouteSettings, keys: KeyRing | None) -> Route:
    names = [*route.targets, *route.best_effort]
    asked = {
        "recipe_id": route.recipe_id,
        "queue": route.queue,
        "url": route.url,
        "content_type": route.content_type,
    }
    targets = tuple(_target(settings, route, name) for name in names)
    return Route(
        route.name,
        targets,
        Match(asked),
        steps_of(route, keys),
        route.limits,
        route.max_size,
        deduplicate=route.deduplicate,
    )


def _target(settings: Settings, route: RouteSettings, name: str) -> Target:
    chosen = settings.targets[name]
    features = BACKENDS.load(chosen.backend).features_of(chosen.options)
    layout = make_layout(route.layout or chosen.layout, chosen.prefix, keeps_attributes=features.attributes)
    return Target(
        name,
        layout,
        required=name in route.targets,
        server_copy=chosen.server_copy,
        rank=list(settings.targets).index(name),
        archive=chosen.archive or "",
    )
