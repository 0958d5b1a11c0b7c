"""ModelInfer and ModelStreamInfer."""

from collections.abc import Callable
from functools import partial

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_server.errors import InvalidArgumentError
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.rpc.call import Call, Methods, StreamCall, Streaming, Unary
from neurona_server.rpc.fast_path import FastPath, InputSample
from neurona_server.rpc.flow_control import sizes_of
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.open_inference.inputs import describe, read_inputs, size_of
from neurona_server.rpc.open_inference.messages import number_of, parse, read_terms, resolve
from neurona_server.rpc.open_inference.outputs import InferAnswer, read_outputs
from neurona_server.rpc.open_inference.shared_memory import SharedMemoryService
from neurona_server.rpc.open_inference.streaming import InferStream, PendingResponse
from neurona_server.rpc.security.access import Grant, Right, seen
from neurona_server.rpc.submission import (
    AcceptedRequest,
    ParsedRequest,
    Responder,
    ResponseWriter,
    submit,
)
from neurona_server.telemetry.metrics import Metrics

_TEXT = 2  # the wire type
_ID = ModelInferRequest.DESCRIPTOR.fields_by_name["id"].number << 3 | _TEXT
_BEFORE = [
    ModelInferRequest.DESCRIPTOR.fields_by_name[name].number << 3 | _TEXT
    for name in ("model_name", "model_version")
]


def without_id(message: bytes) -> tuple[str, bytes]:
    """The id of a ModelInferRequest and the message without it, where the id stands as everybody
    writes it, behind what says the model; else "" and all of the message.

    Whoever reads the rest sees by its own id whether another one stands elsewhere.
    """
    position, end = 0, len(message)
    while position + 1 < end:
        tag, length = message[position], message[position + 1]
        stop = position + 2 + length
        if length > 0x7F or stop > end:
            break
        if tag == _ID:
            try:
                name = message[position + 2 : stop].decode()
            except UnicodeDecodeError:  # no request: its reader says so
                break
            return name, message[:position] + message[stop:]
        if tag not in _BEFORE:
            break
        position = stop
    return "", message


TENSORS = ModelInferRequest.INPUTS_FIELD_NUMBER
_RAW = (ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER,)


class Inference:
    def __init__(
        self, registry: Registry, metrics: Metrics, memory: SharedMemoryService, limits: Limits
    ) -> None:
        self._limits = limits
        # Answers in a stream are other ones.
        self._repeats, self._streamed = [
            FastPath(ModelInferRequest.FromString, _RAW, partial(resolve, registry))
            for _ in range(2)
        ]
        self._registry = registry
        self._metrics = metrics
        self._memory = memory

    def methods(self, path: str) -> Methods:
        return {
            path + "ModelInfer": Unary(self._infer, Right.PREDICT),
            path + "ModelStreamInfer": Streaming(self._stream, Right.PREDICT),
        }

    def begin(self, message: bytes, receiver: Responder, grant: Grant) -> None:
        """Sends a request on its way; the receiver gets the bytes of its ModelInferResponse or
        its error, exactly once."""
        again = partial(self.begin, message, receiver, grant)
        if grant.models is None and _send(self._repeats, message, receiver, again) is not None:
            return
        try:
            self._limits.check_wire(message, tensors=TENSORS)
            parsed = parse(ModelInferRequest, message)
        except InvalidArgumentError as error:
            self._metrics.unresolved["invalid"].inc()
            receiver.fail(error)
            return
        sent = self.begin_parsed(parsed, receiver, grant)
        _learn(self._repeats, message, parsed, sent)

    def begin_streamed(self, turn: PendingResponse, grant: Grant) -> int:
        """The same for a stream; how many bytes the answer will have, as far as one can tell.

        Raises InvalidArgumentError for what is no request.
        """
        message = turn.message
        if grant.models is None:
            again = partial(self.begin_streamed, turn, grant)
            expected = _send(self._streamed, message, turn, again)
            if expected is not None:
                return expected
        self._limits.check_wire(message, tensors=TENSORS)
        parsed = parse(ModelInferRequest, message)
        turn.read(parsed.id)
        sent = self.begin_parsed(parsed, turn, grant, streamed=True)
        _learn(self._streamed, message, parsed, sent)
        return sent.expected if sent is not None else 0

    def begin_parsed(
        self,
        message: ModelInferRequest,
        receiver: Responder,
        grant: Grant,
        *,
        streamed: bool = False,
    ) -> AcceptedRequest | None:
        registry = seen(self._registry, grant)
        which = partial(resolve, registry, message.model_name, message.model_version)

        def read(model: Model) -> ParsedRequest:
            self._limits.check(message)
            terms = read_terms(message, receiver.deadline)
            wanted = read_outputs(message, model, self._memory)
            described = describe(message, model.signature)
            most_bytes = model.batcher.policy.max_queue_bytes
            return ParsedRequest(
                described,
                partial(read_inputs, message, described, self._memory, most_bytes),
                InferAnswer(
                    model.name,
                    str(model.version),
                    model.signature.batched,
                    wanted,
                    message.id,
                    streamed,
                    sizes_of(model),
                ),
                terms.deadline,
                terms.priority,
                size_of(message),
                self._limits,
            )

        return submit(self._metrics, which, read, receiver)

    def _stream(self, call: StreamCall) -> InferStream:
        begin = partial(self.begin_streamed, grant=call.grant)
        return InferStream(begin, call, self._metrics.open_streams)

    def _infer(self, call: Call) -> None:
        self.begin(call.request, call, call.grant)


def _send(
    repeats: FastPath, message: bytes, receiver: Responder, again: Callable[[], object]
) -> int | None:
    """As `Repeats.send`, for any id."""
    name, rest = without_id(message)
    return repeats.send(rest, receiver, again, adapt=partial(_named, name) if name else None)


def _named(name: str, answer: ResponseWriter) -> ResponseWriter:
    assert isinstance(answer, InferAnswer)  # noqa: S101  for the type checker
    # One that has an id has it from elsewhere in the message, where the last one counts.
    return answer if answer.request_id else answer._replace(request_id=name)


def _learn(
    repeats: FastPath, message: bytes, parsed: ModelInferRequest, sent: AcceptedRequest | None
) -> None:
    if sent is None or _is_special(parsed):
        return
    name, rest = without_id(message)
    if name:
        parsed = parse(ModelInferRequest, rest)
        assert isinstance(sent.answer, InferAnswer)  # noqa: S101  for the type checker
        sent = sent._replace(answer=sent.answer._replace(request_id=parsed.id))
    which = (parsed.model_name, parsed.model_version)
    repeats.learn(rest, parsed, which, _samples(parsed), sent)


def _is_special(message: ModelInferRequest) -> bool:
    """Whether it must be read each time: parameters may say how long it may take, or where in
    shared memory its tensors are."""
    return bool(
        message.parameters
        or len(message.raw_input_contents) != len(message.inputs)
        or any(tensor.parameters for tensor in message.inputs)
        or any(output.parameters for output in message.outputs)
    )


def _samples(message: ModelInferRequest) -> list[InputSample]:
    return [
        InputSample(tensor.name, number_of(tensor.datatype, tensor.name), tuple(tensor.shape), data)
        for tensor, data in zip(message.inputs, message.raw_input_contents, strict=True)
    ]
