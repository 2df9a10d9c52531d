"""requirements.lock, and what is installed beside it."""

import hashlib
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.supply.packages import locked, pins, required
from tests.support import azurite, gcs, hdfs, helm, localstack
from tests.support.digests import differing
from tests.support.groups import wanted
from tests.support.services import ROOT

PINNED = re.compile(r"[\w.-]+(?:\[[\w,]+\])?==[\w.]+")


def test_case_110_every_package_of_the_lock_has_one_version_and_hashes() -> None:
    assert len(locked()) > 50


@pytest.mark.parametrize(
    "wrong",
    [
        "aiohttp==3.14.5",
        "aiohttp>=3 --hash=sha256:" + "a" * 64,
        "aiohttp==3.14.5 --hash=md5:" + "a" * 32,
        "aiohttp @ https://example.com/aiohttp-3.14.5-py3-none-any.whl --hash=sha256:" + "a" * 64,
        "--index-url https://example.com/simple",
        "--trusted-host example.com",
        "-r other.lock",
        "\n".join(["aiohttp==3.14.5 --hash=sha256:" + "a" * 64] * 2),
    ],
)
def test_case_110_anything_else_in_a_lock_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"aiohttp|--|-r"):
        pins(f"yarl==1.25.1 \\\n    --hash=sha256:{'b' * 64}\n{wrong}\n")


def test_case_110_everything_that_pyproject_asks_for_is_locked() -> None:
    lock = locked()
    asked = [*(each for listed in required().values() for each in listed), *wanted("dev")]
    for requirement in map(Requirement, asked):
        pin = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(pin.version)), (
            f"{requirement}, but {pin.version} is locked"
        )


def test_case_110_the_lock_is_installed_by_its_hashes() -> None:
    """What a changed file does to an image: tests/image/test_image.py."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "-r requirements.lock" in line]
    assert installs
    assert all("--require-hashes" in line for line in installs)
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"uv (?:pip install|build)[^;&\n]*", dockerfile)
    assert len(installs) == 3
    assert all("--require-hashes" in each or "--no-deps dist/" in each for each in installs)


def test_case_110_what_the_tests_install_has_one_version() -> None:
    """Not what that brings along: docs/supply-chain.md says what is verified of it."""
    releases = [release for _, release in localstack.RELEASES]
    releases += [gcs.RELEASE, azurite.RELEASE, *(version for *_, version in hdfs.JARS)]
    assert [release for release in releases if not re.fullmatch(r"\d+(\.\d+)+", release)] == []
    named = [*helm.WANTED, *wanted("docs"), *wanted("supply")]
    assert [each for each in named if not PINNED.fullmatch(each)] == []


def test_case_110_a_downloaded_file_that_was_changed_is_noticed(tmp_path: Path) -> None:
    for name in ("a.jar", "b.jar", "c.jar"):
        (tmp_path / name).write_bytes(name.encode())
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.jar", "b.jar", "c.jar")}
    assert differing(tmp_path, expected) == []
    (tmp_path / "a.jar").write_bytes(b"changed")
    (tmp_path / "b.jar").unlink()
    (tmp_path / "d.jar").write_bytes(b"more")
    assert differing(tmp_path, expected) == ["a.jar", "b.jar", "d.jar"]
    named = {f"{artifact}-{version}.jar" for _, artifact, version in hdfs.JARS}
    assert named <= set(hdfs.JAR_DIGESTS)
