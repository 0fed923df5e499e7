"""Print the software bill of materials (CycloneDX 1.6) of a list of pinned packages.

Usage: sbom.py constraints-cuda12.txt

The same packages give the same bytes: there is no date, serial number, machine or index in it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def component(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill(pins: Path) -> dict[str, Any]:
    lines = pins.read_text().splitlines()
    packages = [component(*line.split("==")) for line in lines if not line.startswith("#")]
    found = re.search(r'VERSION.* = "(.+)"', (ROOT / "bento" / "version.py").read_text())
    assert found
    service = {
        "type": "application",
        "bom-ref": "vision-encoder",
        "name": "vision-encoder",
        "version": found[1],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": service},
        "components": packages,
        "dependencies": [
            {"ref": "vision-encoder", "dependsOn": [package["bom-ref"] for package in packages]},
            *({"ref": package["bom-ref"]} for package in packages),
        ],
    }


if __name__ == "__main__":
    print(json.dumps(bill(Path(sys.argv[1])), indent=2))
