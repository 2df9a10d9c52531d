"""What routes may have of the worker, as limits. Called by worker/settings.py, and by worker/bootstrap.py for the limits."""

from collections.abc import Mapping

from worker.config_file import Draft
from worker.settings_places import RouteSettings
from worker.settings_process import WorkerSettings


def check_shares(draft: Draft, worker: WorkerSettings | None, routes: Mapping[str, RouteSettings]) -> None:
    """Refuse a part that is more than the whole: whoever wrote it meant something else."""
    if worker is None:
        return
    for route in routes.values():
        for key in ("concurrency", "transfer_memory"):
            part, whole = getattr(route, key), getattr(worker, key)
            if part is not None and part > whole:
                draft.add(
                    ("routes", route.name, key),
                    f"{part} is more than worker.{key} ({whole}), which all routes share; lower it, raise that, or leave it out",
                )


def concurrency_limits(routes: Mapping[str, RouteSettings]) -> Mapping[str, int]:
    """Messages in work at once, of the routes that have a limit."""
    return {name: route.concurrency for name, route in routes.items() if route.concurrency is not None}


def memory_limits(routes: Mapping[str, RouteSettings]) -> Mapping[str, int]:
    """Bytes of transfers, of the routes that have a limit."""
    return {
        name: route.transfer_memory for name, route in routes.items() if route.transfer_memory is not None
    }
