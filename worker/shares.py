"""What a process has only so much of, shared out: places for messages, bytes of memory, threads.

Held by worker/turns.py, worker/budget.py and worker/pipeline.py. What is held cannot be taken back, so fairness is in what is
given: whoever holds least comes first, and nobody takes the last of it for himself (docs/adr/0025-fair-shares.md).
"""

import asyncio
from bisect import bisect_left, insort
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType

_KEPT = 8
"""One owner alone gets all but one part in so many."""
_WORTH = 3
"""Nothing is kept where it would be more than one part in so many: of two places, both are used."""


@dataclass(frozen=True, slots=True)
class Owner:
    """For whom work is done: a recipe, on a route."""

    route: str
    recipe: str = ""


class Ask:
    """One wish, from `Shares.ask` to `Shares.give_back`."""

    __slots__ = ("account", "cost", "granted", "has", "order", "over")

    def __init__(self, account: "_Account", cost: int, order: tuple[float, int]) -> None:
        """Made by `Shares.ask`. Of one owner's wishes the least `order` is first."""
        self.account = account
        self.cost = cost
        self.order = order
        self.has = False
        """It was granted, and not given back."""
        self.over = False
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once it was granted, or never will be (`has` tells)."""

    @property
    def waits(self) -> bool:
        """Whether it may still be granted."""
        return not self.over and not self.granted.done()

    @property
    def queue(self) -> tuple[int, int]:
        """How many wishes of its owner wait, and how many were granted so far."""
        return len(self.account.waiting), self.account.granted


@dataclass(eq=False, slots=True)
class _Account:
    """What one owner holds and waits for; without an owner, what one wish does."""

    owner: Owner | None
    held: int = 0
    waiting: list[Ask] = field(default_factory=list)
    """In their order."""
    granted: int = 0
    """Wishes, since there was nothing last."""

    def head(self) -> Ask | None:
        """The wish that is next."""
        while self.waiting and not self.waiting[0].waits:
            del self.waiting[0]
        return self.waiting[0] if self.waiting else None

    def drop(self, ask: Ask) -> None:
        """It waits no more, wherever it is: those before it may stay for hours, and many come and go behind them."""
        index = bisect_left(self.waiting, ask.order, key=_order)
        if index < len(self.waiting) and self.waiting[index] is ask:
            del self.waiting[index]


class Shares:
    """So much of one thing, for the tasks of one event loop.

    - Who holds nothing comes first, in the order of asking; the first of them is not passed, however much it wants.
    - Then who holds least. An owner who holds something already gets more only while at least as much again stays free, and
      a seventh of what it then holds: so what it leaves to the next one is an eighth, when it is alone.
    - Wishes without an owner are each for themselves, which makes them first come, first served.

    Accounts are those of owners who hold or wait for something: nothing is kept of any other.
    """

    def __init__(
        self, size: int, limits: Mapping[str, int] = MappingProxyType({}), *, fair: bool = True
    ) -> None:
        """`limits`: the most that all owners of a route hold; a larger wish is granted when the route holds nothing.

        Without `fair` every wish is for itself.
        """
        self.size = size
        self.held = 0
        """May be read from any thread."""
        self._limits = limits
        self._fair = fair
        self._accounts: dict[Owner, _Account] = {}
        self._first: dict[_Account, None] = {}
        """Those that wait and hold nothing, in their order."""
        self._more: dict[_Account, None] = {}
        """Those that wait and hold something."""
        self._routes: dict[str, int] = {}
        self._numbers = count()
        self._closed = False

    def __len__(self) -> int:
        """How many owners hold or wait for something."""
        return len(self._accounts)

    def ask(self, owner: Owner | None, cost: int, rank: float = 0.0) -> Ask:
        """Wish for `cost`, at most `size`. Of one owner's wishes the least `rank` is first. Whoever asks gives back, whatever came."""
        account = self._account(owner)
        ask = Ask(account, cost, (rank, next(self._numbers)))
        if self._closed:
            ask.granted.set_result(None)
            return ask
        insort(account.waiting, ask, key=_order)
        (self._more if account.held else self._first).setdefault(account)
        self._hand_over()
        return ask

    def give_back(self, ask: Ask) -> None:
        """End a wish: what it has goes to those who wait. Calling it twice is harmless."""
        account = ask.account
        ask.over = True
        account.drop(ask)
        if ask.has:
            ask.has = False
            self._count(account, -ask.cost)
            if not account.held and account in self._more:
                # It has had a turn, and goes behind those who have not.
                del self._more[account]
                self._first[account] = None
        if account.head() is None:
            self._forget(account)
        self._hand_over()

    @asynccontextmanager
    async def hold(self, owner: Owner | None, cost: int) -> AsyncGenerator[None, None]:
        """Wait until `cost` is granted, and hold it inside."""
        ask = self.ask(owner, cost)
        try:
            await ask.granted
            yield
        finally:
            self.give_back(ask)

    def close(self) -> None:
        """Grant nothing any more: who waits is told. What is held stays held. Not where `hold` is used."""
        self._closed = True
        for account in (*self._first, *self._more):
            while (ask := account.head()) is not None:
                ask.granted.set_result(None)
            self._forget(account)

    def _account(self, owner: Owner | None) -> _Account:
        if owner is None or not self._fair:
            return _Account(owner)
        return self._accounts.setdefault(owner, _Account(owner))

    def _forget(self, account: _Account) -> None:
        """Nothing waits there."""
        self._first.pop(account, None)
        self._more.pop(account, None)
        owner = account.owner
        if not account.held and owner is not None and self._accounts.get(owner) is account:
            del self._accounts[owner]

    def _hand_over(self) -> None:
        """Already counted: between being woken and running nobody can take it."""
        while (ask := self._next()) is not None:
            account = ask.account
            self._first.pop(account, None)
            ask.has = True
            ask.granted.set_result(None)
            account.granted += 1
            self._count(account, ask.cost)
            if account.head() is None:
                self._more.pop(account, None)
            else:
                (self._more if account.held else self._first)[account] = None

    def _next(self) -> Ask | None:
        for account in tuple(self._first):
            ask = account.head()
            if ask is None:
                # Cancelled, and not given back yet.
                del self._first[account]
            elif self._route_has_room(ask):
                return ask if self.held + ask.cost <= self.size else None
        for account in sorted(self._more, key=_holding):
            ask = account.head()
            if ask is not None and self._route_has_room(ask) and self._may_have_more(ask):
                return ask
        return None

    def _may_have_more(self, ask: Ask) -> bool:
        left = self.size - self.held - ask.cost
        if _WORTH * max(ask.cost, self.size // _KEPT) > self.size:
            return left >= 0
        return left >= ask.cost and left * (_KEPT - 1) >= ask.account.held + ask.cost

    def _route_has_room(self, ask: Ask) -> bool:
        owner = ask.account.owner
        limit = None if owner is None else self._limits.get(owner.route)
        if owner is None or limit is None:
            return True
        holds = self._routes.get(owner.route, 0)
        return not holds or holds + ask.cost <= limit

    def _count(self, account: _Account, cost: int) -> None:
        self.held += cost
        account.held += cost
        if account.owner is not None and account.owner.route in self._limits:
            route = account.owner.route
            self._routes[route] = self._routes.get(route, 0) + cost


def _order(ask: Ask) -> tuple[float, int]:
    return ask.order


def _holding(account: _Account) -> int:
    return account.held
