"""What a look at a bucket or queue leads to: steps that say what is, what should be, and how to get there. No I/O of its own."""

import enum
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from backends.failpoints import failpoint

NONE: Final = "none"
"""How a step says that there is nothing."""


class ProvisionError(Exception):
    """AWS does not let us look or change, or does not answer; the message names the permission that is missing."""


class ProvisionRefused(Exception):
    """What is asked for would lose something or let somebody in; nothing was changed."""


class Lacking(ProvisionError):
    """The store has no such feature: it is not AWS's."""


class Verdict(enum.Enum):
    """What a step comes to."""

    CREATE = "create"
    CHANGE = "change"
    OK = "ok"
    DIFFERS = "differs"
    """It should be otherwise, and this command cannot or must not change it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One property of one bucket or queue."""

    resource: str
    """`bucket lake`, `queue resources`."""
    aspect: str
    old: str
    new: str
    verdict: Verdict
    change: Callable[[], Awaitable[object]] | None = None
    """Makes it so. It may be repeated, and starts from what is there when it runs."""

    async def apply(self) -> None:
        """Do what the verdict says. Raises `ProvisionError`."""
        if self.change is not None and self.verdict in {Verdict.CREATE, Verdict.CHANGE}:
            failpoint("provision.step.before")
            await self.change()
            failpoint("provision.step.after")


def compared(
    resource: str, aspect: str, old: str, new: str, change: Callable[[], Awaitable[object]] | None
) -> Step:
    """The step from `old` to `new`; without `change` nothing can be done about a difference."""
    if old == new:
        verdict = Verdict.OK
    elif change is None:
        verdict = Verdict.DIFFERS
    else:
        verdict = Verdict.CREATE if old == NONE else Verdict.CHANGE
    return Step(resource, aspect, old, new, verdict, change)


def settled(steps: Iterable[Step]) -> bool:
    """Whether everything is as it should be."""
    return all(step.verdict is Verdict.OK for step in steps)


def tallied(steps: Iterable[Step]) -> Iterator[str]:
    """How many of each there are: `3 to create`."""
    found = [step.verdict for step in steps]
    words = {
        Verdict.CREATE: "to create",
        Verdict.CHANGE: "to change",
        Verdict.DIFFERS: "differ, and are yours to change",
        Verdict.OK: "ok",
    }
    return (f"{found.count(verdict)} {word}" for verdict, word in words.items() if verdict in found)
