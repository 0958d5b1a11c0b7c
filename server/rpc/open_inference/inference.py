"""ModelInfer and ModelStreamInfer."""

from collections.abc import Callable
from functools import partial

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_server.batching.request import Request
from neurona_server.errors import InvalidError, ModelFailedError, NeuronaError
from neurona_server.metrics import Metrics
from neurona_server.models.model import Model
from neurona_server.models.registry import Registry
from neurona_server.rpc.call import Call, Methods, StreamCall, Streaming, Unary
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.immediate import parse
from neurona_server.rpc.open_inference.inputs import describe, read_inputs, size_of
from neurona_server.rpc.open_inference.memory import Memory
from neurona_server.rpc.open_inference.outputs import answer_with, read_outputs
from neurona_server.rpc.open_inference.stream import InferStream
from neurona_server.rpc.open_inference.terms import read_terms
from neurona_server.rpc.open_inference.which import resolve
from neurona_server.rpc.rights import Grant, Right
from neurona_server.rpc.seen import seen
from neurona_server.rpc.submission import Asked, Defer, Track, cancel, submit

TENSORS = 5  # field of ModelInferRequest

Deliver = Callable[[bytes | None, NeuronaError | None], None]


class Inference:
    def __init__(
        self, registry: Registry, metrics: Metrics, memory: Memory, limits: Limits
    ) -> None:
        self._limits = limits
        self._registry = registry
        self._metrics = metrics
        self._memory = memory

    def methods(self, path: str) -> Methods:
        return {
            path + "ModelInfer": Unary(self._infer, Right.PREDICT),
            path + "ModelStreamInfer": Streaming(self._stream, Right.PREDICT),
        }

    def begin(
        self,
        message: ModelInferRequest,
        deadline: float,
        deliver: Deliver,
        track: Track,
        defer: Defer,
        *,
        grant: Grant,
        streamed: bool = False,
    ) -> None:
        """Sends a request on its way; `deliver` gets the bytes of its ModelInferResponse or its
        error, exactly once."""
        registry = seen(self._registry, grant)
        which = partial(resolve, registry, message.model_name, message.model_version)

        def read(model: Model) -> Asked[bytes]:
            self._limits.check(message)
            terms = read_terms(message, deadline)
            wanted = read_outputs(message, model, self._memory)
            described = describe(message, model.signature)
            most_bytes = model.batcher.policy.max_queue_bytes
            return Asked(
                described,
                partial(read_inputs, message, described, self._memory, most_bytes),
                answer_with(model, wanted, message.id, streamed=streamed),
                terms.deadline,
                terms.priority,
                size_of(message),
                self._limits,
            )

        submit(self._metrics, which, read, deliver, track, defer)

    def _stream(self, call: StreamCall) -> InferStream:
        begin = partial(self.begin, streamed=True, grant=call.grant)
        return InferStream(begin, call, partial(self._limits.check_wire, tensors=TENSORS))

    def _infer(self, call: Call) -> None:
        try:
            self._limits.check_wire(call.request, tensors=TENSORS)
            message = parse(ModelInferRequest, call.request)
        except InvalidError as error:
            self._metrics.unresolved["invalid"].inc()
            call.fail(error)
            return

        def deliver(response: bytes | None, error: NeuronaError | None) -> None:
            if response is None:
                call.fail(error or ModelFailedError())
            else:
                call.reply(response)

        def track(request: Request) -> None:
            call.on_cancel(partial(cancel, request))

        self.begin(message, call.deadline, deliver, track, call.defer, grant=call.grant)
