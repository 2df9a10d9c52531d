"""`make canaries`: every adapter into every kind of trouble with a canary for its secret; prints where the canary was seen.

    python -m tests.faults.canaries [--only NAME] [--answer A] [--jobs N]

Exit status 1 when it was seen anywhere in what the process wrote. What that is, tests/faults/canaries/driving.py says.
"""

import argparse
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.faults.canaries.running import Cell, alone, run
from tests.faults.canaries.subjects import SUBJECTS, Subject

_COLUMNS = (
    "401",
    "403",
    "404",
    "409",
    "500",
    "redirect",
    "malformed",
    "garbage",
    "drop",
    "silent",
    "tls",
    "nobody",
    "refused",
    "broken",
)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.canaries")
    parser.add_argument("--only", default="", help="adapters whose name and role contain this")
    parser.add_argument("--answer", choices=_COLUMNS, help="only this kind of trouble")
    parser.add_argument("--jobs", type=int, default=4)
    chosen = parser.parse_args()
    began = time.monotonic()
    wanted = [
        (number, answer)
        for number, subject in enumerate(SUBJECTS)
        for answer in subject.answers
        if chosen.only in _named(subject) and chosen.answer in {None, answer}
    ]
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn"), alone) as pool:
        cells = list(pool.map(run, wanted))
    _print(cells)
    leaks = sum(len(cell.leaks) for cell in cells)
    written = sum(cell.written for cell in cells)
    told = sum(cell.heard for cell in cells)
    print(
        f"\n{len(cells)} runs, in {told} of them the server heard the secret; {written:,} bytes written; "
        f"leaks: {leaks} ({time.monotonic() - began:.0f} s)"
    )
    return 1 if leaks or not cells else 0


def _named(subject: Subject) -> str:
    return f"{subject.name} ({subject.role})"


def _shown(cell: Cell | None) -> str:
    return "" if cell is None else f"{len(cell.leaks)}{'*' if cell.heard else ' '}"


def _print(cells: Sequence[Cell]) -> None:
    rows: dict[int, dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        rows[cell.subject][cell.answer] = cell
    columns = [column for column in _COLUMNS if any(column in row for row in rows.values())]
    width = max((len(_named(SUBJECTS[number])) for number in rows), default=0)
    print("leaks by adapter and answer; * where the server was told the secret\n")
    print(" " * width, *(f"{column:>9}" for column in columns))
    for number, row in rows.items():
        shown = (_shown(row.get(column)) for column in columns)
        print(f"{_named(SUBJECTS[number]):{width}}", *(f"{each:>9}" for each in shown))
    for cell in cells:
        for leak in cell.leaks:
            print(f"\n{_named(SUBJECTS[cell.subject])}, {cell.answer}:\n  {leak}")


if __name__ == "__main__":
    sys.exit(main())
