"""The requests of one message of a stream: those that are alike are bundled."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from neurona_server.errors import NeuronaError
from neurona_server.models.model import Model
from neurona_server.rpc.answers import PredictAnswer
from neurona_server.rpc.bundle import Bundle, Receivers
from neurona_server.rpc.known import Shape
from neurona_server.rpc.places import Place, Places
from neurona_server.rpc.repeats import Facts, Repeats
from neurona_server.rpc.submission import Receiver

SMALL = 16 << 10
"""Bytes of a request up to which it is bundled: its data are copied once more for it."""

PARTS = 2
"""Bundles that fill a batch: larger ones would leave more of it empty."""

Begin = Callable[[bytes, Receiver], int]
"""Sends one request on its way; how many bytes its answer will have."""


class Host(Protocol):
    """The stream."""

    def place(self, number: int) -> Place:
        """For the answer to the request that the caller gave this number."""

    def places(self, numbers: Sequence[int], expected: int) -> Places:
        """For several, each answer of about so many bytes, which are reserved."""

    def reserve(self, expected: int) -> None:
        """An answer of about so many bytes will come."""


class _Group:
    """Requests of one shape that gather to become a bundle."""

    def __init__(self, shape: Shape, model: Model, facts: Facts, answer: PredictAnswer) -> None:
        self.shape = shape
        self.model = model
        self.facts = facts
        self.answer = answer
        self.expected = answer.expected(facts.rows)
        self.most = model.batcher.queue.limit // PARTS // facts.rows
        self.numbers: list[int] = []
        self.messages: list[bytes] = []

    def bundle(self, places: Receivers) -> Bundle:
        facts, messages = self.facts, self.messages
        count = len(messages)
        inputs = {}
        for (name, dtype, sizes), (start, stop) in zip(facts.inputs, self.shape.spans, strict=True):
            data = b"".join([message[start:stop] for message in messages])
            inputs[name] = np.frombuffer(data, dtype).reshape(count * sizes[0], *sizes[1:])
        return Bundle(
            *(self.model, places, self.answer, time.monotonic(), inputs, count, facts.rows),
            *(facts.group, facts.priority, count * len(messages[0])),
        )


class Gathering:
    """Of one message. Without `alike`, each request goes by itself.

    All that is in a bundle is for one model: where shares of a model's requests go to several
    versions, they are drawn by bundle.
    """

    def __init__(self, alike: Repeats | None, begin: Begin, host: Host) -> None:
        self._alike = alike
        self._begin = begin
        self._host = host
        self._groups: dict[Shape, _Group | None] = {}
        self._last: _Group | None = None  # the next one is mostly like it

    def add(self, number: int, message: bytes) -> None:
        group = self._last
        if group is None or len(message) != group.shape.size or not group.shape.fits(message):
            group = self._last = self._group(message)
        if group is None:
            self._alone(self._host.place(number), message)
            return
        self._host.reserve(group.expected)
        group.numbers.append(number)
        group.messages.append(message)
        if len(group.numbers) >= group.most:
            del self._groups[group.shape]
            self._last = None
            self._send(group)

    def end(self) -> None:
        """No more of the message are to be begun now."""
        for group in self._groups.values():
            if group is not None:
                self._send(group)
        self._groups.clear()
        self._last = None

    def _group(self, message: bytes) -> _Group | None:
        if self._alike is None or len(message) > SMALL:
            return None
        shape = self._alike.find(message)
        if shape is None:
            return None
        if shape not in self._groups:
            self._groups[shape] = _open(self._alike, shape)
        return self._groups[shape]

    def _alone(self, place: Place, message: bytes) -> None:
        place.expect(self._begin(message, place))

    def _send(self, group: _Group) -> None:
        places = self._host.places(group.numbers, group.expected)
        if len(group.numbers) > 1:
            bundle = group.bundle(places)
            try:
                group.model.submit(bundle, places.defer)
            except NeuronaError:  # there may be room, or time, for some of them
                if not bundle.withdraw():
                    return
            else:
                return
        for place, message in zip(places.single(), group.messages, strict=True):
            self._alone(place, message)


def _open(alike: Repeats, shape: Shape) -> _Group | None:
    """None where requests do not share runs, or are to be looked at one by one."""
    found = alike.facts(shape)
    if found is None:
        return None
    model, facts = found
    answer = facts.answer
    if not isinstance(answer, PredictAnswer) or not model.signature.batched or not facts.rows:
        return None
    if model.shadow is not None:  # its copies are counted one by one
        return None
    group = _Group(shape, model, facts, answer)
    return group if group.most > 1 else None
