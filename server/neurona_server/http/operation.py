"""What the description of the HTTP endpoints says of a route; `openapi` makes the document.

The file is alone because every group of routes describes its own with it.
"""

from dataclasses import dataclass
from typing import Any

Schema = Any
"""A msgspec type, the descriptor of a protobuf message, or a JSON schema as a dict."""


@dataclass(frozen=True)
class Operation:
    """The description of a route."""

    summary: str
    tag: str
    """The heading under which tools list it."""
    request: Schema = None
    """The JSON of a request's body; None: it has none."""
    response: Schema = None
    """The JSON of a response; None: it has none."""
    description: str = ""
    takes_binary: bool = False
    """Whether binary data may follow the JSON, in requests and responses."""
    content_type: str = "application/json"
    """That of a response."""
    error: Schema = None
    """The JSON of an error; None: a code and a message."""
    statuses: tuple[tuple[int, str], ...] = ()
    """Other statuses, which are no errors, and what they mean."""
