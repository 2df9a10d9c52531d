"""The wheel and the source distribution: the same bytes wherever they are built, and nothing in them that does not belong there."""

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply.packages import ALWAYS, LOCK, brought_by, locked, required
from tests.support.services import ROOT, environment_without

HATCHLING = Path(sys.executable).with_name("hatchling")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROOMS = ("backends", "handlers", "worker")
EPOCH = "1700000000"


def copied(folder: Path, *, mode: int, age: int) -> Path:
    """The checkout in another place, by another umask, and at another time."""
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            *ROOMS,
            "tests/supply",
            *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    # In another order, too: a directory lists its files as it likes.
    for name in sorted(listed.stdout.split(), reverse=bool(age % 2)):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        target.chmod(mode)
        os.utime(target, (age, age))
    cache = folder / "worker/__pycache__/left.cpython-311.pyc"
    cache.parent.mkdir()
    cache.write_bytes(b"of this machine")
    return folder


def built(folder: Path) -> dict[str, bytes]:
    """What `make wheel` writes, by its name."""
    subprocess.run(
        [HATCHLING, "build"],
        cwd=folder,
        check=True,
        capture_output=True,
        env=environment_without("HATCH", "PYTHON") | {"SOURCE_DATE_EPOCH": EPOCH},
    )
    return {file.name: file.read_bytes() for file in (folder / "dist").iterdir()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which it was built."""
    folder = copied(tmp_path_factory.mktemp("built") / "here", mode=0o644, age=1_600_000_001)
    built(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    (file,) = (tree / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_case_110_two_builds_are_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    other = copied(tmp_path / "quite" / "elsewhere", mode=0o600, age=1_500_000_000)
    first = {file.name: file.read_bytes() for file in (tree / "dist").iterdir()}
    assert len(first) == 2
    assert built(other) == first


def test_case_110_the_wheel_holds_the_rooms_and_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        dates = {entry.date_time for entry in archive.infolist()}
    own = f"transload-{PROJECT['version']}.dist-info"
    assert {name.partition("/")[0] for name in names} == {*ROOMS, own}
    assert {name for name in names if name.startswith(own)} == {
        f"{own}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    tracked = subprocess.run(
        ["git", "ls-files", *ROOMS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert {name for name in names if not name.startswith(own)} == set(tracked.stdout.split())
    assert dates == {(2023, 11, 14, 22, 13, 20)}, "SOURCE_DATE_EPOCH"


def test_case_110_the_source_distribution_holds_no_tests(tree: Path) -> None:
    (file,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.split("/")[1] for name in archive.getnames()}
        owners = {(entry.uid, entry.uname, entry.mtime) for entry in archive.getmembers()}
    assert names == {*ROOMS, "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert owners == {(0, "", int(EPOCH))}


def test_case_110_the_metadata_are_complete(metadata: email.message.Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("transload", PROJECT["version"])
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert set(metadata.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"])
    told = {ALWAYS: set[str](), **{extra: set[str]() for extra in required()}}
    for requirement in map(Requirement, metadata.get_all("Requires-Dist") or ()):
        extra = re.search(r"extra == [\"'](\w+)", str(requirement.marker))
        if extra is None or extra[1] != "all":
            told[extra[1] if extra else ALWAYS].add(canonicalize_name(requirement.name))
    assert told == {
        extra: {canonicalize_name(Requirement(each).name) for each in listed}
        for extra, listed in required().items()
    }
    assert str(metadata.get_payload()).startswith("# Transload")


@pytest.mark.slow
def test_case_110_the_wheel_alone_runs(wheel: Path, tmp_path: Path) -> None:
    """In an environment that pip fills from the package index, at the versions of the lock."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        re.sub(r" \\\n +--hash=.*", "", LOCK.read_text(encoding="utf-8")), encoding="utf-8"
    )
    python, transload = environment / "bin/python", environment / "bin/transload"

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            env=environment_without("PYTHON", "TRANSLOAD_") | {"HOME": str(tmp_path)},
        )
        return done.stdout

    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel)
    assert "Usage: transload" in run(transload, "--help")
    assert "every digest matches" in run(
        transload, "--home", tmp_path / "home", "demo", "--from", ROOT / "docs/adr"
    )
    listed = run(python, "-m", "pip", "list", "--format", "freeze").split()
    installed = {canonicalize_name(name): version for name, version in (line.split("==") for line in listed)}
    tools = {"pip", "setuptools", "transload"}
    expected = {name: locked()[name].version for name, extras in brought_by().items() if ALWAYS in extras}
    assert {name: version for name, version in installed.items() if name not in tools} == expected
