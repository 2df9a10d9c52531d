"""How it looks what `transload doctor` found and `transload sweep` removed. Called by worker/cli_doctor.py."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from rich.markup import escape
from rich.table import Table

from worker.doctor import Finding, State
from worker.housekeeping import Swept
from worker.redaction import one_line
from worker.render import out, print_json

_STYLES: Final = MappingProxyType({State.OK: "green", State.NOTE: "yellow", State.PROBLEM: "red"})


def findings(found: Sequence[Finding], *, as_json: bool) -> None:
    """All of them, and at the end how many are problems."""
    problems = sum(finding.state is State.PROBLEM for finding in found)
    if as_json:
        for finding in found:
            print_json(
                {
                    "part": finding.part,
                    "check": finding.check,
                    "state": finding.state.value,
                    "text": finding.text,
                    "remedy": finding.remedy or None,
                }
            )
        print_json({"problems": problems})
        return
    table = Table(box=None)
    for name in ("part", "check", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in found:
        state = f"[{_STYLES[finding.state]}]{finding.state.value}[/]"
        text, remedy = escape(one_line(finding.text)), escape(one_line(finding.remedy))
        table.add_row(escape(finding.part), finding.check, state, text, remedy)
    console = out()
    console.print(table)
    console.print("1 problem" if problems == 1 else f"{problems} problems")


def swept(done: Swept) -> None:
    """What a round removed."""
    text = (
        f"removed: {done.staged} staged payloads, {done.bundles} bundles from the ledger, {done.attempts} notes of tries, "
        f"{done.leftovers} leftovers of killed writers, {done.audit} rows of the audit trail"
    )
    out().print(text, markup=False, soft_wrap=True)
    if done.failures:
        out().print(f"not done: {done.failures}; the log says why", style="red", markup=False)
