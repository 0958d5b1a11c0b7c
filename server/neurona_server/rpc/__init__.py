"""The transports: bytes in, bytes out. The only rooms that import grpc."""

import os

# gRPC's own library writes into the log what callers send, line breaks and all (the text of a
# GOAWAY, for one), unless it is told, before it starts, to write errors alone.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
