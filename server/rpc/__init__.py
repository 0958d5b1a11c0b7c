"""The doors: bytes in, bytes out. The only rooms that import grpc."""
