"""The software bill of materials: `python -m tests.supply.sbom` (`make sbom`) writes dist/transload-VERSION.cdx.json.

CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/) for a worker with all extras. cyclonedx-py describes the packages that are
installed; what is for development is taken out, hashes come from the lock and licences from licences.py. The same lock gives the same bytes.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tests.supply.licences import licence_of
from tests.supply.packages import Pin, brought_by, locked
from tests.support.services import ROOT, NotAvailable
from tests.support.supply import Supply

JUDGE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(str(JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()) or "") or None)
"""


class SbomError(Exception):
    """cyclonedx-py failed, or its schema refuses the result; the message is its own."""


def bill(tools: Supply) -> dict[str, Any]:
    """The document. Raises `SbomError`, and `LookupError` where something else is installed than was locked."""
    with tempfile.TemporaryDirectory(prefix="transload-sbom-") as folder:
        file = Path(folder) / "sbom.json"
        how = ("--output-reproducible", "--no-validate", "--spec-version", "1.6", "--of", "JSON", "-o", file)
        done = tools.run(
            "cyclonedx-py", "environment", *how, "--pyproject", ROOT / "pyproject.toml", sys.executable
        )
        if done.returncode:
            raise SbomError(done.stderr.strip())
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    lock = locked()
    return _of_a_worker(document, {name: lock[name] for name in brought_by()})


def refusal(tools: Supply, document: Mapping[str, Any]) -> str:
    """What CycloneDX's own schema has against the document; empty for nothing."""
    done = tools.run("python", "-c", JUDGE, given=json.dumps(document))
    return done.stderr.strip()


def _of_a_worker(document: dict[str, Any], pins: Mapping[str, Pin]) -> dict[str, Any]:
    components = {}
    for component in document["components"]:
        name = canonicalize_name(component["name"])
        if name in pins:
            components[component["bom-ref"]] = _completed(component, pins[name])
    if len(components) != len(pins):
        raise SbomError(f"cyclonedx-py lists {len(components)} of {len(pins)} packages")
    root = document["metadata"]["component"]["bom-ref"]
    kept = {root, *components}
    document["components"] = list(components.values())
    document["dependencies"] = [
        {**each, "dependsOn": [ref for ref in each.get("dependsOn", []) if ref in kept]}
        for each in document["dependencies"]
        if each["ref"] in kept
    ]
    return document


def _completed(component: dict[str, Any], pin: Pin) -> dict[str, Any]:
    component.pop("evidence", None)
    component["licenses"] = [{"expression": licence_of(pin.name), "acknowledgement": "declared"}]
    files = {
        "type": "distribution",
        "url": component["purl"],
        "comment": "one hash for each file of this release",
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in pin.hashes],
    }
    component["externalReferences"] = [*component.get("externalReferences", []), files]
    return component


def main() -> None:
    """Write it, once the schema has nothing against it."""
    tools = Supply()
    try:
        tools.start()
    except NotAvailable as exc:
        sys.exit(f"cyclonedx-py is not available: {exc}\nget it with: {exc.command}")
    document = bill(tools)
    if refused := refusal(tools, document):
        sys.exit(refused)
    file = ROOT / "dist" / f"transload-{document['metadata']['component']['version']}.cdx.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"{file}: {len(document['components'])} packages")


if __name__ == "__main__":
    main()
