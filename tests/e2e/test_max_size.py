"""Routes with `max_size` as a new user tries them: large files in, parts there, the file back."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_object_commands import Here, configured, stored
from tests.support.cli import Transload

KEY = bytes(range(32)).hex()
LARGE = os.urandom(250_000)
SPLIT = {"bytes": 100_000, "over": "split"}


def encrypting(folder: Path, max_size: Any) -> Here:
    keys = {"primary": "k1", "keys": {"k1": {"key": KEY}}}
    return configured(
        folder,
        {"routes": {"default": {"transforms": ["encrypt"], "max_size": max_size}}, "encryption": keys},
    )


def addresses(transload: Transload, url: str) -> list[str]:
    (found,) = transload.lines("find", "--url", url)
    return [str(each["address"]) for each in found["objects"]]


def test_a_large_payload_is_split_and_comes_back(tmp_path: Path) -> None:
    transload = encrypting(tmp_path, SPLIT)
    bid = stored(transload, tmp_path / "in", {"large.bin": LARGE, "small.txt": b"small"})
    (verification,) = transload.lines("verify", bid)
    assert (verification["passed"], verification["objects"]) == (True, 5)
    lying = addresses(transload, "*/large.bin")
    whole = lying[-1].removesuffix(".parts.json")
    assert lying == [f"{whole}.part-0000{n}" for n in (1, 2, 3)] + [f"{whole}.parts.json"]

    out = tmp_path / "out"
    out.mkdir()
    (got,) = transload.lines("get", whole, "-o", out)
    name = whole.rpartition("/")[2].removesuffix(".enc")
    assert (out / name).read_bytes() == LARGE
    assert (got["size"], got["verified"], got["bid"]) == (len(LARGE), True, bid)
    assert got["steps"] == ["put together from 3 parts", "decrypted with the key k1"]
    assert transload.raw("get", lying[-1], "-o", "-").stdout == LARGE
    (small,) = addresses(transload, "*/small.txt")
    assert transload.raw("get", small, "-o", "-").stdout == b"small"
    raw = transload.raw("get", small, "-o", "-", "--raw").stdout
    assert raw.startswith(b"\x93TLENC")

    # Everything that names the whole says where it is.
    for command in (["stat", whole], ["rm", whole, "--yes"]):
        done = transload.run(*command)
        assert done.returncode == 1
        assert f"{whole} lies in parts, listed in {lying[-1]}" in done.stderr
    assert f"it is a resource of bundle {bid}" in transload.run("rm", lying[0], "--yes").stderr

    # Without its key, and with a damaged part, there is no file.
    (out / name).unlink()
    keyless = Here(transload.home, environ={})
    refused = keyless.run("get", whole, "-o", out)
    assert refused.returncode == 1
    assert "encrypted with the key 'k1', which is not among encryption.keys" in refused.stderr
    part = transload.home / "storage" / lying[1].partition(":")[2]
    part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])
    refused = transload.run("get", whole, "-o", out)
    assert refused.returncode == 1
    assert f"{lying[1]} has 100000 bytes with SHA-256" in refused.stderr
    assert list(out.iterdir()) == []


def test_a_worker_killed_between_parts_leaves_no_list(tmp_path: Path) -> None:
    transload = configured(tmp_path, {"routes": {"default": {"max_size": SPLIT}}, "queue": {"lease": 1.0}})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "large.bin").write_bytes(LARGE)
    bid = transload.ok("publish", tmp_path / "in", "--recipe", "fr").strip()
    armed = Transload(transload.home, transload.config, {"TRANSLOAD_FAILPOINTS": "file.link.after=kill@3"})
    assert armed.run("run", "--until-idle").returncode == -signal.SIGKILL
    folder = transload.home / "storage" / f"bundle_{bid}"
    left = sorted(path.name.rpartition(".")[2] for path in folder.iterdir())
    assert left == ["part-00001", "part-00002", "part-00003"]
    transload.ok("run", "--until-idle")
    whole = addresses(transload, "*/large.bin")[-1].removesuffix(".parts.json")
    assert transload.raw("get", whole, "-o", "-").stdout == LARGE


@pytest.mark.parametrize(("max_size", "dead"), [(100, True), ({"bytes": 1000, "over": "compress"}, False)])
def test_what_is_too_large_is_refused_or_compressed(tmp_path: Path, max_size: Any, dead: bool) -> None:
    transload = configured(tmp_path, {"routes": {"default": {"max_size": max_size}}})
    bid = stored(transload, tmp_path / "in", {"zeros.txt": bytes(50_000), "small.txt": b"small"})
    letters = transload.lines("dlq", "ls")
    if dead:
        (letter,) = letters
        assert (letter["reason"], letter["bid"]) == ("payload_limit", bid)
        assert "max_size (max_size.bytes: 100) is exceeded at 'the payload'" in letter["detail"]
    else:
        assert letters == []
        (where,) = addresses(transload, "*/zeros.txt")
        assert where.endswith(".txt.zst")
        assert transload.raw("get", where, "-o", "-", "--decompress").stdout == bytes(50_000)
    assert transload.run("get", "main:x", "--raw", "--decompress").returncode == 2


def test_explain_shows_it(tmp_path: Path) -> None:
    transload = encrypting(tmp_path, {"bytes": 1000, "over": "compress"})
    message = {
        "type": "resource.fetched",
        "version": 1,
        "id": "m",
        "bundle": {"bid": "test-a", "recipe_id": "r", "primary_url": "https://example.com/"},
        "resource": {"url": "https://example.com/x"},
        "payload": {"location": f"file://{transload.home}/staging/x", "size": 4},
    }
    file = tmp_path / "message.json"
    file.write_text(json.dumps(message))
    (plan,) = transload.lines("explain", file)
    assert plan["max_size"] == {"bytes": 1000, "over": "compress"}
    assert [step["step"] for step in plan["transforms"]] == ["max_size", "encrypt", "max_size"]
