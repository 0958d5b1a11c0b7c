"""PredictStream: many requests in a message, and responses as soon as they are ready."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from prometheus_client import Gauge

from neurona_protos.prediction_pb2 import Error, PredictStreamResponse, StreamedResponse
from neurona_protos.wire_format import header, length_delimited, varint
from neurona_server.errors import NeuronaError, response_too_large
from neurona_server.rpc.call import RequestIdentity, StreamCall
from neurona_server.rpc.fast_path import FastPath, MessageTemplate
from neurona_server.rpc.flow_control import StreamWindow
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.status import status_of
from neurona_server.rpc.submission import Responder
from neurona_server.rpc.v1.coalescing import RequestGroup, open_group
from neurona_server.rpc.v1.stream_messages import split_stream_message

MAX_OUTSTANDING = 4096
"""Requests of one stream without a response, or whose responses the client has not read."""

MAX_MESSAGE_BYTES = 1 << 20
"""Bytes of a message with several responses."""

MAX_TURN_SECONDS = 0.002
"""Seconds of CPU time for which requests of a stream are submitted before others are served."""

MAX_COALESCED_BYTES = 16 << 10
"""Bytes of a request up to which it is coalesced: its data are copied once more for that."""

REQUESTS_PER_CLOCK = 16
"""Requests between two looks at the clock."""

_RESPONSES = PredictStreamResponse.RESPONSES_FIELD_NUMBER
_RESPONSE = StreamedResponse.RESPONSE_FIELD_NUMBER
_ID = varint(StreamedResponse.ID_FIELD_NUMBER << 3)

Submit = Callable[[bytes, Responder], int]
"""Submits one request; returns the expected bytes of its response."""


class ResponseFraming:
    """Writes responses with the caller's ids, as fields of a PredictStreamResponse.

    A response that is larger than `max_bytes` by itself becomes an error.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def frame(self, ids: Sequence[int], responses: Sequence[bytes | NeuronaError]) -> list[bytes]:
        frames = []
        for request_id, response in zip(ids, responses, strict=True):
            if isinstance(response, bytes):
                size = len(response)
                head = header(_RESPONSE, size)
                if request_id:
                    head = _ID + varint(request_id) + head
                frame = header(_RESPONSES, len(head) + size) + head + response
                if len(frame) > self._max_bytes:
                    frame = self.frame_error(
                        request_id, response_too_large(len(frame), self._max_bytes)
                    )
            else:
                frame = self.frame_error(request_id, response)
            frames.append(frame)
        return frames

    def frame_error(
        self, request_id: int, error: Exception, identity: RequestIdentity | None = None
    ) -> bytes:
        """Return a request's error as a field of a response message.

        `identity` is that of the request, for the log.
        """
        status = status_of(error, identity)
        response = StreamedResponse(
            id=request_id,
            error=Error(
                code=status.number,
                message=status.message,
                retry_after_ms=status.retry_after_ms,
            ),
        )
        return length_delimited(_RESPONSES, response.SerializeToString())


class StreamedResponder:
    """Delivers the responses to one or several requests of a stream."""

    __slots__ = ("_stream", "arrived", "deadline", "defer", "expected_bytes")

    def __init__(self, stream: "PredictionStream", expected_bytes: int) -> None:
        self.deadline = stream.call.deadline
        self.arrived = stream.arrived
        self.defer = stream.call.defer
        self.expected_bytes = expected_bytes
        """The size of each response. After their submission only the transport's thread uses it."""

        self._stream = stream

    @property
    def trace_id(self) -> str:
        return self._stream.call.trace_id

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._stream.add_cancellation(self, callback)


