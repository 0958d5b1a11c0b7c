"""The methods ModelInfer and ModelStreamInfer.

A request like an earlier one takes the fast path: it is submitted without being parsed. Its id,
which differs from request to request, is cut out of the message for that.
"""

from collections.abc import Callable
from functools import partial

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_server.batching.request import Inputs
from neurona_server.errors import InvalidArgumentError, NeuronaError
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.rpc.call import (
    ANY_MESSAGE_BYTES,
    Call,
    Methods,
    StreamCall,
    Streaming,
    Unary,
)
from neurona_server.rpc.fast_path import FastPath, InputSample
from neurona_server.rpc.flow_control import size_estimate_of
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.infer_message import (
    RAW_DATA,
    InferMessage,
    parse_infer_message,
)
from neurona_server.rpc.open_inference.inputs import (
    count_shared_bytes,
    describe_arrays,
    describe_inputs,
    explain_mismatch,
    find_input_slices,
    has_typed_contents,
    hidden_inputs,
    is_slow,
    read_inputs,
)
from neurona_server.rpc.open_inference.messages import (
    parse_datatype,
    parse_message,
    read_request_parameters,
    resolve_model,
)
from neurona_server.rpc.open_inference.outputs import InferResponseWriter, read_requested_outputs
from neurona_server.rpc.open_inference.regions import RegionUse
from neurona_server.rpc.open_inference.sequence_parameters import (
    StepParameters,
    missing_id_error,
    read_step_parameters,
)
from neurona_server.rpc.open_inference.sequences import SequenceKey, Sequences, SequenceStep
from neurona_server.rpc.open_inference.shared_memory import REGION, SharedMemoryService
from neurona_server.rpc.open_inference.streaming import InferStream, PendingResponse
from neurona_server.rpc.security.access import Grant, Right, visible_models
from neurona_server.rpc.sessions import SessionStore
from neurona_server.rpc.submission import (
    MAX_RETRIES,
    AcceptedRequest,
    ParsedRequest,
    Responder,
    ResponseWriter,
    submit,
)
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.telemetry.metrics import Metrics

_LENGTH_DELIMITED = 2  # protobuf's wire type of strings
_ID_TAG = ModelInferRequest.DESCRIPTOR.fields_by_name["id"].number << 3 | _LENGTH_DELIMITED
_TAGS_BEFORE_ID = [
    ModelInferRequest.DESCRIPTOR.fields_by_name[name].number << 3 | _LENGTH_DELIMITED
    for name in ("model_name", "model_version")
]

MAX_BYTES_WITH_ID = 256 << 10
"""Bytes of a message up to which its id is cut out, which copies the message. Larger ones are
parsed without their data, which takes less time."""


