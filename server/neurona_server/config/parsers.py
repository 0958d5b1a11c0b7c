"""Types of options whose text has a form of its own, like HOST:PORT or NAME=DIR.

Each has a class method `parse`, which raises ValueError with a message that says what is
expected; models.repository.validation calls it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from neurona_server.address import check_address
from neurona_server.models.repository.settings import VersionPolicy, parse_devices


class Addresses(str):
    """HOST:PORT, [IPV6]:PORT or unix:PATH, or several of them, separated by commas."""

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(",".join(check_address(address) for address in text.split(",")))


OFF = "off"


class OptionalWebAddress(str):
    """HOST:PORT or [IPV6]:PORT, or "" for off."""

    @classmethod
    def parse(cls, text: str) -> Self:
        if text in ("", OFF):
            return cls("")
        try:
            return cls(check_address(text, unix=False))
        except ValueError as error:
            raise ValueError(f"{error}, or off") from None


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


class ProviderOptionTexts(tuple[tuple[str, str, str], ...]):
    """PROVIDER.KEY=VALUE, several separated by commas; models.onnx.provider_options checks them.

    A comma ends a value only where another PROVIDER.KEY= follows: some values are lists.
    """

    @classmethod
    def parse(cls, value: str | Mapping[str, object]) -> Self:
        """Parse the text, or the tables of a file: values by key by provider."""
        if isinstance(value, str):
            parts = [_PROVIDER_OPTION.fullmatch(part) for part in _OPTION_END.split(value)]
            options = [match.groups() if match else ("", "", "") for match in parts]
        else:
            options = [
                (provider, key, setting)
                for provider, table in value.items()
                for key, setting in (table.items() if isinstance(table, Mapping) else [("", "")])
            ]
        if not all(provider and key and text for provider, key, text in options):
            raise ValueError("expected PROVIDER.KEY=VALUE, like cuda.use_tf32=0,cuda.prefer_nhwc=1")
        return cls((provider.lower(), key, text) for provider, key, text in options)

    def by_provider(self) -> dict[str, dict[str, str]]:
        """Return the values by provider and key; the last one counts of those with equal keys."""
        tables: dict[str, dict[str, str]] = {}
        for provider, key, value in self:
            tables.setdefault(provider, {})[key] = value
        return tables


_PROVIDER_OPTION = re.compile(r"\s*([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)\s*=\s*(\S.*?)\s*", re.DOTALL)
_OPTION_END = re.compile(r",(?=\s*[A-Za-z0-9_]+\.[A-Za-z0-9_]+\s*=)")


class NamedFolder(tuple[str, Path]):
    """NAME=DIR: the name of a model and its folder; models.repository checks the name."""

    @classmethod
    def parse(cls, text: str) -> Self:
        name, separator, folder = text.partition("=")
        if not (name and separator and folder):
            raise ValueError("expected NAME=DIR")
        return cls((name, Path(folder)))
