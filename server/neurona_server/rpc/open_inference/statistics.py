"""The method ModelStatistics, which reports a model's metrics."""

from neurona_protos import open_inference_pb2 as pb
from neurona_server.errors import NotFoundError
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.messages import (
    resolve_model,
    unary_method,
    unknown_model_error,
)
from neurona_server.rpc.security.access import Grant, Right, visible_models


class StatisticsService:
    """The method ModelStatistics."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "ModelStatistics": unary_method(
                Right.DESCRIBE, pb.ModelStatisticsRequest, self._statistics
            )
        }

    def _statistics(
        self, message: pb.ModelStatisticsRequest, grant: Grant
    ) -> pb.ModelStatisticsResponse:
        registry = visible_models(self._registry, grant)
        if message.version:
            models = [resolve_model(registry, message.name, message.version)]
        else:
            models = registry.models()
            if message.name:
                try:
                    registry.entry(message.name)
                except NotFoundError as error:
                    raise unknown_model_error(message.name, "", error) from None
                models = [model for model in models if model.name == message.name]
        return pb.ModelStatisticsResponse(model_stats=[model_statistics(model) for model in models])


def model_statistics(model: Model) -> pb.ModelStatistics:
    """Return the statistics of a version since it was first loaded, without its warm-up.

    compute_input is the joining of a batch and compute_output its splitting. Time in the transport
    is in `success` only.
    """
    counts = model.metrics.run_statistics.total()
    sizes = counts.sizes
    requests = sum([size.requests for size in sizes.values()])
    return pb.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=round(counts.last_run * 1000),
        inference_count=sum([rows * size.runs for rows, size in sizes.items()]),
        execution_count=sum([size.runs for size in sizes.values()]),
        inference_stats=pb.InferStatistics(
            success=_duration(*model.metrics.request_totals),
            fail=_duration(counts.failures, counts.failure_seconds),
            queue=_duration(*model.metrics.queue_totals),
            compute_input=_duration(requests, sum([s.request_join for s in sizes.values()])),
            compute_infer=_duration(requests, sum([s.request_run for s in sizes.values()])),
            compute_output=_duration(requests, sum([s.request_split for s in sizes.values()])),
            cache_hit=_duration(0, 0.0),
            cache_miss=_duration(0, 0.0),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(size.runs, size.join),
                compute_infer=_duration(size.runs, size.run),
                compute_output=_duration(size.runs, size.split),
            )
            for rows, size in sorted(sizes.items())
        ],
    )


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))
