"""Bundle ids: what they tell, what is refused, and that new ones only grow."""

import uuid
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.bids import BidFactory, derived_bid, is_bid, timestamp_ms

V0 = "17571960-2065-e0cd-cf71-8196d8577b7e"


def milliseconds(*moment: int) -> int:
    year, month, day, hour, minute, second = moment
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    "bid",
    [
        V0,
        V0.upper(),
        "018f3e1a-5b7c-7def-8123-456789abcdef",
        "bid:v1:main:20240115103000:0a1b2c3d",
        "test-a",
        "custom-My_bundle-2",
        "test-" + "x" * 96,
    ],
)
def test_accepted(bid: str) -> None:
    assert is_bid(bid)


@pytest.mark.parametrize(
    "bid",
    [
        "",
        "a",
        V0 + "\n",
        V0[:-1],
        V0.replace("-", ""),
        "{" + V0 + "}",
        "g" + V0[1:],
        "bid:v2:main:20240115103000:0a1b2c3d",
        "bid:v1::20240115103000:0a1b2c3d",
        "bid:v1:a/b:20240115103000:0a1b2c3d",
        "bid:v1:main:20240115103000:0A1B2C3D",
        "bid:v1:main:20240115103000:0a1b2c3",
        "test-",
        "test--a",
        "test-../x",
        "test-" + "x" * 97,
        "custom-a.b",
        "other-a",
        "\u0661" + V0[1:],
    ],
)
def test_refused(bid: str) -> None:
    assert not is_bid(bid)


def test_v0_counts_ten_milliseconds() -> None:
    assert timestamp_ms(V0) == 1_757_196_020_650


def test_v7_tells_milliseconds() -> None:
    # The example of RFC 9562, appendix A.6.
    assert timestamp_ms("017F22E2-79B0-7CC3-98C4-DC0C0C07398F") == milliseconds(2022, 2, 22, 19, 22, 22)


def test_v1_tells_seconds() -> None:
    assert timestamp_ms("bid:v1:main:20240115103000:0a1b2c3d") == milliseconds(2024, 1, 15, 10, 30, 0)


@pytest.mark.parametrize(
    "bid", ["bid:v1:main:20241315103000:0a1b2c3d", "test-a", "ffffffff-2065-40cd-8f71-8196d8577b7e", "no bid"]
)
def test_no_time_to_tell(bid: str) -> None:
    assert timestamp_ms(bid) is None


def test_new_bids_are_version_7_of_now() -> None:
    bid = BidFactory(clock=lambda: 1_700_000_000.1234)()
    parsed = uuid.UUID(bid)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert is_bid(bid)
    assert timestamp_ms(bid) == 1_700_000_000_123


@pytest.mark.parametrize("drawn", [0, -1], ids=["least random bits", "most random bits"])
def test_new_bids_grow_while_the_clock_stands(drawn: int) -> None:
    factory = BidFactory(clock=lambda: 1_700_000_000.0, random_bits=lambda bits: drawn % 2**bits)
    bids = [factory() for _ in range(10_000)]
    assert all(earlier < later for earlier, later in pairwise(bids))
    assert {timestamp_ms(bid) for bid in bids} == {1_700_000_000_000}


def test_new_bids_grow_when_the_clock_steps_back() -> None:
    times = iter([100.0, 50.0, 0.0, 99.999, 100.0, 100.001, 100.001])
    factory = BidFactory(clock=lambda: next(times))
    bids = [factory() for _ in range(7)]
    assert all(earlier < later for earlier, later in pairwise(bids))
    assert timestamp_ms(bids[3]) == 100_000
    assert timestamp_ms(bids[5]) == 100_001


def test_two_factories_do_not_meet() -> None:
    one, other = BidFactory(clock=lambda: 1.0), BidFactory(clock=lambda: 1.0)
    assert not {one() for _ in range(1_000)} & {other() for _ in range(1_000)}


@given(st.integers(min_value=0, max_value=10_413_791_999_999), st.binary())
def test_derived_bids_depend_on_nothing_else(time_ms: int, content: bytes) -> None:
    bid = derived_bid(time_ms, content)
    assert bid == derived_bid(time_ms, content)
    assert bid != derived_bid(time_ms, content + b"x")
    assert is_bid(bid)
    assert (uuid.UUID(bid).version, timestamp_ms(bid)) == (7, time_ms)


def test_a_derived_bid_never_changes_between_releases() -> None:
    assert derived_bid(1_700_000_000_000, b"content") == "018bcfe5-6800-75c0-82b4-39e9ac845f22"
