"""Options for serving one model: the server's, overridden by those of the model's settings.

The file is alone since both `model` and the server's assembly need it, and not each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from neurona_server.batching.policy import BatchPolicy
from neurona_server.models.onnx.provider_options import merge_options
from neurona_server.models.onnx.runtime import COMPILING_PROVIDERS, RuntimeOptions
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.resources import available_cpus
from neurona_server.telemetry.trace import BatchTracerFactory

INLINE_MODES = {"auto": None, "always": True, "never": False}


@dataclass(frozen=True)
class ModelOptions:
    policy: BatchPolicy = field(default_factory=BatchPolicy)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    instances: int = 1
    """Sessions on each device."""
    tracer: BatchTracerFactory | None = None
    instances_by_gpu: Mapping[int, int] = field(default_factory=dict)
    """Sessions on GPUs that have another number of them, by the number of the GPU."""
    sequence_batching: str = "auto"
    """How sequences of different lengths share the runs of a recurrent model."""
    max_devices: int | None = None
    """The number of its devices that a model is loaded on at most; None: all."""


def options_for(settings: ModelSettings, options: ModelOptions) -> ModelOptions:
    """Return the server's options overridden by one model's settings.

    A model whose settings have a number of instances but not of threads gets at most as many
    threads as each of its instances has CPUs.
    """
    overrides: dict[str, Any] = {
        "max_rows": settings.max_batch_rows,
        "max_queue_rows": settings.max_queue_rows,
        "max_queue_bytes": settings.max_queue_bytes,
        "preferred_rows": settings.preferred_batch_rows or None,
        "queue_policies": settings.queue_policies,
        "preserve_order": settings.preserve_order or None,
        "max_run_seconds": settings.max_run_seconds,
    }
    if settings.max_delay_ms is not None:
        overrides["max_delay"] = settings.max_delay_ms / 1000
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if settings.latency_objective_ms is not None:
        overrides["latency_objective"] = settings.latency_objective_ms / 1000 or None
    if settings.inline is not None:
        overrides["inline"] = INLINE_MODES[settings.inline]
    policy, runtime = replace(options.policy, **overrides), options.runtime
    instances = settings.instances or options.instances
    if settings.threads is not None:
        gpu_threads = settings.threads or 1
        runtime = replace(runtime, threads=settings.threads, gpu_threads=gpu_threads)
    elif settings.instances is not None:
        max_threads = max(1, available_cpus() // instances)
        runtime = replace(runtime, threads=min(runtime.threads or max_threads, max_threads))
    if settings.provider_options:
        merged = merge_options(runtime.provider_options, settings.provider_options)
        runtime = replace(runtime, provider_options=merged)
    if settings.providers is not None:
        runtime = replace(runtime, providers=settings.providers, gpu_expected=True)
    if COMPILING_PROVIDERS & {*runtime.providers} and settings.batched is not False:
        runtime = replace(runtime, max_rows=policy.max_rows)
    if settings.devices is not None:
        runtime = replace(runtime, devices=settings.devices, gpu_expected=True)
    return replace(
        options,
        policy=policy,
        runtime=runtime,
        instances=instances,
        instances_by_gpu=settings.instances_by_gpu,
        sequence_batching=settings.sequence_batching or options.sequence_batching,
    )
