"""The memory that all transfers of a process share, in bytes. worker/pipeline.py holds a part of it for every transfer.

Two lanes with a fixed share each. So their sum is never exceeded, a payload of one chunk never waits for a large one, however
slow that is, and no stream of small ones keeps a large one from its turn. Within a lane owners share (worker/shares.py).
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

from backends.base import CHUNK_SIZE
from worker.shares import Owner, Shares

_SMALL_SHARE = 8
"""One part in so many is for payloads of at most one chunk. They hold no more than their size, so that is room for many."""


class Budget:
    """For the tasks of one event loop."""

    def __init__(
        self, size: int, limits: Mapping[str, int] = MappingProxyType({}), *, fair: bool = True
    ) -> None:
        """`size`: bytes in all; `limits`: of a route, divided among the lanes as the whole is. `fair` as in `Shares`."""
        small = {route: limit // _SMALL_SHARE for route, limit in limits.items()}
        large = {route: limit - small[route] for route, limit in limits.items()}
        self._small = Shares(size // _SMALL_SHARE, small, fair=fair)
        self._large = Shares(size - size // _SMALL_SHARE, large, fair=fair)

    @property
    def held(self) -> int:
        """Bytes held now. May be read from any thread."""
        return self._small.held + self._large.held

    @asynccontextmanager
    async def hold(self, cost: int, owner: Owner | None = None) -> AsyncGenerator[None, None]:
        """Wait until `cost` bytes are free and hold them inside. A cost beyond its whole lane counts as the whole lane."""
        lane = self._small if cost <= CHUNK_SIZE else self._large
        async with lane.hold(owner, min(cost, lane.size)):
            yield
