"""Prints the contents of an image as a CycloneDX 1.6 document: its Python and Debian packages.

    python deploy/sbom.py > sbom.json

It lists the packages of the Python that runs it, and of dpkg where that is installed. Two runs over
the same packages print the same bytes: the serial number is a hash of the content, the time is
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

NAMESPACE = uuid.UUID("6f0b5c1e-6d1c-5f0e-9d53-0f5a3e4b7c11")  # random, for uuid5
DPKG_FORMAT = "${Package}\\t${Version}\\t${Architecture}\\t${db:Status-Abbrev}\\n"


def main() -> None:
    print(json.dumps(document(), indent=1, ensure_ascii=False))


def document() -> dict[str, Any]:
    """Returns the document by https://cyclonedx.org/docs/1.6/json/."""
    packages = sorted(python_packages() + debian_packages(), key=lambda one: one["bom-ref"])
    root = next((one for one in packages if one["bom-ref"].startswith("pkg:pypi/neurona@")), None)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    metadata: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    }
    if root:
        metadata["component"] = root | {"type": "application"}
    components = [one for one in packages if one is not root]
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
    """Returns every distribution that the running Python finds, without duplicates."""
    return list({one["bom-ref"]: one for one in map(_python_package, distributions())}.values())


def debian_packages() -> list[Component]:
    """Returns the packages that dpkg has installed; none on a machine without dpkg."""
    dpkg = shutil.which("dpkg-query")
    if dpkg is None:
        return []
    command = [dpkg, "--show", f"--showformat={DPKG_FORMAT}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    rows = [line.split("\t") for line in result.stdout.splitlines()]
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


def _python_package(distribution: Distribution) -> Component:
    metadata = distribution.metadata
    name, version = metadata["Name"], distribution.version
    normalized = name.lower().replace("_", "-").replace(".", "-")
    component = _component(name, version, f"pkg:pypi/{normalized}@{quote(version)}")
    # An SPDX expression where the package has one (PEP 639); the older field is free text.
    if expression := metadata.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    elif license_name := _first_line(metadata.get("License")):
        component["licenses"] = [{"license": {"name": license_name}}]
    return component


def _component(name: str, version: str, purl: str) -> Component:
    """Returns a component identified by a package URL (https://github.com/package-url/purl-spec)."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


if __name__ == "__main__":
    main()
