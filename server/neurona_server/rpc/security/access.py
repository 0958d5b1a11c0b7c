"""The registry as a caller sees it: without the models that its token does not hold for."""

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from neurona_server.errors import NotFoundError, PermissionDeniedError, quoted
from neurona_server.models.lifecycle.registry import ModelEntry, Registry
from neurona_server.models.model import Model


class Right(Enum):
    PREDICT = "predict"  # answers of models
    DESCRIBE = "describe"  # what is served, and how it fares
    CONTROL = "control"  # what changes the server: loading and unloading models, settings


@dataclass(frozen=True)
class Grant:
    """The rights of one token, or of everybody where there are none."""

    name: str
    rights: frozenset[Right]
    models: tuple[str, ...] | None = None
    """Names, or patterns as in "team-*", of the models they hold for; None: all."""

    def check_right(self, right: Right) -> None:
        """Raises PermissionDeniedError."""
        if right not in self.rights:
            may = ", ".join(each.value for each in Right if each in self.rights)
            raise PermissionDeniedError(
                f"the token {self.name!r} has no right to {right.value}; it may {may}"
            )

    def allows_model(self, model: str) -> bool:
        return self.models is None or any(fnmatchcase(model, each) for each in self.models)

    def check_model(self, model: str, known: Container[str]) -> None:
        """Raises PermissionDeniedError, and NotFoundError for a name that is not `known`, since the
        registry's own error would list models that the token does not see."""
        if self.models is None:
            return
        if not self.allows_model(model):
            raise PermissionDeniedError(
                f"the token {self.name!r} has no right to model {quoted(model)}"
            )
        if model not in known:
            raise NotFoundError(f"there is no model {quoted(model)}")


UNRESTRICTED = Grant("", frozenset(Right))


def visible_models(registry: Registry, grant: Grant) -> Registry:
    return registry if grant.models is None else FilteredRegistry(registry, grant)


class FilteredRegistry(Registry):
    """`entry` and `resolve` raise PermissionDeniedError for a model that is not seen."""

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