class PredictionStream:
    """A `Stream`. Responses come from any thread; the rest runs in the transport's.

    Received requests are submitted as long as their expected responses, and those that the client
    has not read, fit into the window; the rest follows as the client reads.

    Requests that match one template are coalesced: they run as one request, by the model that
    was resolved for the first of them. Without a `fast_path` each request is submitted by itself.
    """

    def __init__(
        self,
        call: StreamCall,
        submit: Submit,
        fast_path: FastPath | None,
        limits: Limits,
        open_streams: Gauge,
    ) -> None:
        """Start the stream, which `open_streams` counts until the transport calls `cancel`."""
        open_streams.inc()
        self.call = call
        self.framing = ResponseFraming(limits.max_message_bytes)
        self._submit = submit
        self._fast_path = fast_path
        self._limits = limits
        self._open_streams = open_streams
        self._window = StreamWindow()
        self._received: deque[tuple[int, bytes]] = deque()  # not yet submitted
        self.arrived = 0.0
        """Of the requests that are being submitted: see `Responder.arrived`."""
        self._outstanding = 0  # submitted, and the response not sent
        self._completed: deque[tuple[StreamedResponder, Sequence[bytes]]] = deque()
        self._ready: deque[bytes] = deque()
        # By responder, of those in flight. Any thread may add and remove.
        self._cancellations: dict[StreamedResponder, Callable[[], None]] = {}
        self._cancelled = False
        self._half_closed = False
        self._groups: dict[MessageTemplate, RequestGroup | None] = {}
        self._last_group: RequestGroup | None = None  # the next request mostly matches it

    def receive(self, message: bytes) -> None:
        self._received.extend(split_stream_message(message))
        self.arrived = self.call.arrived
        self._submit_received()
        self.arrived = 0.0  # the others wait for the client, which has responses to read

    def half_close(self) -> None:
        self._half_closed = True

    def take_message(self) -> bytes | None:
        self._collect_responses()
        pieces: list[bytes] = []
        size, max_bytes = 0, min(MAX_MESSAGE_BYTES, self._limits.max_message_bytes)
        ready = self._ready
        # A large response is a message by itself: joining would copy it.
        while ready and (not size or size + len(ready[0]) <= max_bytes):
            piece = ready.popleft()
            size += len(piece)
            pieces.append(piece)
        self._window.release(size)
        self._outstanding -= len(pieces)
        if self._received and self._window.low:
            self._submit_received()
        return b"".join(pieces) if pieces else None

    @property
    def congested(self) -> bool:
        self._collect_responses()
        return bool(self._received) or self._outstanding >= MAX_OUTSTANDING or self._window.full

    @property
    def buffered_bytes(self) -> int:
        return self._window.bytes

    @property
    def finished(self) -> bool:
        return self._half_closed and not self._received and not self._outstanding

    def drain(self) -> None:
        self._half_closed = True

    def cancel(self) -> None:
        self._open_streams.dec()
        self._received.clear()
        self._cancelled = True  # before the loop: what is added after it is cancelled at once
        for cancel in list(self._cancellations.values()):
            cancel()

    def add_cancellation(self, responder: StreamedResponder, cancel: Callable[[], None]) -> None:
        """Register `cancel` to be called when the stream is cancelled. Thread-safe."""
        self._cancellations[responder] = cancel
        if self._cancelled:
            cancel()

    def remove_cancellation(self, responder: StreamedResponder) -> None:
        """Drop a responder that others replace. Thread-safe."""
        self._cancellations.pop(responder, None)

    def respond(self, responder: StreamedResponder, frames: Sequence[bytes]) -> None:
        """Send responses, which are fields of a PredictStreamResponse. Thread-safe."""
        self._cancellations.pop(responder, None)
        self._completed.append((responder, frames))
        self.call.wake()

    def _collect_responses(self) -> None:
        while self._completed:
            responder, frames = self._completed.popleft()
            size = sum([len(frame) for frame in frames])
            self._window.settle(responder.expected_bytes * len(frames), size)
            self._ready.extend(frames)

    def _submit_received(self) -> None:
        received, window = self._received, self._window
        end = time.thread_time() + MAX_TURN_SECONDS
        count = 0
        while received and not window.full:
            self._add_to_group(*received.popleft())
            count += 1
            if not count % REQUESTS_PER_CLOCK and time.thread_time() >= end:
                self.call.wake()  # the transport has others to serve: it will call `take_message`
                break
        for group in self._groups.values():
            if group is not None:
                self._submit_group(group)
        self._groups.clear()
        self._last_group = None

    def _add_to_group(self, request_id: int, message: bytes) -> None:
        """Add a request to the group of its template, or submit it if it has none."""
        group = self._last_group
        if (
            group is None
            or len(message) != group.template.size
            or not group.template.matches(message)
        ):
            group = self._last_group = self._group_of(message)
        if group is None:
            self._outstanding += 1
            self._submit_single(StreamResponder(self, request_id), message)
            return
        self._window.reserve(group.expected_bytes)
        group.ids.append(request_id)
        group.messages.append(message)
        if len(group.ids) >= group.max_requests:
            del self._groups[group.template]
            self._last_group = None
            self._submit_group(group)

    def _group_of(self, message: bytes) -> RequestGroup | None:
        if self._fast_path is None or len(message) > MAX_COALESCED_BYTES:
            return None
        template = self._fast_path.lookup(message)
        if template is None:
            return None
        if template not in self._groups:
            self._groups[template] = open_group(self._fast_path, template)
        return self._groups[template]

    def _submit_group(self, group: RequestGroup) -> None:
        count = len(group.ids)
        self._outstanding += count
        responder = CoalescedStreamResponder(self, group.ids, group.expected_bytes)
        if count > 1:
            request = group.coalesce(responder)
            try:
                group.model.batcher.submit(request, responder.defer)
            except NeuronaError:  # there may be room, or time, for some of them
                if not request.withdraw():
                    return
            else:
                return
        self.remove_cancellation(responder)
        self._window.reserve(-group.expected_bytes * count)
        for request_id, message in zip(group.ids, group.messages, strict=True):
            self._submit_single(StreamResponder(self, request_id), message)

    def _submit_single(self, responder: "StreamResponder", message: bytes) -> None:
        responder.expected_bytes = self._submit(message, responder)
        self._window.reserve(responder.expected_bytes)


