"""The policies of docs/iam and what the pages say of permissions are the same."""

import json
import re
import subprocess
from pathlib import Path

from tests.docs.blocks import PAGES, ROOT, blocks_of
from tests.support.iam_jobs import JOBS
from tests.support.iam_policies import FOLDER, policy

PAGE = FOLDER / "index.md"
ACTION = re.compile(r"(?<!arn:aws:)\b(?:s3|sqs|kms|sts|cloudwatch|secretsmanager):[A-Z]\w+")
CONDITION_KEYS = {"s3:ResourceAccount"}
EVENTS = {"s3:ObjectCreated", "s3:TestEvent"}
"""Of notifications; they look like actions."""
NAMES = {path.stem for path in FOLDER.glob("*.json")}


def actions(name: str) -> set[str]:
    return {action for each in policy(name, {}) if each.allows for action in each.actions}


def test_every_policy_has_its_job_and_its_row_with_its_actions() -> None:
    rows = re.findall(
        r"^\| \[(.+)\.json\]\(\1\.json\) \|[^|]*\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {name for name, _ in rows} == NAMES == set(JOBS)
    assert {name: set(ACTION.findall(said)) for name, said in rows} == {name: actions(name) for name in NAMES}


def test_no_page_names_an_action_that_no_policy_has() -> None:
    known = {action for name in NAMES for action in actions(name)} | CONDITION_KEYS | EVENTS
    pages = [*PAGES, ROOT / "helm/transload/README.md"]
    named = {
        (page.name, action) for page in pages for action in ACTION.findall(page.read_text(encoding="utf-8"))
    }
    assert len(named) > 40
    assert {(page, action) for page, action in named if action not in known} == set()


def test_the_page_says_how_policies_are_filled_in(tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(PAGE) if block.language == "sh")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    subprocess.run(["/bin/sh", "-ec", block.text], cwd=tmp_path, check=True)
    text = (tmp_path / "worker-policy.json").read_text(encoding="utf-8")
    # What is left in capitals are S3's own names and words of IAM.
    assert re.findall(r"(?<![A-Za-z])[A-Z]{4,}(?:-[A-Z]+)*(?![A-Za-z])", text) == []
    resources = {
        arn
        for each in json.loads(text)["Statement"]
        for arn in ([each["Resource"]] if isinstance(each["Resource"], str) else each["Resource"])
    }
    assert resources == {
        "arn:aws:sqs:eu-central-1:123456789012:resources",
        "arn:aws:sqs:eu-central-1:123456789012:resources-dead",
        "arn:aws:s3:::fetched",
        "arn:aws:s3:::fetched/in/*",
        "arn:aws:s3:::my-bundles",
        "arn:aws:s3:::my-bundles/captures/*",
    }
