"""The registry as a caller sees it: without the models that its token does not hold for."""

from neurona_server.models.model import Model
from neurona_server.models.registry import Entry, Registry
from neurona_server.rpc.rights import Grant


def seen(registry: Registry, grant: Grant) -> Registry:
    return registry if grant.models is None else _Seen(registry, grant)


class _Seen(Registry):
    """`entry` and `resolve` raise ForbiddenError for a model that is not seen."""

    def __init__(self, registry: Registry, grant: Grant) -> None:
        super().__init__()
        self._registry = registry
        self._grant = grant

    def names(self) -> list[str]:
        return [name for name in self._registry.names() if self._grant.sees(name)]

    def models(self) -> list[Model]:
        return [model for model in self._registry.models() if self._grant.sees(model.name)]

    def entry(self, name: str) -> Entry:
        self._grant.check_model(name, self._registry.names())
        return self._registry.entry(name)
