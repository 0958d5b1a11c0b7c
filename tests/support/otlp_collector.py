"""An OTLP collector of spans in this process: gRPC on a port of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class ReceivedSpan:
    """A span as plain Python values."""

    def __init__(self, span, resource):
        self.raw = span
        self.name = span.name
        self.kind = Span.SpanKind.Name(span.kind)
        self.trace_id, self.id, self.parent = (
            each.hex() for each in (span.trace_id, span.span_id, span.parent_span_id)
        )
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes = _to_dict(span.attributes)
        self.resource = _to_dict(resource.attributes)
        self.links = {link.span_id.hex() for link in span.links}
        self.failed = span.status.code == 2
        self.status_message = span.status.message
        self.exceptions = [_to_dict(event.attributes) for event in span.events]

    def __repr__(self):
        return f"<{self.name} {self.id} in {self.parent or 'nothing'}: {self.attributes}>"


class Collector(TraceServiceServicer):
    """Keeps the `spans` it receives, and the `metadata` of the calls that carry them."""

    def __init__(self, port=0):
        self.spans = []
        self.metadata = []
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"http://127.0.0.1:{self.port}"
        self._server.start()

    def Export(self, request, context):  # noqa: N802  gRPC's name
        spans = [
            ReceivedSpan(span, resource.resource)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._changed:
            self.spans += spans
            self.metadata += context.invocation_metadata()
            self._changed.notify_all()
        return ExportTraceServiceResponse()

    def wait_for(self, count):
        """Return all spans once there are `count`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.spans) >= count, 20), self.spans
            return list(self.spans)

    def stop(self):
        self._server.stop(None).wait()


def _to_dict(attributes):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
