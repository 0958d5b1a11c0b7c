"""Waiting requests by a time of each: which one is next, where most leave before theirs has come.

It is alone since a queue has several, each for another time.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Any

from neurona_server.batching.request import Request

SPARE_ENTRIES = 64
"""Entries of requests that have left which a heap keeps, beside as many as there are requests."""


_Entry = list[Any]  # a time, a number that decides between equal ones, and a request or None


class RequestHeap:
    """Requests by their times, in a binary heap. Adding and discarding is O(log n) amortised.

    A request that is discarded leaves an empty entry, and the heap is made anew when most are
    empty. Not thread-safe.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._by_request: dict[Request, _Entry] = {}
        self._number = 0  # of the latest entry

    def __len__(self) -> int:
        return len(self._by_request)

    @property
    def first(self) -> float:
        """The earliest time; inf if there is none."""
        entries = self._entries
        while entries and entries[0][2] is None:
            heapq.heappop(entries)
        return entries[0][0] if entries else math.inf

    def add(self, request: Request, time: float) -> None:
        """Add a request that is not there, with its time."""
        self._number += 1
        entry = [time, self._number, request]
        self._by_request[request] = entry
        heapq.heappush(self._entries, entry)

    def discard(self, request: Request) -> None:
        """Remove a request if it is there."""
        if (entry := self._by_request.pop(request, None)) is None:
            return
        entry[2] = None  # nothing keeps the request in memory
        if len(self._entries) > 2 * len(self._by_request) + SPARE_ENTRIES:
            self._entries = [*self._by_request.values()]
            heapq.heapify(self._entries)

    def pop_until(self, now: float) -> Iterator[Request]:
        """Remove and yield the requests whose times have come, the earliest first."""
        while self.first <= now:
            request: Request = heapq.heappop(self._entries)[2]
            del self._by_request[request]
            yield request
