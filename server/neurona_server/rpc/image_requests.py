"""A request with encoded images: decoded row by row, then submitted as if it had arrays."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, TensorError
from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    InvalidValueError,
)
from neurona_server.models.encoded_images import ImageInput, ImageLimits
from neurona_server.models.signature import Signature, TensorType
from neurona_server.rpc.call import cancellation_error
from neurona_server.rpc.image_workers import ImageWorkers
from neurona_server.rpc.limits import MAX_STRINGS

DecodeBytes = Callable[[Collection[str]], Inputs]
"""Returns the inputs, those of these names as arrays of bytes."""


@dataclass(frozen=True)
class EncodedRequest:
    """The types of a request with encoded images."""

    inputs: Mapping[str, ImageInput]
    """The inputs that it has encoded."""

    counts: Mapping[str, int]
    """How many images each of them has."""

    types: Mapping[str, TensorType]
    """Those of its inputs once they are decoded; a free size is that of another input,
    or 1, until then."""

    @property
    def has_own_sizes(self) -> bool:
        """Whether the images decide a size of an input."""
        return any(one.has_own_size for one in self.inputs.values())

    @property
    def nbytes(self) -> int:
        """The bytes of the rows that the images become, as far as their sizes are fixed."""
        return sum(
            math.prod(self.types[name][1]) * NUMPY_DTYPES[one.spec.dtype].itemsize
            for name, one in self.inputs.items()
        )

    def check_size(self, max_bytes: int) -> None:
        """Raise InvalidArgumentError if the rows would have more bytes, as far as that is known."""
        if self.nbytes > max_bytes:
            raise InvalidArgumentError(
                f"request has {self.nbytes} bytes once it is decoded (expected at most {max_bytes})"
            )


def find_encoded(
    images: Mapping[str, ImageInput], types: Mapping[str, TensorType], signature: Signature
) -> EncodedRequest | None:
    """Return the types of a request with strings for inputs of images, None if it has none.

    Raises:
        InvalidArgumentError: The strings have another shape than (rows) or (rows, 1), or are too
            many.
    """
    inputs = {
        name: images[name]
        for name, (dtype, _) in types.items()
        if dtype == DataType.DATA_TYPE_STRING and name in images
    }
    if not inputs:
        return None
    counts = {name: one.count_images(types[name][1]) for name, one in inputs.items()}
    if (count := sum(counts.values())) > MAX_STRINGS:
        raise InvalidArgumentError(
            f"the request has {count} images (expected at most {MAX_STRINGS})"
        )
    arrays = {name: shape for name, (_, shape) in types.items() if name not in inputs}
    sizes = _find_sizes(signature, arrays)
    decoded = {
        name: (one.spec.dtype, _expected_shape(one, counts[name], sizes))
        for name, one in inputs.items()
    }
    return EncodedRequest(inputs, counts, {**types, **decoded})


def _find_sizes(
    signature: Signature, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[int | str | None, int]:
    """Return the sizes that inputs of these shapes give to the named axes of a signature."""
    return {
        axis: size
        for spec in (*signature.inputs, *signature.optional)
        if spec.name in shapes
        for axis, size in zip(spec.shape, shapes[spec.name], strict=False)
        if isinstance(axis, str)
    }


def _expected_shape(
    one: ImageInput, count: int, sizes: Mapping[int | str | None, int]
) -> tuple[int, ...]:
    """Return the shape of an input before its images are decoded.

    A size that the images decide is that of another input with this axis, 1 if there is none.
    """
    shapes = one.array_shape(count, 1, 1), one.array_shape(count, 2, 2)
    return tuple(
        size if size == other else sizes.get(axis, size)
        for axis, size, other in zip(one.spec.shape, *shapes, strict=True)
    )


class ImageRequest:
    """An `ImageJob`: the images of one request.

    A caller that has left, a deadline that has passed and a bad image end it before the next image.
    """

    def __init__(
        self,
        encoded: EncodedRequest,
        decode_bytes: DecodeBytes,
        message_bytes: int,
        deadline: float,
        max_bytes: int,
        workers: ImageWorkers,
        cancellations: Sequence[None],
        deliver: Callable[[Inputs], None],
        reject: Callable[[Exception], None],
    ) -> None:
        """Make the job.

        Args:
            encoded: The types of its inputs.
            decode_bytes: Reads its message.
            message_bytes: Bytes of its message.
            deadline: In monotonic seconds.
            max_bytes: Of the decoded rows in all.
            workers: Which decode it.
            cancellations: Not empty once the caller has left.
            deliver: Called with the arrays.
            reject: Called instead, with an error.
        """
        self._encoded = encoded
        self._decode_bytes = decode_bytes
        self._deadline = deadline
        self._max_bytes = max_bytes
        self._workers = workers
        self._cancellations = cancellations
        self._deliver = deliver
        self._reject = reject
        self._nbytes = message_bytes + encoded.nbytes
        self._contents: dict[str, Array] = {}
        self._arrays: dict[str, Array] = {}
        self._rows: list[tuple[str, int]] = []
        self._errors: dict[int, Exception] = {}  # by the number of the image

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def prepare(self) -> int:
        try:
            self._raise_if_over()
            inputs = self._decode_bytes(self._encoded.inputs.keys())
            self._arrays = {**inputs}
            for name, one in self._encoded.inputs.items():
                self._contents[name] = inputs[name].ravel()
                first = self._add_array(name, one)
                self._rows += [(name, row) for row in range(first, self._encoded.counts[name])]
        except Exception as raised:  # the caller must get an error, not wait in vain
            self._errors[-1] = raised
            return 0
        return len(self._rows)

    def decode(self, index: int) -> None:
        if self._errors:
            return
        name, row = self._rows[index]
        try:
            self._raise_if_over()
            one, array = self._encoded.inputs[name], self._arrays[name]
            values = self._decode_row(name, row)
            place = array[row] if one.has_rows else array
            if place.shape != values.shape:
                sizes = [one.image_size(shape.shape) for shape in (values, place)]
                raise InvalidValueError(
                    f"input {name!r} row {row}: {sizes[0]} pixels (expected {sizes[1]} as of row "
                    "0: the model takes images of any size, but equal ones in a request)"
                )
            place[...] = values
            self._contents[name][row] = b""
        except Exception as raised:
            self._errors[index] = raised

    def finish(self) -> None:
        # An error refers to its frames, and so to this request, which must not refer to it.
        arrays, errors = self._arrays, self._errors
        self._contents, self._arrays, self._errors = {}, {}, {}
        if errors:
            error = errors[min(errors)]
            is_tensor = isinstance(error, TensorError)
            self._reject(InvalidArgumentError(str(error)) if is_tensor else error)
            return
        try:
            self._deliver(arrays)
        except Exception as raised:
            self._reject(raised)

    def _raise_if_over(self) -> None:
        if self._cancellations:
            raise cancellation_error(self._deadline)
        if self._deadline <= time.monotonic():
            raise DeadlineExceededError("deadline exceeded before the images were decoded")

    def _add_array(self, name: str, one: ImageInput) -> int:
        """Make room for all rows of an input, and return the first one that is still to decode.

        The first image decides free sizes.
        """
        dtype = NUMPY_DTYPES[one.spec.dtype]
        count, shape = self._encoded.counts[name], self._encoded.types[name][1]
        if not one.has_own_size:
            self._arrays[name] = np.empty(shape, dtype)
            return 0
        values = self._decode_row(name, 0)
        nbytes = count * values.nbytes
        if nbytes > self._max_bytes:
            raise InvalidArgumentError(
                f"request has {nbytes} bytes once it is decoded (expected at most "
                f"{self._max_bytes})"
            )
        self._arrays[name] = np.empty(
            (count, *values.shape) if one.has_rows else values.shape, dtype
        )
        self._arrays[name][: 1 if one.has_rows else None] = values
        return 1

    def _decode_row(self, name: str, row: int) -> Array:
        workers = self._workers
        limits = ImageLimits(workers.max_pixels, self._max_bytes, workers.reserve)
        return self._encoded.inputs[name].decode(self._contents[name][row], row, limits)
