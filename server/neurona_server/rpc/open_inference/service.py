"""The service inference.GRPCInferenceService, put together from its groups of methods.

The rest of the server sees nothing else of the protocol.
"""

from collections.abc import Callable

from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.rpc.call import Methods
from neurona_server.rpc.control_calls import ControlCalls
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.cuda_shared_memory import CudaSharedMemory
from neurona_server.rpc.open_inference.inference import InferenceService
from neurona_server.rpc.open_inference.metadata import MetadataService
from neurona_server.rpc.open_inference.regions import Regions
from neurona_server.rpc.open_inference.repository import RepositoryService
from neurona_server.rpc.open_inference.settings import SettingsService
from neurona_server.rpc.open_inference.shared_memory import SharedMemoryService
from neurona_server.rpc.open_inference.statistics import StatisticsService
from neurona_server.rpc.sessions import SessionStore
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.metrics import Metrics

SERVICE = "inference.GRPCInferenceService"


class OpenInference:
    """All methods of the Open Inference Protocol, with Triton's extensions."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        ready: Callable[[], bool],
        *,
        control: ControlCalls | None = None,
        versions: VersionPolicy | None = None,
        shared_memory: bool = False,
        typed_responses: bool = False,
        limits: Limits | None = None,
        workers: WorkerPool | None = None,
        sessions: SessionStore | None = None,
    ) -> None:
        """Make the service.

        Args:
            registry: The models that are served.
            metrics: Where requests are counted.
            ready: Whether the server as a whole is ready.
            control: Loads and unloads models for callers; without it they can do neither, nor
                change the log level.
            versions: Which versions are served of models that do not say so themselves.
            shared_memory: Whether callers on this machine may have the server read and write
                their memory objects, and memory of GPUs that they share.
            typed_responses: Whether requests with typed contents have responses with them too.
            limits: Limits of requests.
            workers: Threads for what takes too long for the transport's; by default new ones.
            sessions: Keeps the states of sequences; by default a new one.
        """
        limits, workers = limits or Limits(), workers or WorkerPool()
        sessions = SessionStore() if sessions is None else sessions  # an empty one is false
        regions = Regions(enabled=shared_memory)
        self.memory = SharedMemoryService(regions)
        cuda_memory = CudaSharedMemory(regions)
        if cuda_memory.workers is not None:
            cuda_memory.workers.images = workers.images
        self.repository = RepositoryService(registry, control, limits)
        versions = versions or VersionPolicy()
        self._services = (
            MetadataService(
                registry,
                ready,
                versions,
                sessions.limits,
                shared_memory=shared_memory,
                cuda_shared_memory=cuda_memory.is_available,
            ),
            InferenceService(
                registry,
                metrics,
                self.memory,
                limits,
                workers,
                cuda_memory.workers or workers,
                sessions,
                typed_responses=typed_responses,
            ),
            StatisticsService(registry),
            self.repository,
            self.memory,
            cuda_memory,
            SettingsService(registry, changeable=control is not None),
        )

    def methods(self) -> Methods:
        """Return all methods by path."""
        prefix = f"/{SERVICE}/"
        return {
            path: method
            for service in self._services
            for path, method in service.methods(prefix).items()
        }
