"""The gRPC interface: transports, security, and the services. Only this package imports grpc."""

import os

# gRPC's library logs what callers send, line breaks included (such as the text of a GOAWAY). It
# must be set before the library is loaded that only errors are logged.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
