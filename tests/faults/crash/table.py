"""What a run of the crash matrix found, as tables: for the terminal, and as a page for docs/crash-matrix.md."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.history import Report


@dataclass(slots=True)
class Outcome:
    """What one killed process led to."""

    combination: str
    scenario: str
    failpoint: str
    passage: int
    seed: int
    folder: Path
    """Configuration, data and logs."""
    action: str = "kill"
    reached: bool = False
    recovery: float | None = None
    """Seconds from the death to the last notification, the start of the next process included; None when all were out."""
    lost: int = 0
    duplicates: int = 0
    inconsistent: int = 0
    swept: int = 0
    problems: list[str] = field(default_factory=list)

    def found(self, report: Report) -> None:
        """Take over what the history checker says."""
        self.problems += report.violations
        self.lost = len(report.lost)
        self.duplicates = report.duplicates
        self.inconsistent = report.inconsistent
        self.swept = report.swept

    @property
    def where(self) -> str:
        return f"{self.combination}, scenario {self.scenario}, {self.failpoint}={self.action}@{self.passage}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    name: str
    failpoints: int
    kills: int
    lost: int
    duplicates: int
    inconsistent: int
    swept: int
    violations: int
    p50: str
    p99: str

    @classmethod
    def of(cls, name: str, outcomes: Sequence[Outcome]) -> "Row":
        times = sorted(outcome.recovery for outcome in outcomes if outcome.recovery is not None)
        return cls(
            name,
            len({outcome.failpoint for outcome in outcomes if outcome.reached}),
            sum(outcome.reached for outcome in outcomes),
            sum(outcome.lost for outcome in outcomes),
            sum(outcome.duplicates for outcome in outcomes),
            sum(outcome.inconsistent for outcome in outcomes),
            sum(outcome.swept for outcome in outcomes),
            sum(len(outcome.problems) for outcome in outcomes),
            f"{statistics.median(times):.1f} s" if times else "-",
            f"{times[round(0.99 * (len(times) - 1))]:.1f} s" if times else "-",
        )

    def cells(self) -> list[str]:
        return [
            self.name,
            str(self.failpoints),
            str(self.kills),
            str(self.lost),
            str(self.duplicates),
            str(self.inconsistent),
            str(self.swept),
            str(self.violations),
            self.p50,
            self.p99,
        ]


HEAD = (
    "",
    "failpoints",
    "kills",
    "lost",
    "duplicate notifications",
    "inconsistent copies",
    "leftovers swept",
    "violations",
    "recovery p50",
    "p99",
)
_FAILPOINT_HEAD = ("failpoint", "scenarios", "kills", "lost", "duplicates", "violations", "recovery p50")


_EXPLAINED = (
    "Recovery is the time from the death of a process to the last notification that the next one sends. It includes the "
    "start of that process and the lease of what the dead one held (1 s on SQS and the embedded queue, none on RabbitMQ); "
    "deaths after which nothing was left to announce are not in it. Leftovers are temporary files and open uploads, which a "
    "sweep removes."
)


def rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """A row for each combination, and one for all of them."""
    for name, group in _grouped(outcomes, lambda outcome: outcome.combination).items():
        yield Row.of(name, group)
    yield Row.of("all", outcomes)


def terminal(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The table by combination, in columns."""
    lines = [HEAD, *(tuple(row.cells()) for row in rows(outcomes))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    for line in lines:
        yield "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )


def page(outcomes: Sequence[Outcome], facts: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    """The page: both tables, and what was not visited and why."""
    lines = [
        "# The crash matrix",
        "",
        "Written by `make crash ARGS='--write docs/crash-matrix.md'`; [guarantees](guarantees.md) says what it shows.",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        _EXPLAINED,
        "",
        "## By combination",
        "",
        *_table(HEAD, [row.cells() for row in rows(outcomes)]),
        "",
        "## By failpoint",
        "",
        *_table(_FAILPOINT_HEAD, [_visited(name, group) for name, group in _by_failpoint(outcomes)]),
    ]
    if elsewhere:
        lines += ["", "## Not in the matrix", "", *_table(("failpoint", "why"), sorted(elsewhere.items()))]
    return "\n".join([*lines, ""])


def _visited(name: str, group: Sequence[Outcome]) -> list[str]:
    row = Row.of(name, group)
    scenarios = ", ".join(dict.fromkeys(outcome.scenario for outcome in group))
    return [
        f"`{name}`",
        scenarios,
        str(row.kills),
        str(row.lost),
        str(row.duplicates),
        str(row.violations),
        row.p50,
    ]


def _by_failpoint(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    named = _grouped(
        outcomes,
        lambda each: each.failpoint if each.action == "kill" else f"{each.failpoint}={each.action}",
    )
    return sorted(named.items())


def _grouped(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
