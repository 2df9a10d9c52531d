"""Which processes the crash matrix kills: visits, planned from what watched runs passed. Called by tests/faults/crash/__main__.py."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tests.faults.crash.table import Outcome
from tests.faults.scenarios import Scenario
from tests.faults.worlds import Combination
from tests.support.failpoints import known

VISITS_OF_SHORT = 4
"""Kills each combination gets at least."""
RAISED = {
    "file.sync.before": "raise:OSError:5",
    "file.link.before": "raise:OSError:28",
    "file.sync_directory.before": "raise:OSError:5",
    "sqlite.commit.before": "raise:OSError:28",
    "ledger.record.before": "raise:RuntimeError",
    "relay.publish.before": "raise:RuntimeError",
    "s3.complete.before": "raise:ConnectionResetError:104",
    "s3.put.after": "raise:ConnectionResetError:104",
}
"""Errors at commits, in the full run: the process goes on or ends, and either way nothing may be lost."""

ELSEWHERE = {
    "bus.*": "takes a layout of its own; tests/unit/test_bus_documents.py",
    "azure.*": "takes a server of its own; tests/conformance/test_azure_backend.py",
    "cache.*": "no scenario has a read cache; tests/unit/test_guard_read_cache.py",
    "embedded_queue.give_back.*": "takes a receive that is cancelled within its transaction; tests/unit/test_embedded_queue.py",
    "file.copy.*": "the worlds do not copy inside a store; tests/unit/test_file_copy.py",
    "file.create.*": "only where the file system has no files without a name; tests/unit/test_file_backend.py",
    "file.discard.*": "as file.create",
    "file.link_named.*": "as file.create",
    "file.unlink_temporary.*": "as file.create",
    "s3.abort.*": "takes a failing upload; tests/unit/test_s3_backend.py",
    "s3.copy.*": "as file.copy; tests/unit/test_s3_copy.py",
    "s3.sweep.*": "takes an upload older than an hour; backends/testing/upkeep.py",
    "s3.put_named.*": "takes a target with a checksum of its own choice; tests/unit/test_s3_checksums.py",
    "s3.undo.*": "takes a store that tells another checksum than was sent; tests/unit/test_s3_checksums.py",
    "gcs.*": "as azure; tests/conformance/test_gcs_backend.py",
    "hdfs.*": "as azure; tests/conformance/test_hdfs_backend.py",
    "http.*": "as azure; tests/conformance/test_http_backend.py",
    "ledger.audit.*": "takes a command; tests/e2e/test_audit_command.py",
    "ledger.trim_audit.*": "takes a trail of a day; tests/unit/test_audit.py",
    "ledger.forget_transfers.*": "takes a best-effort target; tests/faults/test_best_effort.py",
    "ledger.note_transfers.*": "takes several targets; tests/faults/test_crash_points.py",
    "ledger.settle.*": "as ledger.forget_transfers",
    "module.*": "as azure; tests/conformance/test_module_backend.py",
    "objects.*": "an operator's command; tests/e2e/test_object_commands.py",
    "postgres.*": "as azure; tests/conformance/test_postgres_backend.py",
    "provision.*": "no worker passes it; tests/e2e/test_provision.py",
    "relay.archive_found.*": "takes an archive of another release; tests/unit/test_bundle_archive.py",
    "sftp.*": "as azure; tests/conformance/test_sftp_backend.py",
    "workspace.*": "of a fetcher's own process, no worker's; tests/faults/test_in_process_crash.py",
    "ledger.probe.*": "takes an outage of the ledger; tests/faults/test_outages.py",
}
"""What no scenario passes, and where it is tried instead."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One process to be killed."""

    combination: Combination
    scenario: Scenario
    failpoint: str
    passage: int
    action: str = "kill"
    others: tuple[tuple[Combination, Scenario], ...] = ()
    """Where it was passed too: heartbeats and renewals come by only when something takes long enough."""

    @property
    def armed(self) -> str:
        return f"{self.failpoint}={self.action}@{self.passage}"

    def nearer(self) -> "Visit | None":
        """Where to look for it after a miss."""
        if self.passage > 1:
            return replace(self, passage=self.passage // 2)
        if not self.others:
            return None
        combination, scenario = self.others[0]
        return replace(self, combination=combination, scenario=scenario, others=self.others[1:])

    def __str__(self) -> str:
        return f"{self.combination}: {self.scenario.name}: {self.armed}"


Passed = dict[Combination, dict[str, list[tuple[Scenario, int]]]]
"""By combination: the failpoints that are reached there, in which scenarios, and how often these pass them."""


def covering(wanted: Sequence[Combination]) -> list[Combination]:
    """A few of them in which every queue, every ledger and every backend is there."""
    chosen: list[Combination] = []
    seen: set[str] = set()
    while missing := {part for each in wanted for part in _parts(each)} - seen:
        best = max(wanted, key=lambda each: len(missing & _parts(each)))
        chosen.append(best)
        seen |= _parts(best)
    return chosen


def _parts(combination: Combination) -> set[str]:
    return {combination.queue, combination.ledger, combination.backend}


def planned(found: Passed, draw: random.Random, *, short: bool) -> list[Visit]:
    """The visits, in an order that mixes the combinations."""
    visits = _sample(found, draw) if short else list(_all(found, draw))
    draw.shuffle(visits)
    return visits


def _all(found: Passed, draw: random.Random) -> Iterator[Visit]:
    for combination, names in found.items():
        for name, where in names.items():
            first = _visit(combination, name, where)
            yield first
            if (times := where[0][1]) > 1:
                yield replace(first, passage=_later(times, draw))
            if name in RAISED:
                yield replace(first, action=RAISED[name], others=())


def _visit(combination: Combination, name: str, where: Sequence[tuple[Scenario, int]]) -> Visit:
    scenario, *others = (scenario for scenario, _ in where)
    return Visit(combination, scenario, name, 1, others=tuple((combination, other) for other in others))


def _sample(found: Passed, draw: random.Random) -> list[Visit]:
    """Every failpoint once, somewhere; then every combination a few times."""
    where = defaultdict(list)
    for combination, names in found.items():
        for name in names:
            where[name].append(combination)
    visits = []
    for name, places in sorted(where.items()):
        visit = _drawn(found, draw.choice(places), name, draw)
        elsewhere = ((each, scenario) for each in places for scenario, _ in found[each][name])
        visits.append(replace(visit, others=(*visit.others, *elsewhere)))
    for combination, names in found.items():
        had = [visit.failpoint for visit in visits if visit.combination == combination]
        others = sorted(names.keys() - had)
        more = draw.sample(others, min(len(others), max(0, VISITS_OF_SHORT - len(had))))
        visits += [_drawn(found, combination, name, draw) for name in more]
    return visits


def _drawn(found: Passed, combination: Combination, name: str, draw: random.Random) -> Visit:
    where = found[combination][name]
    visit, times = _visit(combination, name, where), where[0][1]
    return visit if times == 1 or draw.random() < 0.5 else replace(visit, passage=_later(times, draw))


def _later(times: int, draw: random.Random) -> int:
    """Not among the last ones: the next run may come by less often."""
    return draw.randint(2, max(2, times * 2 // 3))


def unvisited(outcomes: Sequence[Outcome]) -> list[str]:
    """Failpoints at which nothing was killed, and that have no reason not to be visited."""
    visited = {outcome.failpoint for outcome in outcomes if outcome.reached}
    return [
        name
        for name in known()
        if name not in visited and not any(fnmatchcase(name, pattern) for pattern in ELSEWHERE)
    ]
