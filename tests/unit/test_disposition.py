"""Every kind of failure has its fate, and only by what it is and how often it was tried."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors as storage
from handlers.errors import HandlerError, PayloadMissing, Refused
from worker.attempts import CRASHED, Attempt
from worker.disposition import CrashedTooOften, Failure, RetryPolicy, decide, reason_for
from worker.ledger.base import LedgerCorrupt, LedgerError, LedgerRefused, LedgerUnavailable, SchemaMismatch
from worker.manifest_errors import CannotArchive, TargetGone
from worker.queues.base import Dead, HeldTooLong, Retry

POLICY = RetryPolicy(max_attempts=5, base=1.0, cap=60.0)


NOW = 1_700_000_000.0


def fate(error: Exception, attempt: int = 1, *, earlier: list[Attempt] | None = None) -> Dead | Retry:
    """With nothing said of the earlier tries, they ended as this one."""
    failure = Failure.of(error, NOW)
    before = [failure.attempt] * (attempt - 1) if earlier is None else earlier
    decided = decide(failure, before, attempt, POLICY, lambda: 0.0)
    assert isinstance(decided, (Dead, Retry)), "a failure is never acknowledged"
    return decided


def of(kind: str, *, outage: bool = False) -> Attempt:
    return Attempt(NOW - 60, kind, "what happened", outage)


def test_what_is_refused_is_dead_at_once_with_its_own_reason() -> None:
    dead = fate(Refused("staging_not_allowed", "elsewhere"))
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.detail, dead.error) == ("staging_not_allowed", "elsewhere", "Refused")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (storage.Conflict("c"), "conflict"),
        (storage.InvalidKey("k"), "storage_failed"),
        (storage.Unsupported("u"), "storage_failed"),
        (storage.MissingExtra("m"), "storage_failed"),
        (HandlerError("h"), "internal_error"),
        (CannotArchive("two members have one path", retryable=False), "cannot_archive"),
    ],
)
def test_what_can_never_succeed_is_dead_at_once(error: Exception, reason: str) -> None:
    dead = fate(error)
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.detail, dead.error) == (reason, str(error), type(error).__name__)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (storage.NotFound("n"), "storage_failed"),
        (storage.IntegrityError("i"), "integrity_mismatch"),
        (PayloadMissing("m"), "payload_missing"),
        (CannotArchive("install it", retryable=True), "cannot_archive"),
        (RuntimeError("nobody foresaw"), "internal_error"),
        (KeyError("x"), "internal_error"),
    ],
)
def test_case_28_what_may_pass_is_retried_so_often_and_no_more(error: Exception, reason: str) -> None:
    for attempt in range(1, POLICY.max_attempts):
        assert isinstance(fate(error, attempt), Retry)
    for attempt in (POLICY.max_attempts, POLICY.max_attempts + 1, 1_000):
        dead = fate(error, attempt)
        assert isinstance(dead, Dead)
        assert dead.reason == reason
        assert str(error) in dead.detail
        assert f"attempt {attempt} of 5" in dead.detail


@pytest.mark.parametrize("error", [storage.PermissionDenied("p"), storage.Unavailable("u"), TargetGone("g")])
def test_an_outage_of_a_store_is_waited_out_much_longer(error: Exception) -> None:
    for attempt in (1, POLICY.max_attempts, POLICY.max_outage_attempts - 1):
        assert isinstance(fate(error, attempt), Retry)
    dead = fate(error, POLICY.max_outage_attempts)
    assert isinstance(dead, Dead)
    assert dead.reason == "storage_failed"
    assert "attempt 100 of 100" in dead.detail


@pytest.mark.parametrize(
    "error", [LedgerUnavailable("down"), SchemaMismatch("old"), LedgerCorrupt("torn"), LedgerError("?")]
)
def test_case_41_a_ledger_that_does_not_answer_kills_no_message(error: Exception) -> None:
    for attempt in (1, 5, 6, 10_000):
        assert isinstance(fate(error, attempt), Retry)


def test_case_28_an_entry_the_ledger_refuses_is_given_up_in_the_end() -> None:
    error = LedgerRefused("integer out of range")
    for attempt in range(1, POLICY.max_attempts):
        assert isinstance(fate(error, attempt), Retry)
    dead = fate(error, POLICY.max_attempts)
    assert isinstance(dead, Dead)
    assert dead.reason == "ledger_refused"
    assert "integer out of range" in dead.detail


def test_case_28_the_dead_letter_has_the_log_of_all_attempts() -> None:
    earlier = [of("PayloadMissing"), of(CRASHED), of("Unavailable", outage=True), of("IntegrityError")]
    assert isinstance(fate(RuntimeError("last"), earlier=earlier), Retry)
    earlier.append(of("IntegrityError"))
    dead = fate(RuntimeError("last"), earlier=earlier)
    assert isinstance(dead, Dead)
    assert dead.error == "RuntimeError"
    assert list(dead.attempts) == [*earlier, Attempt(NOW, "RuntimeError", "last")]


def test_outages_and_failures_are_counted_apart() -> None:
    outages = [of("Unavailable", outage=True)] * 50
    assert isinstance(fate(storage.IntegrityError("i"), earlier=outages), Retry)
    failures = [of("IntegrityError")] * 4
    assert isinstance(fate(storage.Unavailable("u"), earlier=failures), Retry)


def test_case_22_what_is_held_too_long_is_handed_over_at_once_and_not_for_ever() -> None:
    assert fate(HeldTooLong("12 hours")) == Retry(0)
    dead = fate(HeldTooLong("12 hours"), POLICY.max_attempts)
    assert isinstance(dead, Dead)
    assert dead.reason == "held_too_long"


def test_case_18_what_killed_its_process_too_often_is_dead() -> None:
    dead = fate(CrashedTooOften("5 tries"), earlier=[of(CRASHED)] * 5)
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.error, len(dead.attempts)) == ("crashed", "CrashedTooOften", 6)


def test_every_error_of_the_tree_has_a_reason() -> None:
    kinds = [kind for kind in vars(storage).values() if isinstance(kind, type)]
    reasons = {reason_for(kind("x")) for kind in kinds if issubclass(kind, storage.StorageError)}
    assert reasons == {"storage_failed", "integrity_mismatch", "conflict"}


@given(attempt=st.integers(1, 10_000), drawn=st.floats(0, 1, exclude_max=True))
def test_delays_stay_between_half_and_all_of_their_ceiling(attempt: int, drawn: float) -> None:
    delay = POLICY.delay(attempt, lambda: drawn)
    ceiling = min(60.0, 2.0 ** (attempt - 1)) if attempt < 10 else 60.0
    assert ceiling / 2 <= delay <= ceiling


def test_delays_double_up_to_the_cap() -> None:
    delays = [POLICY.delay(attempt, lambda: 0.0) for attempt in range(1, 10)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_delays_of_one_burst_differ() -> None:
    source = random.Random(1)
    assert len({POLICY.delay(3, source.random) for _ in range(100)}) == 100
