"""`make fuzz`: minutes of hostile input for every decoder, until one of them is found wrong.

    python -m tests.fuzz [--minutes N] [--seed N] [NAME …]

Each target gets the same share of the time. What Hypothesis finds it shrinks and prints with the code that repeats it, and keeps
in .hypothesis, which is tried first the next time. Exit status 1 when something was found.
"""

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import admin, bundles, bundling, codecs, encryption, messages, tars, zips
from tests.support.hostile_messages import BATCHES

_ROUND: Final = 200
"""Examples between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed, and with what."""

    promise: Callable[..., None]
    input: st.SearchStrategy[Any]


TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        "admin": Target(admin.fuzz, admin.SERIES),
        "bundles": Target(bundles.fuzz, bundles.BATCHES),
        "bundling": Target(bundling.fuzz, bundling.BUNDLES),
        "codecs": Target(codecs.fuzz, codecs.PAYLOADS),
        "encryption": Target(lambda change: encryption.whole(*change), encryption.CHANGED),
        "encryption-noise": Target(encryption.fuzz, st.binary(max_size=400)),
        "messages": Target(messages.fuzz, BATCHES),
        "tars": Target(tars.fuzz, tars.ARCHIVES),
        "tars-whole": Target(tars.whole, tars.FILES),
        "zips": Target(zips.fuzz, zips.ZIPS),
    }
)


def main() -> int:
    """Run the targets; tells how many inputs each has seen."""
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all of them together (default: 5)")
    parser.add_argument("--seed", type=int, help="repeat a run; default: a new one")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(TARGETS):
        parser.error(f"no target is called {', '.join(sorted(unknown))}; there are: {', '.join(TARGETS)}")
    names = chosen.names or list(TARGETS)
    start = chosen.seed if chosen.seed is not None else random.randrange(1_000_000)
    print(f"seed {start}; {chosen.minutes:g} minutes for {', '.join(names)}", flush=True)
    return max(_fuzzed(name, start, 60 * chosen.minutes / len(names)) for name in names)


def _fuzzed(name: str, start: int, seconds: float) -> int:
    seen, until, number = 0, time.monotonic() + seconds, start
    target = TARGETS[name]
    while time.monotonic() < until:

        @seed(number)
        @settings(
            max_examples=_ROUND,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(target.input)
        def one(data: Any) -> None:
            nonlocal seen
            seen += 1
            target.promise(data)

        try:
            one()
        except Exception:  # noqa: BLE001 - whatever it is, it is what was looked for
            traceback.print_exc()
            print(f"{name}: FOUND something after {seen:,} inputs, seed {number}", flush=True)
            return 1
        number += 1
    print(f"{name}: {seen:,} inputs, nothing found", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
