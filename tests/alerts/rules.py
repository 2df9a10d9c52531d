"""The alert rules as the tests of this folder look at them."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "helm" / "transload" / "files" / "rules.yaml"
CASES = sorted(Path(__file__).parent.glob("*.yaml"))
"""What promtool tests, a file for each alert."""

_DURATION = re.compile(r"\b(\d+)([smhd])\b")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def alerts() -> dict[str, dict[str, Any]]:
    """The rules by their names."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def hurried(folder: Path, factor: int) -> Path:
    """A copy of the rules in which all windows and waits are so many times shorter, but no threshold is another."""

    def shorter(found: re.Match[str]) -> str:
        return f"{int(found[1]) * _SECONDS[found[2]] * 1000 // factor}ms"

    content = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _DURATION.sub(shorter, rule["expr"])
            if "for" in rule:
                rule["for"] = _DURATION.sub(shorter, rule["for"])
    copy = folder / "rules.yaml"
    copy.write_text(yaml.safe_dump(content), encoding="utf-8")
    return copy
