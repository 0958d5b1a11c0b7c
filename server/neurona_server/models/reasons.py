"""Why a model cannot be loaded, in words for a caller."""

import os
import re
from pathlib import Path

_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^Load model from .+? failed: ?"),
    re.compile(r"^\S+\.(?:cc|h):\d+ .*?\)(?: const)? (?=[A-Z])"),
)
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[^\s\"'/\\]*[/\\])+(?=[^\s\"'/\\])")


def reason_of(error: Exception, path: Path) -> str:
    """What ONNX Runtime says, for a caller: without its own source lines, and without paths, so
    that who asks what is served learns no folder of the server. `path` is the model's."""
    text = str(error).strip().partition("\n")[0]
    for noise in _NOISE:
        text = noise.sub("", text)
    # By itself, for it may hold spaces: elsewhere these end a path.
    for folder in {path.parent, path.parent.absolute(), path.parent.resolve()} - {Path()}:
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "…/")
    return _PATH.sub("…/", text)[:300]
