"""Which model a caller means."""

import re

from neurona_server.errors import NotFoundError, quoted
from neurona_server.models.model import Model
from neurona_server.models.registry import Registry

_NUMBER = re.compile(r"[0-9]{1,18}")


def resolve(registry: Registry, name: str, version: str) -> Model:
    """`version` is a number, one of the model's labels, or empty: the server's choice.

    Raises NotFoundError, in Triton's words with our own behind them.
    """
    try:
        if not _NUMBER.fullmatch(version):
            return registry.resolve(name, label=version)
        if not int(version):
            raise NotFoundError("versions are counted from 1")
        return registry.resolve(name, int(version))
    except NotFoundError as error:
        raise unknown(name, version, error) from None


def unknown(name: str, version: str, error: NotFoundError) -> NotFoundError:
    which = f" version {quoted(version)}" if version else ""
    return NotFoundError(f"Request for unknown model: {quoted(name)}{which} is not found: {error}")
