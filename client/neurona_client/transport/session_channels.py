"""The connections on which the sessions of one server have their streams.

A session is a stream that stays open, and HTTP/2 limits the streams of a connection; a stream
beyond the limit waits, without an error, until another ends. So sessions have connections of their
own, beside that of the other calls, and not more on one than any server allows.
"""

import threading
from collections.abc import Callable

import grpc

MAX_STREAMS_PER_CONNECTION = 100
"""RFC 9113, 6.5.2, recommends that servers and proxies allow no fewer."""


class SessionChannels:
    """The channels for sessions of one server. Safe for threads."""

    def __init__(self, open_channel: Callable[[], grpc.Channel]) -> None:
        """Open no channel yet.

        Args:
            open_channel: opens a channel with a connection of its own.
        """
        self._open_channel = open_channel
        self._lock = threading.Lock()
        self._streams_by_channel: dict[grpc.Channel, int] = {}
        self._is_closed = False

    @property
    def stream_count(self) -> int:
        """Sessions that are open."""
        return sum(self._streams_by_channel.copy().values())

    def acquire(self) -> grpc.Channel:
        """Return a channel for one more stream, and close those that are not used any more.

        Raises:
            ValueError: the server's endpoint is closed.
            OSError: a file of certificates cannot be read.
        """
        surplus: list[grpc.Channel] = []
        with self._lock:
            if self._is_closed:
                raise ValueError("channels of sessions closed")
            streams = self._streams_by_channel
            vacant = [one for one, count in streams.items() if count < MAX_STREAMS_PER_CONNECTION]
            if vacant:  # the fullest, so that others become empty
                channel = max(vacant, key=streams.__getitem__)
                surplus = [one for one in vacant if one is not channel and not streams[one]]
                for one in surplus:
                    del streams[one]
            else:
                channel = self._open_channel()
            streams[channel] = streams.get(channel, 0) + 1
        for one in surplus:
            one.close()
        return channel

    def release(self, channel: grpc.Channel) -> None:
        """Record that a stream has ended."""
        with self._lock:
            if channel in self._streams_by_channel:
                self._streams_by_channel[channel] -= 1

    def close(self) -> None:
        """Close all channels, which ends their streams."""
        with self._lock:
            self._is_closed = True
            channels = list(self._streams_by_channel)
            self._streams_by_channel = {}
        for channel in channels:
            channel.close()
