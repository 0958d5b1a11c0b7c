"""How the server serves a model, and what the model's own settings change of that."""

from dataclasses import dataclass, field, replace

from neurona_server.batching.policy import BatchPolicy
from neurona_server.models.onnx.session import RuntimeOptions
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.resources import available_cpus
from neurona_server.telemetry.trace import BatchTracerFactory

INLINE_MODES = {"auto": None, "always": True, "never": False}


@dataclass(frozen=True)
class ModelOptions:
    policy: BatchPolicy = field(default_factory=BatchPolicy)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    instances: int = 1
    tracer: BatchTracerFactory | None = None


def options_for(settings: ModelSettings, options: ModelOptions) -> ModelOptions:
    """The server's options with what one model's settings put in their place.

    A model that says how many instances it wants and not how many threads gets no more threads
    than its instances have CPUs.
    """
    policy, runtime = options.policy, options.runtime
    if settings.max_batch_rows is not None:
        policy = replace(policy, max_rows=settings.max_batch_rows)
    if settings.max_queue_rows is not None:
        policy = replace(policy, max_queue_rows=settings.max_queue_rows)
    if settings.max_queue_bytes is not None:
        policy = replace(policy, max_queue_bytes=settings.max_queue_bytes)
    if settings.max_delay_ms is not None:
        policy = replace(policy, max_delay=settings.max_delay_ms / 1000)
    if settings.latency_objective_ms is not None:
        objective = settings.latency_objective_ms / 1000 or None
        policy = replace(policy, latency_objective=objective)
    if settings.inline is not None:
        policy = replace(policy, inline=INLINE_MODES[settings.inline])
    instances = settings.instances or options.instances
    if settings.threads is not None:
        runtime = replace(runtime, threads=settings.threads)
    elif settings.instances is not None:
        most = max(1, available_cpus() // instances)
        runtime = replace(runtime, threads=min(runtime.threads or most, most))
    if settings.providers is not None:
        runtime = replace(runtime, providers=settings.providers, gpu_expected=True)
    return ModelOptions(policy, runtime, instances, options.tracer)
