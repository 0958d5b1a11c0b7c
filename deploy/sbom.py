"""Writes what an image holds as a CycloneDX 1.6 document: Python's packages and Debian's.

    python deploy/sbom.py > sbom.json

Of the Python that runs it and of the machine's dpkg, if there is one. Two runs over the same
packages write the same bytes: the serial number comes from the content, the time from
SOURCE_DATE_EPOCH.
"""

import json
import os
import platform
import shutil
import subprocess
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]

NAMESPACE = uuid.UUID("6f0b5c1e-6d1c-5f0e-9d53-0f5a3e4b7c11")  # ours, for uuid5
DPKG_FORMAT = "${Package}\\t${Version}\\t${Architecture}\\t${db:Status-Abbrev}\\n"


def main() -> None:
    print(json.dumps(document(), indent=1, ensure_ascii=False))


def document() -> dict[str, Any]:
    """CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json/"""
    found = sorted(python_packages() + debian_packages(), key=lambda one: one["bom-ref"])
    root = next((one for one in found if one["bom-ref"].startswith("pkg:pypi/neurona@")), None)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    metadata: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    }
    if root:
        metadata["component"] = root | {"type": "application"}
    components = [one for one in found if one is not root]
    content = json.dumps([metadata, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, content)}",
        "version": 1,
        "metadata": metadata,
        "components": components,
    }


def python_packages() -> list[Component]:
    """Every distribution that the running Python finds, once."""
    return list({one["bom-ref"]: one for one in map(_of_python, distributions())}.values())


def debian_packages() -> list[Component]:
    """What dpkg has installed; nothing on a machine without it."""
    dpkg = shutil.which("dpkg-query")
    if dpkg is None:
        return []
    command = [dpkg, "--show", f"--showformat={DPKG_FORMAT}"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    release = platform.freedesktop_os_release()
    distribution = f"{release['ID']}-{release.get('VERSION_ID', '')}".rstrip("-")
    return [
        _component(
            name,
            version,
            f"pkg:deb/{release['ID']}/{quote(name)}@{quote(version)}"
            f"?arch={architecture}&distro={distribution}",
        )
        for name, version, architecture, state in rows
        if state.startswith("ii")
    ]


def _of_python(found: Distribution) -> Component:
    name, version = found.metadata["Name"], found.version
    normal = name.lower().replace("_", "-").replace(".", "-")
    component = _component(name, version, f"pkg:pypi/{normal}@{quote(version)}")
    # An expression where the package has one (PEP 639); the older field is free text.
    if expression := found.metadata.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    elif name_of_license := _first_line(found.metadata.get("License")):
        component["licenses"] = [{"license": {"name": name_of_license}}]
    return component


def _component(name: str, version: str, purl: str) -> Component:
    """A package URL (https://github.com/package-url/purl-spec) names it everywhere."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


if __name__ == "__main__":
    main()
