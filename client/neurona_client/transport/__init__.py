"""Connections to servers: endpoints, shared streams, single calls."""
