"""Checks of Python and of the packages that the server needs: installed, and new enough."""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator

from neurona_server.doctor.findings import Check, Finding, Mark

PACKAGE = "neurona"
MIN_PYTHON = (3, 11)
EXTRAS = ("", "serving")
"""The parts of the package whose requirements the server has; the runtime is checked apart."""

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_BOUND = re.compile(r"(>=|<)\s*([0-9][0-9.]*)")


def package_checks() -> list[tuple[str, Check]]:
    """Return the checks, with their subjects."""
    return [("Python", _check_python), ("packages", _check_packages)]


def _check_python() -> Iterator[Finding]:
    implementation, version = platform.python_implementation(), platform.python_version()
    text = f"{implementation} {version} on {platform.system()} {platform.machine()}"
    if sys.version_info < MIN_PYTHON:
        yield Finding("Python", Mark.FAULT, text, "install Python 3.11 or newer")
    elif sys.maxsize < 2**32:
        yield Finding("Python", Mark.FAULT, f"{text}, 32-bit", "install a 64-bit Python")
    else:
        yield Finding("Python", Mark.OK, text)


def _check_packages() -> Iterator[Finding]:
    try:
        version = importlib.metadata.version(PACKAGE)
        requirements = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", Mark.NOTE, f"{PACKAGE} runs from its sources, not installed")
        return
    yield Finding(PACKAGE, Mark.OK, version)
    installed, missing = [], []
    for name, bounds in _parse_requirements(requirements):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if is_within(version, bounds):
            installed.append(f"{name} {version}")
        else:
            text = f"{version} (expected {bounds})"
            yield Finding(name, Mark.FAULT, text, f"pip install '{name}{bounds}'")
    if installed:
        yield Finding("packages", Mark.OK, ", ".join(installed))
    if missing:
        advice = f"pip install '{PACKAGE}[server]', or '{PACKAGE}[serving]' and an ONNX Runtime"
        yield Finding("packages", Mark.FAULT, f"not installed: {', '.join(missing)}", advice)


def _parse_requirements(requirements: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the packages of EXTRAS and their bounds, from what the package's metadata have."""
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement.strip())
        if match is None or match[1] == PACKAGE:
            continue
        extra = _EXTRA.search(match[3] or "")
        if (extra[1] if extra else "") in EXTRAS:
            yield match[1], match[2].replace(" ", "")


def is_within(version: str, bounds: str) -> bool:
    """Return whether a version is within bounds like ">=1.76,<2"; other bounds are not checked."""
    number = _numbers(version)
    return all(
        number >= _numbers(bound) if operator == ">=" else number < _numbers(bound)
        for operator, bound in _BOUND.findall(bounds)
    )


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:  # 2.0 is 2
        numbers.pop()
    return tuple(numbers)
