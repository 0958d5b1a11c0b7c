"""How options are written, where that takes more than a number. All raise ValueError."""

import re


def yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e8:
        raise ValueError("expected 0 to 100000000")
    return value


def provider_names(text: str) -> tuple[str, ...]:
    """Which of them exist, only ONNX Runtime can say."""
    names = [name.strip().lower() for name in text.split(",")]
    if not all(re.fullmatch("[a-z0-9_]+", name) for name in names):
        raise ValueError("expected names with commas between them, like cuda,cpu")
    return tuple(dict.fromkeys(names))
