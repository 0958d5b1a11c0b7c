"""Connections to servers: channels, the stream that calls share, and calls on grpcio."""