class StreamResponder(StreamedResponder):
    """The `Responder` of one request."""

    __slots__ = ("_id", "trace")

    def __init__(self, stream: PredictionStream, request_id: int) -> None:
        super().__init__(stream, 0)
        self._id = request_id
        trace = stream.call.trace
        self.trace = None if trace is None else trace.start_request(request_id)

    @property
    def request_id(self) -> str:
        """The stream's request id, and the caller's id of the request."""
        return f"{self._stream.call.request_id}#{self._id}"

    def reply(self, response: bytes) -> None:
        self._stream.respond(self, self._stream.framing.frame([self._id], [response]))
        if self.trace is not None:
            self.trace.end()

    def fail(self, error: Exception) -> None:
        self._stream.respond(self, [self._stream.framing.frame_error(self._id, error, self)])
        if self.trace is not None:
            self.trace.end(error)


class CoalescedStreamResponder(StreamedResponder):
    """The `CoalescedResponder` of a coalesced request, which is not traced."""

    __slots__ = ("_ids",)

    def __init__(self, stream: PredictionStream, ids: Sequence[int], expected_bytes: int) -> None:
        super().__init__(stream, expected_bytes)
        self._ids = ids

    @property
    def request_id(self) -> str:
        """The stream's request id, and the caller's id of the request if it is a single one."""
        suffix = f"#{self._ids[0]}" if len(self._ids) == 1 else ""
        return self._stream.call.request_id + suffix

    def reply(self, responses: Sequence[bytes | NeuronaError]) -> None:
        self._stream.respond(self, self._stream.framing.frame(self._ids, responses))

    def fail(self, error: Exception) -> None:
        frame_error = self._stream.framing.frame_error
        self._stream.respond(self, [frame_error(one, error, self) for one in self._ids])

    def halve(self, middle: int) -> tuple["CoalescedStreamResponder", "CoalescedStreamResponder"]:
        self._stream.remove_cancellation(self)
        first, second = self._ids[:middle], self._ids[middle:]
        return (
            CoalescedStreamResponder(self._stream, first, self.expected_bytes),
            CoalescedStreamResponder(self._stream, second, self.expected_bytes),
        )
