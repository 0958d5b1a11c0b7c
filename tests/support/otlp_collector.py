"""A collector of traces as neurona-serve sees one: OTLP over gRPC, on a port of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Seen:
    """One span, as it came."""

    def __init__(self, span, resource):
        self.raw = span
        self.name = span.name
        self.kind = Span.SpanKind.Name(span.kind)
        self.trace_id, self.id, self.parent = (
            each.hex() for each in (span.trace_id, span.span_id, span.parent_span_id)
        )
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.attributes = _read(span.attributes)
        self.resource = _read(resource.attributes)
        self.links = {link.span_id.hex() for link in span.links}
        self.failed = span.status.code == 2
        self.said = span.status.message
        self.exceptions = [_read(event.attributes) for event in span.events]

    def __repr__(self):
        return f"<{self.name} {self.id} in {self.parent or 'nothing'}: {self.attributes}>"


def _read(attributes):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class Collector(TraceServiceServicer):
    def __init__(self, port=0):
        self.spans = []
        self.metadata = []
        self._came = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"http://127.0.0.1:{self.port}"
        self._server.start()

    def Export(self, request, context):  # noqa: N802  gRPC's name
        seen = [
            Seen(span, resource.resource)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._came:
            self.spans += seen
            self.metadata += context.invocation_metadata()
            self._came.notify_all()
        return ExportTraceServiceResponse()

    def wait_for(self, count):
        """All spans, once there are so many."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.spans) >= count, 20), self.spans
            return list(self.spans)

    def stop(self):
        self._server.stop(None).wait()
