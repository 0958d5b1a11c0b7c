"""Labels of answers that are like one that was read before, in all but the probability."""

import struct

from google.protobuf.message import DecodeError

from neurona_client.errors import ServerError
from neurona_protos.prediction_pb2 import PredictResponse

_MOST = 1024
_OTHER_PROBABILITY = 0.25
_OTHER = struct.pack("<f", _OTHER_PROBABILITY)


class Labels:
    """Of answers of one row with one class, by all of their bytes but the last four."""

    def __init__(self) -> None:
        self._labels: dict[bytes, str] = {}

    def find(self, message: bytes | PredictResponse) -> str | None:
        return self._labels.get(message[:-4]) if isinstance(message, bytes) else None

    def learn(self, message: bytes, answer: PredictResponse) -> None:
        rows = answer.classification.rows
        if len(rows) != 1 or len(rows[0].labels) != 1 or answer.outputs:
            return
        start = message[:-4]
        if start not in self._labels and _ends_with_its_probability(start, answer):
            if len(self._labels) >= _MOST:
                self._labels = {}
            self._labels[start] = rows[0].labels[0]


def _ends_with_its_probability(start: bytes, answer: PredictResponse) -> bool:
    """Whether other bytes behind the start change the probability and nothing else."""
    try:
        other = PredictResponse.FromString(start + _OTHER)
        theirs, own = other.classification.rows[0], answer.classification.rows[0]
        if theirs.probabilities[:] != [_OTHER_PROBABILITY]:
            return False
        theirs.probabilities[:] = own.probabilities
    except (DecodeError, IndexError):
        return False
    return other == answer


labels = Labels()


def read(message: bytes) -> PredictResponse:
    """Raises ServerError for what is none."""
    try:
        return PredictResponse.FromString(message)
    except DecodeError as error:
        raise ServerError(f"the answer is no neurona.v1.PredictResponse: {error}") from error
