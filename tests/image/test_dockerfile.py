"""What the Dockerfile says, read line by line: the quick half of test_image.py, which builds it."""

import json
import re

from tests.support.services import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
_JOINED = re.sub(r"\\\n", " ", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))
LINES = [line.strip() for line in _JOINED.splitlines() if line.strip()]
STAGES = re.split(r"\n(?=FROM )", "\n".join(LINES))
LAST = STAGES[-1].splitlines()


def one(instruction: str) -> str:
    (found,) = [line for line in LAST if line.startswith(f"{instruction} ")]
    return found.removeprefix(f"{instruction} ")


def test_what_builds_is_not_in_what_runs() -> None:
    assert [re.sub(r"^FROM \S+(?: AS (\w+))?.*", r"\1", stage.splitlines()[0]) for stage in STAGES[1:]] == [
        "uv",
        "build",
        "",
    ]
    copied = [line for line in LAST if line.startswith("COPY ")]
    assert copied == ["COPY --from=build /opt/transload /opt/transload"], (
        "the environment, whole, and no more"
    )
    assert not re.search(r"\b(uv|pip|apt-get)\b", "\n".join(LAST))
    assert "ENV PATH=/opt/transload/bin:$PATH" in "\n".join(LAST)


def test_base_images_are_pinned_by_version_and_can_be_by_digest() -> None:
    pinned = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", "\n".join(LINES), re.MULTILINE))
    assert set(pinned) == {"PYTHON_IMAGE", "UV_IMAGE"}
    assert all(re.search(r":\d+\.\d+\.\d+[\w.-]*$", image) for image in pinned.values())
    froms = [line.split()[1] for line in LINES if line.startswith("FROM ")]
    assert froms == ["${UV_IMAGE}", "${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]


def test_packages_are_the_locked_ones_with_their_hashes() -> None:
    build = STAGES[2]
    assert "--require-hashes" in build
    assert "--no-build" in build
    assert "requirements.lock" in build


def test_it_runs_as_nobody_special_and_as_process_one() -> None:
    user = one("USER")
    pod = (ROOT / "helm/transload/templates/_pod.tpl").read_text(encoding="utf-8")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number: Kubernetes cannot tell whether a name is root"
    assert user == ":".join(re.findall(r"runAs(?:User|Group): (\d+)", pod))
    # With a shell before it, SIGTERM would never arrive.
    assert json.loads(one("ENTRYPOINT")) == ["transload"]
    assert json.loads(one("CMD")) == ["run"]
    assert one("STOPSIGNAL") == "SIGTERM"


def test_the_one_place_that_is_written_to_is_the_charts() -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", one("ENV")))
    assert (environment["TMPDIR"], environment["TRANSLOAD_HOME"]) == ("/scratch", "/scratch/home")
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1", "a read-only root takes none"