class InferenceService:
    """The methods that run models."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        memory: SharedMemoryService,
        limits: Limits,
        workers: WorkerPool,
        memory_workers: WorkerPool,
        sessions: SessionStore,
        *,
        typed_responses: bool,
    ) -> None:
        self._typed_responses = typed_responses
        self._limits = limits
        self._workers = workers
        self._memory_workers = memory_workers  # for requests with tensors in shared memory
        # Two, because responses in a stream differ from those of ModelInfer.
        self._unary_fast_path, self._stream_fast_path = [
            FastPath(RAW_DATA, partial(resolve_model, registry), workers) for _ in range(2)
        ]
        self._registry = registry
        self._metrics = metrics
        self._memory = memory
        self._sequences = Sequences(sessions)

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "ModelInfer": Unary(
                self._infer,
                Right.PREDICT,
                ANY_MESSAGE_BYTES,
                self._registry.longest_objective,
            ),
            prefix + "ModelStreamInfer": Streaming(
                self._stream_infer, Right.PREDICT, ANY_MESSAGE_BYTES
            ),
        }

    def submit_message(self, message: bytes, responder: Responder, grant: Grant) -> None:
        """Submit a serialized ModelInferRequest.

        The responder gets the bytes of its ModelInferResponse or its error, exactly once.
        """
        fast_path = self._unary_fast_path
        again = partial(self.submit_message, message, responder, grant)
        if grant.models is None and _submit_fast(fast_path, message, responder, again) is not None:
            return
        try:
            parsed = parse_infer_message(message, self._limits)
        except InvalidArgumentError as error:
            self._metrics.unresolved["invalid"].inc()
            responder.fail(error)
            return
        accepted = self._submit_request(parsed, responder, grant)
        _remember(fast_path, parsed, accepted)

    def submit_streamed(self, pending: PendingResponse, grant: Grant) -> int:
        """Submit a request of a stream and return the expected size of its response in bytes.

        Raises:
            InvalidArgumentError: The message is not a ModelInferRequest.
        """
        message = pending.message
        if grant.models is None:
            again = partial(self.submit_streamed, pending, grant)
            expected = _submit_fast(self._stream_fast_path, message, pending, again)
            if expected is not None:
                return expected
        parsed = parse_infer_message(message, self._limits)
        pending.release_message(parsed.request.id)
        accepted = self._submit_request(parsed, pending, grant, streamed=True)
        _remember(self._stream_fast_path, parsed, accepted)
        return accepted.expected_bytes if accepted is not None else 0

    def _submit_request(
        self,
        parsed: InferMessage,
        responder: Responder,
        grant: Grant,
        *,
        streamed: bool = False,
    ) -> AcceptedRequest | None:
        """Submit a request, or let it wait for its turn in its sequence."""
        message = parsed.request
        if not message.parameters:  # most have none
            return self._submit_parsed(parsed, responder, grant, streamed=streamed)
        try:
            parameters = read_step_parameters(message)
            if parameters is not None:
                return self._submit_step(parsed, parameters, responder, grant, streamed=streamed)
        except NeuronaError as error:
            self._metrics.unresolved[error.outcome].inc()
            self._metrics.record_rejection(error)
            responder.fail(error)
            return None
        return self._submit_parsed(parsed, responder, grant, streamed=streamed)

    def _submit_step(
        self,
        parsed: InferMessage,
        parameters: StepParameters,
        responder: Responder,
        grant: Grant,
        *,
        streamed: bool,
    ) -> AcceptedRequest | None:
        """Submit a step of a sequence, now or in its turn. Raises NeuronaError."""
        message = parsed.request
        registry = visible_models(self._registry, grant)
        name, version = message.model_name, message.model_version
        grant.check_model(name, (name,))  # a sequence goes on with a model that was removed

        def run(step: SequenceStep) -> AcceptedRequest | None:
            return self._submit_parsed(parsed, step, grant, step, streamed=streamed)

        return self._sequences.add(
            SequenceKey(grant.name, name, version, parameters.sequence_id),
            parameters,
            responder,
            partial(resolve_model, registry, name, version),
            run,
        )

    def _submit_parsed(
        self,
        parsed: InferMessage,
        responder: Responder,
        grant: Grant,
        step: SequenceStep | None = None,
        *,
        streamed: bool,
    ) -> AcceptedRequest | None:
        message = parsed.request
        use = None
        if any(REGION in one.parameters for one in message.inputs) or any(
            REGION in one.parameters for one in message.outputs
        ):
            responder = use = RegionUse(responder, self._memory.regions)
        registry = visible_models(self._registry, grant)
        resolve: Callable[[], Model] = partial(
            resolve_model, registry, message.model_name, message.model_version
        )
        if step is not None:  # a sequence stays on its version
            resolve = step.resolve

        def read(model: Model) -> ParsedRequest:
            self._limits.check(message)
            parameters = read_request_parameters(
                message, responder.deadline, model.batcher.policy.queue_policies
            )
            outputs = read_requested_outputs(message, model, self._memory, grant.name)
            sent = described = describe_inputs(message, model)
            server_inputs: Inputs = {}
            if step is not None:
                server_inputs = step.session.step_inputs(sent, step.parameters)
                described = {**sent, **describe_arrays(model, server_inputs)}
            elif hidden_inputs(model):
                raise missing_id_error(model.name)
            slices = find_input_slices(message, self._memory, grant.name) if use else {}
            if use:
                use.hold([*slices.values(), *[output.region_slice for output in outputs]])
            max_bytes = model.batcher.policy.max_queue_bytes
            return ParsedRequest(
                described,
                partial(
                    read_inputs,
                    parsed,
                    sent,
                    slices,
                    max_bytes,
                    self._limits,
                    server_inputs,
                ),
                InferResponseWriter(
                    model.name,
                    str(model.version),
                    model.has_batch_axis,
                    outputs,
                    message.id,
                    streamed,
                    size_estimate_of(model),
                    self._typed_responses and has_typed_contents(message),
                ),
                parameters.deadline,
                parameters.priority,
                parsed.size + count_shared_bytes(message),
                self._limits,
                partial(is_slow, parsed, sent, slices, self._limits),
                partial(explain_mismatch, model, sent),
                parameters.queue_timeout,
                writes_to_device=use is not None and any(one.is_on_device for one in outputs),
                session=None if step is None else step.session,
            )

        workers = self._memory_workers if use else self._workers
        retries = MAX_RETRIES if step is None else 0
        return submit(self._metrics, resolve, read, responder, workers, retries)

    def _infer(self, call: Call) -> None:
        self.submit_message(call.request, call, call.grant)

    def _stream_infer(self, call: StreamCall) -> InferStream:
        submit_streamed = partial(self.submit_streamed, grant=call.grant)
        return InferStream(submit_streamed, call, self._metrics.open_streams)


def split_request_id(message: bytes) -> tuple[str, bytes]:
    """Return the id of a serialized ModelInferRequest, and the message without it.

    The id is found where all known clients write it: behind the model's name and version. An id
    elsewhere in the message stays there, and "" is returned.
    """
    position, end = 0, len(message)
    while position + 1 < end:
        tag, length = message[position], message[position + 1]
        stop = position + 2 + length
        if length > 0x7F or stop > end:
            break
        if tag == _ID_TAG:
            try:
                request_id = message[position + 2 : stop].decode()
            except UnicodeDecodeError:  # an invalid message: parsing it says so
                break
            return request_id, message[:position] + message[stop:]
        if tag not in _TAGS_BEFORE_ID:
            break
        position = stop
    return "", message


def _submit_fast(
    fast_path: FastPath, message: bytes, responder: Responder, again: Callable[[], object]
) -> int | None:
    """Submit a message as `FastPath.send` does, whatever its id."""
    if len(message) > MAX_BYTES_WITH_ID:
        return None
    request_id, rest = split_request_id(message)
    adapt = partial(_with_request_id, request_id) if request_id else None
    return fast_path.send(rest, responder, again, adapt=adapt)


def _with_request_id(request_id: str, answer: ResponseWriter) -> ResponseWriter:
    assert isinstance(answer, InferResponseWriter)  # noqa: S101  for the type checker
    # One that has an id has it from a later part of the message, and the last one counts.
    return answer if answer.request_id else answer._replace(request_id=request_id)


def _remember(fast_path: FastPath, parsed: InferMessage, accepted: AcceptedRequest | None) -> None:
    """Let messages like this one take the fast path, if it was accepted."""
    request, message = parsed.request, parsed.message
    if accepted is None or len(message) > MAX_BYTES_WITH_ID or _needs_parsing(request):
        return
    request_id, rest = split_request_id(message)
    if request_id:
        request = parse_message(ModelInferRequest, rest)
        assert isinstance(accepted.response_writer, InferResponseWriter)  # noqa: S101  for the type checker
        accepted = accepted._replace(
            response_writer=accepted.response_writer._replace(request_id=request.id)
        )
    model = (request.model_name, request.model_version)
    fast_path.remember(rest, model, _input_samples(request), accepted)


def _needs_parsing(message: ModelInferRequest) -> bool:
    """Return whether a request cannot take the fast path.

    Its parameters may set a deadline, or locate its tensors in shared memory.
    """
    return bool(
        message.parameters
        or len(message.raw_input_contents) != len(message.inputs)
        or any(tensor.parameters for tensor in message.inputs)
        or any(output.parameters for output in message.outputs)
    )


def _input_samples(message: ModelInferRequest) -> list[InputSample]:
    return [
        InputSample(tensor.name, parse_datatype(tensor.datatype, tensor.name), tuple(tensor.shape))
        for tensor in message.inputs
    ]
