"""Types of options whose text has a form of its own, like HOST:PORT or NAME=DIR.

Each has a class method `parse`, which raises ValueError with a message that says what is
expected; models.repository.validation calls it.
"""

import re
from pathlib import Path
from typing import Self

from neurona_server.address import check_address
from neurona_server.models.repository.settings import VersionPolicy, parse_devices


class Addresses(str):
    """HOST:PORT, [IPV6]:PORT or unix:PATH, or several of them, separated by commas."""

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(",".join(check_address(address) for address in text.split(",")))


class WebAddress(str):
    """HOST:PORT or [IPV6]:PORT."""

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(check_address(text, unix=False))


class HostName(str):
    """The name of a host in lower case, or "*"."""

    @classmethod
    def parse(cls, text: str) -> Self:
        name = text.lower().rstrip(".")
        if name != "*" and not re.fullmatch("[a-z0-9_.-]{1,253}", name):
            raise ValueError("expected a name like metrics.example.com, without a port, or *")
        return cls(name)


class CollectorUrl(str):
    """http://HOST:PORT or https://HOST:PORT; no path, because OTLP over gRPC has none."""

    @classmethod
    def parse(cls, text: str) -> Self:
        scheme, _, address = text.rstrip("/").partition("://")
        if scheme not in ("http", "https"):
            raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
        return cls(f"{scheme}://{check_address(address, unix=False)}")


class VersionPolicyText(str):
    """A version policy as VersionPolicy.parse reads it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        VersionPolicy.parse(text)
        return cls(text)


class LogLevel(str):
    """A level of logging, in upper case."""

    @classmethod
    def parse(cls, text: str) -> Self:
        if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("expected debug, info, warning or error")
        return cls(text.upper())


class ProviderNames(tuple[str, ...]):
    """Names of ONNX Runtime's providers, in lower case; only ONNX Runtime knows which exist."""

    @classmethod
    def parse(cls, text: str) -> Self:
        names = [name.strip().lower() for name in text.split(",")]
        if not all(re.fullmatch("[a-z0-9_]+", name) for name in names):
            raise ValueError("expected names separated by commas, like cuda,cpu")
        return cls(dict.fromkeys(names))


class DeviceNames(str):
    """all, or numbers and UUIDs of CUDA devices, separated by commas; the driver has the list."""

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(parse_devices(text))


class NamedFolder(tuple[str, Path]):
    """NAME=DIR: the name of a model and its folder; models.repository checks the name."""

    @classmethod
    def parse(cls, text: str) -> Self:
        name, separator, folder = text.partition("=")
        if not (name and separator and folder):
            raise ValueError("expected NAME=DIR")
        return cls((name, Path(folder)))
