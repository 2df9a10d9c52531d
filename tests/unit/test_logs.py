import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from worker import logs

CANARY = "c4n4ry-s3cret"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def only_line(stream: io.StringIO) -> dict[str, Any]:
    (line,) = lines(stream)
    return line


def test_a_line_is_one_json_object_with_time_level_name_and_context(stream: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(bid="b-1")
    structlog.get_logger("relay").info("bundle published", event_id="e-1", count=2, ok=True, none=None)
    line = only_line(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "bundle published",
        "level": "info",
        "logger": "relay",
        "bid": "b-1",
        "event_id": "e-1",
        "count": 2,
        "ok": True,
        "none": None,
    }


def test_lines_below_the_level_are_not_written(stream: io.StringIO) -> None:
    structlog.get_logger().debug("too low")
    structlog.get_logger().info("shown")
    assert only_line(stream)["event"] == "shown"


def test_the_last_configuration_holds(stream: io.StringIO) -> None:
    log = structlog.get_logger()
    second = io.StringIO()
    logs.configure("debug", "json", second)
    log.debug("now")
    logging.getLogger("library").warning("once")
    assert stream.getvalue() == ""
    assert [line["event"] for line in lines(second)] == ["now", "once"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_case_100_whatever_a_value_holds_it_stays_on_one_printable_line(format_: Any) -> None:
    stream = Terminal()
    logs.configure("info", format_, stream)
    hostile = "a\r\nb\x1b[31mc\x00d\u2028e\u202ef\ud800g"
    structlog.get_logger().info(f"event {hostile}", value=hostile, deep={"list": [hostile]}, **{hostile: 1})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\r" not in text
    assert "\x1b[31m" not in text
    assert not set(text) & set("\x00\u2028\u202e\ud800")
    text.encode()


def test_case_100_long_fields_are_cut(stream: io.StringIO) -> None:
    huge = "é" * 1_000_000
    structlog.get_logger().info(huge, value=huge, deep={"many": list(range(100_000))}, raw=b"x" * 1_000_000)
    assert len(stream.getvalue()) < 100_000
    line = only_line(stream)
    for name in ("event", "value", "deep", "raw"):
        assert len(line[name].encode()) <= logs.FIELD_LIMIT + 32
        assert line[name].endswith("[cut]")


def test_nesting_ends_somewhere(stream: io.StringIO) -> None:
    deep: Any = "end"
    for _ in range(500):
        deep = [deep]
    structlog.get_logger().info("deep", value=deep)
    assert len(lines(stream)) == 1


@pytest.mark.parametrize(
    "value",
    [
        f"https://user:{CANARY}@host/path",
        f"cannot reach postgresql://transload:{CANARY}@db:5432/x: refused",
        f"https://bucket/key?X-Amz-Credential=AKIA&X-Amz-Signature={CANARY}",
        f"https://bucket/key?Signature={CANARY}&Expires=1",
        f"https://bucket/key?X-Amz-Security-Token={CANARY}",
        ["x", {"url": f"https://:{CANARY}@host"}],
        ValueError(f"GET https://u:{CANARY}@host/ failed"),
    ],
)
def test_case_99_secrets_in_urls_are_hidden(stream: io.StringIO, value: object) -> None:
    structlog.get_logger().info(f"event {value}", value=value)
    assert CANARY not in stream.getvalue()
    assert "**********" in stream.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "secret",
        "secret_access_key",
        "access_key",
        "token",
        "session_token",
        "x-api-key",
    ],
)
def test_case_99_values_under_a_secret_name_are_hidden(stream: io.StringIO, name: str) -> None:
    structlog.get_logger().info("event", **{name: CANARY}, deep={name: [CANARY]})
    assert CANARY not in stream.getvalue()


def test_case_99_a_secret_across_the_cut_is_hidden_before_it_is_cut(stream: io.StringIO) -> None:
    start = "x" * (logs.FIELD_LIMIT - 20)
    structlog.get_logger().info("event", value=f"{start} https://u:{CANARY}@host")
    assert CANARY[:4] not in stream.getvalue()


def test_ordinary_urls_are_left_alone(stream: io.StringIO) -> None:
    url = "https://host:8080/a@b/c?page=2&sort=up#part"
    structlog.get_logger().info("event", url=url)
    assert only_line(stream)["url"] == url


def test_case_99_an_exception_is_one_field_without_its_secrets(stream: io.StringIO) -> None:
    try:
        raise RuntimeError(f"first\nsecond https://u:{CANARY}@host \x1b[2J")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    line = only_line(stream)
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert "RuntimeError: first\nsecond" in line["exception"]
    assert "\x1b" not in line["exception"]
    assert CANARY not in stream.getvalue()


def test_a_long_traceback_keeps_its_end(stream: io.StringIO) -> None:
    try:
        raise RuntimeError("x" * 20_000 + " the end")
    except RuntimeError as exc:
        structlog.get_logger().warning("failed", exc_info=exc)
    assert only_line(stream)["exception"].endswith("the end")
    assert len(only_line(stream)["exception"]) <= logs.FIELD_LIMIT + 32


def test_on_a_terminal_no_line_of_a_traceback_can_pass_for_a_log_line() -> None:
    stream = Terminal()
    logs.configure("info", "auto", stream)
    try:
        raise RuntimeError("x\n2026-01-01T00:00:00Z [info] all is well")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert "failed" in first
    assert rest
    assert all(line.startswith("  | ") for line in rest)


def test_libraries_speak_through_the_same_renderer_from_warning_on(stream: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(bid="b-1")
    library = logging.getLogger("aiobotocore.endpoint")
    library.info("not shown")
    library.warning("retrying %s\nnow", f"https://u:{CANARY}@host")
    try:
        raise OSError("broken")
    except OSError:
        library.exception("failed")
    first, second = lines(stream)
    assert first["event"] == "retrying https://**********@host\\nnow"
    assert (first["level"], first["logger"], first["bid"]) == ("warning", "aiobotocore.endpoint", "b-1")
    assert "OSError: broken" in second["exception"]


def test_warnings_become_lines(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert "old way" in only_line(stream)["event"]


def test_auto_is_console_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    logs.configure("info", "auto", terminal)
    structlog.get_logger().info("hello", count=1)
    logs.configure("info", "auto", pipe)
    structlog.get_logger().info("hello", count=1)
    assert not terminal.getvalue().startswith("{")
    assert "hello" in terminal.getvalue()
    assert only_line(pipe)["count"] == 1


def test_a_real_stream_can_carry_every_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console", sys.stderr)
    structlog.get_logger().info("bündel ✓", name="\ud800")
    assert "bündel ✓" in capfd.readouterr().err
