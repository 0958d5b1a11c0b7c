"""The page for people as one document, put together from the files in `page/`.

Its script and its style stand in it. A policy names both by their hashes (Content Security Policy
Level 3, W3C), so that a browser runs nothing else, whatever a model is called.
"""

import base64
import hashlib
from importlib import resources

STYLES = ("style.css",)
SCRIPTS = ("exposition.js", "window.js", "figures.js", "drawing.js", "table.js", "main.js")
"""In the order in which they stand in the document; they share one scope."""


def load() -> tuple[bytes, str]:
    """The document, and its Content-Security-Policy."""
    style, script = _join(STYLES), '"use strict";\n(() => {\n' + _join(SCRIPTS) + "\n})();\n"
    document = _read("page.html")
    for place, text in (("/*style*/", style), ("/*script*/", script)):
        before, after = document.split(place)  # each stands in it once
        document = before + text + after
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return document.encode(), policy


def _join(names: tuple[str, ...]) -> str:
    return "\n".join(map(_read, names))


def _read(name: str) -> str:
    return (resources.files("neurona_server.web") / "page" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
