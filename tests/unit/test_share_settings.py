"""What is said of shares in the settings, and what is wrong with it."""

from pathlib import Path

import pytest

from worker.settings import Settings, SettingsError, load_settings
from worker.settings_shares import concurrency_limits, memory_limits


def load(folder: Path, text: str) -> Settings:
    file = folder / "t.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file=file, home=folder / "home", environ={})


@pytest.mark.parametrize(
    ("text", "ahead"),
    [
        ("worker: {}", 2048),
        ("worker: {concurrency: 4}", 128),
        ("worker: {concurrency: 1024}", 2048),
        ("worker: {look_ahead: 7}", 7),
        ("worker: {look_ahead: 0}", 0),
        ("worker: {fair: false}", 0),
        ("worker: {fair: false, look_ahead: 7}", 0),
    ],
)
def test_how_far_it_looks_ahead(tmp_path: Path, text: str, ahead: int) -> None:
    assert load(tmp_path, text).worker.ahead == ahead


def test_routes_without_limits_have_none(tmp_path: Path) -> None:
    text = "routes: {a: {concurrency: 2}, b: {transfer_memory: 10000000}, c: {}}"
    routes = load(tmp_path, text).routes
    assert concurrency_limits(routes) == {"a": 2}
    assert memory_limits(routes) == {"b": 10_000_000}


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        (
            "concurrency: 65",
            "routes.r.concurrency: 65 is more than worker.concurrency (64), which all routes share; lower it",
        ),
        ("concurrency: 0", "routes.r.concurrency: '0' should be greater than or equal to 1"),
        (
            "transfer_memory: 300000000",
            "routes.r.transfer_memory: 300000000 is more than worker.transfer_memory (201326592)",
        ),
        ("transfer_memory: 5", "routes.r.transfer_memory: '5' should be greater than or equal to 8388608"),
    ],
)
def test_a_part_is_no_more_than_the_whole(tmp_path: Path, route: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, f"routes:\n  r:\n    {route}\n")
    assert problem in str(caught.value)
