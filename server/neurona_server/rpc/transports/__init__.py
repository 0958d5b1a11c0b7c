"""The transports: bytes in, bytes out, with two implementations of `rpc.call` on grpcio."""
