"""How bytes arrive and leave: the cygrpc transport, its grpc.aio fallback, and the choice."""
