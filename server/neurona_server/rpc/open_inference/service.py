"""All calls of inference.GRPCInferenceService, put together."""

from collections.abc import Callable

from neurona_server.models.lifecycle.reconciler import Control
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.rpc.call import Methods
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.inference import Inference
from neurona_server.rpc.open_inference.metadata import Description
from neurona_server.rpc.open_inference.repository import Repository
from neurona_server.rpc.open_inference.settings import Settings
from neurona_server.rpc.open_inference.shared_memory import SharedMemoryService
from neurona_server.rpc.open_inference.statistics import Statistics
from neurona_server.telemetry.metrics import Metrics

SERVICE = "inference.GRPCInferenceService"


class OpenInference:
    """`ready` says whether the server as a whole is.

    `versions` holds for models that do not say which of theirs are served.
    Without a `control`, callers cannot load and unload models, nor change how the server logs;
    with `shared_memory`, those on this machine may have it read and write their memory objects.
    """

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        ready: Callable[[], bool],
        *,
        control: Control | None = None,
        versions: VersionPolicy | None = None,
        shared_memory: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.memory = SharedMemoryService(enabled=shared_memory)
        self.repository = Repository(registry, control)
        self._rooms = (
            Description(registry, ready, versions or VersionPolicy(), shared_memory=shared_memory),
            Inference(registry, metrics, self.memory, limits or Limits()),
            Statistics(registry),
            self.repository,
            self.memory,
            Settings(registry, changeable=control is not None),
        )

    def methods(self) -> Methods:
        path = f"/{SERVICE}/"
        return {name: one for room in self._rooms for name, one in room.methods(path).items()}
