"""What `make soak` takes for growth of a worker: the verdict of case 109, on samples that are made up."""

import pytest

from tests.faults.soak_chaos import FD_BOUND, RSS_BOUND, THREAD_BOUND, Samples
from tests.support.workers import Usage


def judged(*quarters: Usage) -> list[str]:
    violations: list[str] = []
    Samples([usage for usage in quarters for _ in range(5)]).judge(violations.append)
    return violations


FLAT = Usage(100 << 20, 40, 12)


def test_case_109_what_stays_flat_or_grows_at_the_start_alone_is_well() -> None:
    assert judged(FLAT, FLAT, FLAT, FLAT) == []
    assert judged(Usage(1, 1, 1), FLAT, FLAT, FLAT) == []


@pytest.mark.parametrize(
    ("late", "what"),
    [
        (Usage(FLAT.rss + RSS_BOUND + 1, FLAT.fds, FLAT.threads), "RSS"),
        (Usage(FLAT.rss, FLAT.fds + FD_BOUND + 1, FLAT.threads), "fds"),
        (Usage(FLAT.rss, FLAT.fds, FLAT.threads + THREAD_BOUND + 1), "threads"),
    ],
)
def test_case_109_what_grows_under_the_load_is_a_violation(late: Usage, what: str) -> None:
    (violation,) = judged(FLAT, FLAT, FLAT, late)
    assert violation.startswith(f"{what} of the spared worker grew")


def test_case_109_too_few_samples_show_nothing() -> None:
    violations: list[str] = []
    Samples([FLAT] * 15).judge(violations.append)
    assert violations == ["the spared worker was seen 15 times only"]
