"""Targets with `archive` as a new user tries them: publish files, run the worker, take the archive apart, ask about it."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.test_object_commands import configured, stored

FILES = {"page.html": b"<html>" * 1_000, "empty": b"", "large.bin": bytes(range(256)) * 8_192}


def without_ids(folder: Path) -> dict[str, bytes]:
    """The files, without the ids in their names."""
    found = {}
    for path in folder.iterdir():
        stem, _, rest = path.name.rpartition("-")
        found[stem + rest[16:]] = path.read_bytes()
    return found


def done(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_zip_gives_all_files_back_and_the_commands_know_it(tmp_path: Path) -> None:
    transload = configured(tmp_path, {"targets": {"main": {"archive": "zip"}}})
    bid = stored(transload, tmp_path / "in", FILES)
    folder = transload.home / "storage" / f"bundle_{bid}"
    done(sys.executable, "-m", "zipfile", "-t", folder / "bundle.zip")
    done(sys.executable, "-m", "zipfile", "-e", folder / "bundle.zip", tmp_path / "out")
    assert without_ids(tmp_path / "out") == FILES

    where = f"main:bundle_{bid}/bundle.zip"
    assert where.partition(":")[2] in transload.ok("ls", "main").split()
    assert f"archive: bundle_{bid}/bundle.zip" in transload.ok("show", bid)
    assert transload.lines("stat", where)[0]["ledger"]["part"] == "archive"
    assert f"it is the archive of bundle {bid}" in transload.ok("get", where, "-o", tmp_path / "copy.zip")
    assert (tmp_path / "copy.zip").read_bytes() == (folder / "bundle.zip").read_bytes()
    refused = transload.run("rm", where, "--yes")
    assert (refused.returncode, f"it is the archive of bundle {bid}" in refused.stderr) == (1, True)
    transload.ok("verify", bid)
    transload.ok("rm", where, "--yes", "--force")
    missed = transload.run("verify", bid)
    assert (missed.returncode, "bundle.zip" in missed.stdout + missed.stderr) == (1, True)


def test_a_tar_gives_all_files_back(tmp_path: Path) -> None:
    transload = configured(tmp_path, {"targets": {"main": {"archive": "tar.gz"}}})
    bid = stored(transload, tmp_path / "in", FILES)
    (tmp_path / "out").mkdir()
    archive = transload.home / "storage" / f"bundle_{bid}" / "bundle.tar.gz"
    done("tar", "--extract", "--gzip", "--file", archive, "--directory", tmp_path / "out")
    assert without_ids(tmp_path / "out") == FILES


def test_explain_tells_where_it_will_lie(tmp_path: Path) -> None:
    transload = configured(tmp_path, {"targets": {"main": {"archive": "tar.zst", "layout": "dated"}}})
    message = tmp_path / "message.json"
    message.write_text(
        '{"type": "bundle.closed", "version": 1, "id": "1", '
        '"bundle": {"bid": "test-a", "recipe_id": "r", "resources_count": 0}}',
        encoding="utf-8",
    )
    (plan,) = transload.lines("explain", message)
    assert plan["bundle"][0]["archive_key"] == "_bundles/undated/_test-a.tar.zst"
