"""How options are written. All raise ValueError that says what was expected."""

import re
from collections.abc import Callable
from pathlib import Path

from neurona_server.address import check
from neurona_server.models.repository.settings import VersionPolicy


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise ValueError(f"expected {least} to {most}")
        return value

    return parse


def milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e8:
        raise ValueError("expected 0 to 100000000")
    return value


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"expected {', '.join(words[:-1])} or {words[-1]}")
        return text

    return parse


def version_policy(text: str) -> str:
    VersionPolicy.parse(text)
    return text


def addresses(text: str) -> str:
    return ",".join(check(address) for address in text.split(","))


def web_address(text: str) -> str:
    return check(text, unix=False)


def level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("expected debug, info, warning or error")
    return text.upper()


def yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def seconds(least: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value <= 1e6:
            raise ValueError(f"expected {least} to 1000000")
        return value

    return parse


def provider_names(text: str) -> tuple[str, ...]:
    """Which of them exist, only ONNX Runtime can say."""
    names = [name.strip().lower() for name in text.split(",")]
    if not all(re.fullmatch("[a-z0-9_]+", name) for name in names):
        raise ValueError("expected names with commas between them, like cuda,cpu")
    return tuple(dict.fromkeys(names))


def collector(text: str) -> str:
    """A URL without a path: OTLP over gRPC has none."""
    scheme, _, place = text.rstrip("/").partition("://")
    if scheme not in ("http", "https"):
        raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
    return f"{scheme}://{check(place, unix=False)}"


def ratio(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("expected 0 to 1")
    return value


def named_folder(text: str) -> tuple[str, Path]:
    """Whether the name may be a model's, the repository says."""
    name, parted, folder = text.partition("=")
    if not (name and parted and folder):
        raise ValueError("expected NAME=DIR")
    return name, Path(folder)
