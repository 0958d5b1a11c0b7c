"""Rights, the grants that give them to callers, and the models that a grant allows."""

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from neurona_server.errors import NotFoundError, PermissionDeniedError, quoted
from neurona_server.models.lifecycle.registry import ModelEntry, Registry
from neurona_server.models.model import Model


class Right(Enum):
    """A right, which a method may require of its callers."""

    PREDICT = "predict"  # predictions of models
    DESCRIBE = "describe"  # which models are served, their descriptions and statistics
    CONTROL = "control"  # changes of the server: loading and unloading models, settings


@dataclass(frozen=True)
class Grant:
    """The rights of one token, or of every caller if the server has no tokens."""

    name: str
    rights: frozenset[Right]
    models: tuple[str, ...] | None = None
    """Names, or patterns like "team-*", of the models that the rights are for; None: all."""

    def check_right(self, right: Right) -> None:
        """Check that the caller may call a method.

        Raises:
            PermissionDeniedError: The grant does not have the right.
        """
        if right not in self.rights:
            granted = ", ".join(each.value for each in Right if each in self.rights)
            raise PermissionDeniedError(
                f"the token {self.name!r} has no right to {right.value}; it may {granted}"
            )

    def allows_model(self, model: str) -> bool:
        """Return whether the rights are for this model, which need not exist."""
        return self.models is None or any(fnmatchcase(model, each) for each in self.models)

    def check_model(self, model: str, names: Container[str]) -> None:
        """Check that the rights are for a model, and that it is one of `names`.

        Raises:
            PermissionDeniedError: The grant does not allow the model.
            NotFoundError: There is no such model; the registry's own error would list models that
                the grant does not allow.
        """
        if self.models is None:
            return
        if not self.allows_model(model):
            raise PermissionDeniedError(
                f"the token {self.name!r} has no right to model {quoted(model)}"
            )
        if model not in names:
            raise NotFoundError(f"there is no model {quoted(model)}")


UNRESTRICTED = Grant("", frozenset(Right))
"""The grant of every caller of a server without tokens."""


def visible_models(registry: Registry, grant: Grant) -> Registry:
    """Return the registry with only the models that a grant allows."""
    return registry if grant.models is None else FilteredRegistry(registry, grant)


class FilteredRegistry(Registry):
    """A registry with only the models that a grant allows.

    `entry` and `resolve` raise PermissionDeniedError for the others.
    """

    def __init__(self, registry: Registry, grant: Grant) -> None:
        super().__init__()
        self._registry = registry
        self._grant = grant

    def names(self) -> list[str]:
        return [name for name in self._registry.names() if self._grant.allows_model(name)]

    def models(self) -> list[Model]:
        return [model for model in self._registry.models() if self._grant.allows_model(model.name)]

    def entry(self, name: str) -> ModelEntry:
        self._grant.check_model(name, self._registry.names())
        return self._registry.entry(name)
