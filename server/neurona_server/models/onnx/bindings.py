"""Runs with memory that stays: page-locked buffers of the host, and buffers of the device.

`InferenceSession.run` copies from and to ordinary memory, which the driver first copies into
page-locked memory of its own: while it does, the thread waits. A `BoundRunner` keeps, for each run
that may be in flight (a slot), page-locked buffers into which batches are joined, and device
buffers to which ONNX Runtime's IOBinding ties the graph's inputs and outputs. Copies go through a
stream of the slot, beside the one that computes: with two slots, the copies of one batch overlap
the run of the other one. Outputs are page-locked memory, too, which returns to a pool when the last
array over it is gone.

Facts about ONNX Runtime are from its sources (IOBinding.cc, utils.cc): an input that is bound in
another memory than the graph wants it in is copied when it is bound, and not for each run; so each
one is bound where the graph wants it, on the device or on the host. Written from the specification,
and tested with a stand-in for a device on the CPU provider; not run on a GPU yet. It is one file
since what owns memory and what binds it are right only together.
"""

import ctypes
import logging
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnxruntime

from neurona_server.batching.request import Array, Inputs
from neurona_server.models.onnx.cuda_driver import (
    CudaDriver,
    CudaDriverError,
    CudaStream,
    DeviceMemory,
    load_driver,
)
from neurona_server.models.onnx.devices import Device
from neurona_server.models.onnx.run_failures import FailureKind, classify_failure

log = logging.getLogger(__name__)

MAX_SLOT_BYTES = 1 << 30
"""Limit for the buffers of a slot: larger batches run without. Page-locked memory is the machine's,
and the kernel cannot take it back."""

MAX_BINDINGS = 64
"""Shapes that a slot keeps bound; the least recently run one is dropped first."""

MAX_KNOWN_SHAPES = 512
"""Shapes of inputs of which the shapes of outputs are remembered."""

MAX_POOL_BYTES = 256 << 20
"""Limit for the page-locked memory of a session's outputs; beyond it, ordinary memory is used."""

MIN_BLOCK_BYTES = 4096
"""Size of the smallest block for an output; others have a power of 2."""

CAPTURE_SECONDS = 10.0
"""Longest wait for a capture of another session, which may hang on a device that is lost."""

capture_lock = threading.Lock()
"""Of the process: CUDA captures on one stream at a time in the mode that ONNX Runtime has, and
waiting for a whole device meanwhile would spoil the capture."""

_HOST_MEMORY = ("Cpu", "CudaPinned")
"""ONNX Runtime's names of memory of the host, in sessions of NVIDIA's providers."""

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of all inputs of a graph, in its order."""


class DeviceBuffer(Protocol):
    """Memory of a device, freed when it is collected."""

    @property
    def address(self) -> int: ...


class CopyStream(Protocol):
    """Copies between the host and a device, in order, for one thread."""

    def copy_in(self, copies: Sequence[tuple[int, Array]]) -> None:
        """Copy arrays to addresses on the device; return when they are there."""

    def copy_out(self, copies: Sequence[tuple[Array, int]]) -> None:
        """Copy to contiguous arrays from addresses on the device; return when they are there."""


class MemoryAllocator(Protocol):
    """Memory of a device, and memory of the host that it copies from and to.

    Attributes:
        device_type: ONNX Runtime's name of the kind of device, as "cuda".
        number: Of the device.
    """

    device_type: str
    number: int

    def holds(self, info: onnxruntime.OrtMemoryInfo) -> bool:
        """Return whether what ONNX Runtime describes is memory of the device."""

    def prepare_thread(self) -> None:
        """Prepare the calling thread for runs in the ordinary way; again does nothing."""

    def activate(self) -> AbstractContextManager[None]:
        """Make the device the calling thread's current one, for a while."""

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def free_bytes(self) -> int:
        """Return the free memory of the device."""

    def allocate_host(self, nbytes: int) -> Array:
        """Return `nbytes` bytes of page-locked memory."""

    def allocate_device(self, nbytes: int) -> DeviceBuffer:
        """Return at least `nbytes` bytes, aligned for any kernel."""

    def new_stream(self) -> CopyStream: ...


class CudaMemory:
    """Memory of a CUDA device, by the driver."""

    device_type = "cuda"

    def __init__(self, driver: CudaDriver, number: int) -> None:
        self.number = number
        self._driver = driver

    def holds(self, info: onnxruntime.OrtMemoryInfo) -> bool:
        return info.name not in _HOST_MEMORY

    def prepare_thread(self) -> None:
        self._driver.relax_capture_mode()

    def activate(self) -> AbstractContextManager[None]:
        return self._driver.context(self.number)

    def synchronize(self) -> None:
        if not capture_lock.acquire(timeout=CAPTURE_SECONDS):
            raise TimeoutError("a CUDA graph is being captured")
        try:
            self._driver.synchronize(self.number)
        finally:
            capture_lock.release()

    def free_bytes(self) -> int:
        return self._driver.memory_info(self.number)[0]

    def allocate_host(self, nbytes: int) -> Array:
        return np.frombuffer(memoryview(self._driver.host_allocate(nbytes, self.number)), np.uint8)

    def allocate_device(self, nbytes: int) -> DeviceMemory:
        return self._driver.device_allocate(self.number, nbytes)

    def new_stream(self) -> CudaStream:
        return self._driver.new_stream(self.number)


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph, which has a fixed size per element."""

    name: str
    element_type: int
    """ONNX's number of it (TensorProto.DataType)."""

    dtype: np.dtype[Any]
    """How numpy holds it; BFLOAT16 as its bits."""

    on_device: bool
    """Whether the graph wants an input, or makes an output, in the memory of the device."""

    is_output: bool = False


class OutputPool:
    """Page-locked memory for outputs, which returns when the last array over it is collected.

    Thread-safe.
    """

    def __init__(self, memory: MemoryAllocator, max_bytes: int = MAX_POOL_BYTES) -> None:
        self._memory = memory
        self._max_bytes = max_bytes
        self._free: dict[int, list[Array]] = {}  # by size; append and pop are atomic
        self._allocated = 0
        self._lock = threading.Lock()

    @property
    def allocated_bytes(self) -> int:
        return self._allocated

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of any values.

        It is of ordinary memory once the pool has reached its limit, or no more can be page-locked.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        size = max(MIN_BLOCK_BYTES, 1 << (nbytes - 1).bit_length())
        free = self._free.get(size)
        if free is None:
            free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            with self._lock:
                if self._allocated + size > self._max_bytes:
                    return np.empty(shape, dtype)
                self._allocated += size
            try:
                block = self._memory.allocate_host(size)
            except CudaDriverError as error:
                with self._lock:
                    self._allocated -= size
                log.debug("an output is in ordinary memory: %s", error)
                return np.empty(shape, dtype)
        # All arrays over the block keep this object alive, and it tells when they are gone.
        lease = (ctypes.c_ubyte * nbytes).from_address(block.ctypes.data)
        weakref.finalize(lease, free.append, block).atexit = False
        return np.frombuffer(memoryview(lease), dtype).reshape(shape)


@dataclass(eq=False)
class Binding:
    """The inputs and outputs of a graph tied to a slot's buffers, for one set of shapes."""

    io: onnxruntime.IOBinding
    views: Mapping[str, Array]
    """Where to write each input."""

    copies_in: Sequence[tuple[int, Array]]
    outputs: Sequence[tuple[GraphTensor, tuple[int, ...], int]]
    """Each output with its shape and address."""

    graph_ids: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """The CUDA graphs captured with it, by thread and the values that they hold: see
    cuda_graphs.py."""

    graph_counts: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """Runs for which there is no graph yet."""

    uncaptured: tuple[int, bytes] | None = None
    """What the next run is to capture."""


class _Buffer:
    """Memory for one tensor: where the graph has it and, for an input, on the host."""

    def __init__(self, memory: MemoryAllocator, tensor: GraphTensor, nbytes: int) -> None:
        self.nbytes = nbytes
        needs_host = not (tensor.is_output and tensor.on_device)
        self.host = memory.allocate_host(nbytes) if needs_host else np.empty(0, np.uint8)
        self.device = memory.allocate_device(nbytes) if tensor.on_device else None
        self.address = self.host.ctypes.data if self.device is None else self.device.address


class BufferSlot:
    """The buffers and bindings of one run at a time; any thread may run it."""

    def __init__(self, memory: MemoryAllocator) -> None:
        self.memory = memory
        self.stream = memory.new_stream()
        self.buffers: dict[str, _Buffer] = {}
        self.bindings: OrderedDict[Shapes, Binding] = OrderedDict()
        self.reserved: Binding | None = None
        """Of the inputs that are being written."""

    def require(self, sizes: Mapping[GraphTensor, int], largest: Mapping[GraphTensor, int]) -> bool:
        """Have buffers of at least the given bytes; False if that would exceed the limit.

        When one must grow, all bindings and graphs are dropped: they have the addresses of the old
        ones. So all grow at once, to the largest that are known, if the limit allows that.
        """
        buffers = self.buffers
        if all(
            tensor.name in buffers and buffers[tensor.name].nbytes >= nbytes
            for tensor, nbytes in sizes.items()
        ):
            return True
        if sum(sizes.values()) > MAX_SLOT_BYTES:
            return False
        self.drop_buffers()  # freed first: both may not fit
        if sum(largest.values()) <= MAX_SLOT_BYTES:
            sizes = {tensor: max(size, largest.get(tensor, 0)) for tensor, size in sizes.items()}
        for tensor, nbytes in sizes.items():
            buffers[tensor.name] = _Buffer(self.memory, tensor, nbytes)
        return True

    def drop_buffers(self) -> None:
        """Give all memory back, with what is bound to it."""
        self.reserved = None
        self.bindings.clear()
        self.buffers.clear()


class BoundRunner:
    """Runs a session with bound buffers, those of a slot.

    It binds the shapes that it has `learned` the shapes of outputs of. `reserve`, `run` and
    `learn` return None or do nothing where buffers cannot be used: the caller then runs the session
    in the ordinary way.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        memory: MemoryAllocator,
        inputs: Sequence[GraphTensor],
        outputs: Sequence[GraphTensor],
    ) -> None:
        """Bind nothing yet.

        Args:
            session: The session.
            memory: Of the device that it runs on.
            inputs: All required inputs of the graph, in its order.
            outputs: All outputs, in its order.
        """
        self._session = session
        self._memory = memory
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._pool = OutputPool(memory)
        self._output_shapes: OrderedDict[Shapes, Sequence[tuple[int, ...]]] = OrderedDict()
        self._largest: dict[GraphTensor, int] = {}  # bytes, of all shapes that it has learned
        self._lock = threading.Lock()

    def new_slot(self) -> BufferSlot:
        """Return a slot without buffers. It lives as long as the caller keeps it."""
        return BufferSlot(self._memory)

    def learn(self, inputs: Inputs, outputs: Sequence[Any]) -> None:
        """Remember the shapes of the outputs of an ordinary run."""
        shapes = self._shapes(inputs)
        if shapes is None or shapes in self._output_shapes:
            return
        output_shapes: list[tuple[int, ...]] = []
        for tensor, output in zip(self._outputs, outputs, strict=True):
            if not isinstance(output, np.ndarray) or output.dtype != tensor.dtype:
                return
            output_shapes.append(output.shape)
        if not all(math.prod(shape) for shape in (*shapes, *output_shapes)):
            return  # nothing to copy, and no address to bind
        with self._lock:
            self._note_sizes(shapes, output_shapes)
            self._output_shapes[shapes] = output_shapes
            while len(self._output_shapes) > MAX_KNOWN_SHAPES:
                self._output_shapes.popitem(last=False)

    def forget(self, max_rows: int) -> None:
        """Forget what it has learned of more rows, and make no buffers for them any more.

        Slots keep their buffers: get new ones.
        """
        with self._lock:
            for shapes in [*self._output_shapes]:
                if count_rows(shapes) > max_rows:
                    del self._output_shapes[shapes]
            self._largest.clear()
            for shapes, output_shapes in self._output_shapes.items():
                self._note_sizes(shapes, output_shapes)

    def reserve(
        self, slot: BufferSlot, shapes: Mapping[str, tuple[int, ...]]
    ) -> Mapping[str, Array] | None:
        """Return arrays of the given shapes to write inputs into, for the next `run` of the slot.

        They are valid until then.
        """
        if len(shapes) != len(self._inputs):
            return None
        try:
            key = tuple([shapes[tensor.name] for tensor in self._inputs])
        except KeyError:
            return None
        slot.reserved = binding = self._binding(slot, key)
        return None if binding is None else binding.views

    def run(
        self, slot: BufferSlot, inputs: Inputs, options: onnxruntime.RunOptions
    ) -> list[Array] | None:
        """Run the graph; the outputs, in its order, are the caller's.

        Args:
            slot: The buffers, which no other run uses meanwhile.
            inputs: What `reserve` returned, or any arrays.
            options: ONNX Runtime's.

        Raises:
            CudaDriverError: A copy failed.
            Exception: What ONNX Runtime raises.
        """
        binding = slot.reserved
        if binding is None or inputs is not binding.views:
            shapes = self._shapes(inputs)
            binding = None if shapes is None else self._binding(slot, shapes)
            if binding is None:
                return None
            for name, view in binding.views.items():
                np.copyto(view, inputs[name], casting="equiv")
        if not self._prepare(binding, options):
            return None
        slot.stream.copy_in(binding.copies_in)
        try:
            self._execute(binding, options)
        except Exception as error:  # ONNX Runtime has a class of its own for each status
            if classify_failure(error) is not FailureKind.DEVICE_LOST:
                self._wait_for_kernels(slot)
            raise
        return self._collect(slot, binding)

    def _wait_for_kernels(self, slot: BufferSlot) -> None:
        """Wait until a run that failed or was terminated does not use the slot's buffers any more.

        ONNX Runtime waits for the kernels that it has launched only if the run succeeds
        (InferenceSession::Run, where it cleans up the streams). The others would read the inputs
        of the slot's next batch, and write over its outputs.
        """
        try:
            self._memory.synchronize()
        except Exception as error:
            log.warning("the buffers of a run that failed are given up: %s", error)
            slot.drop_buffers()

    def _prepare(self, binding: Binding, options: onnxruntime.RunOptions) -> bool:  # noqa: ARG002
        """Return whether the binding, whose inputs are written, can run; set options for that."""
        return True

    def _execute(self, binding: Binding, options: onnxruntime.RunOptions) -> None:
        self._session.run_with_iobinding(binding.io, options)

    def _collect(self, slot: BufferSlot, binding: Binding) -> list[Array]:
        arrays: list[Array] = []
        copies: list[tuple[Array, int]] = []
        for tensor, shape, address in binding.outputs:
            array = self._pool.take(shape, tensor.dtype)
            if tensor.on_device:
                copies.append((array, address))
            else:
                ctypes.memmove(array.ctypes.data, address, array.nbytes)
            arrays.append(array)
        slot.stream.copy_out(copies)
        return arrays

    def _note_sizes(self, shapes: Shapes, output_shapes: Sequence[tuple[int, ...]]) -> None:
        tensors = zip((*self._inputs, *self._outputs), (*shapes, *output_shapes), strict=True)
        for tensor, shape in tensors:
            nbytes = _nbytes(tensor, shape)
            self._largest[tensor] = max(self._largest.get(tensor, 0), nbytes)

    def _shapes(self, inputs: Inputs) -> Shapes | None:
        if len(inputs) != len(self._inputs):
            return None  # one overrides an initialiser
        try:
            return tuple([inputs[tensor.name].shape for tensor in self._inputs])
        except KeyError:
            return None

    def _binding(self, slot: BufferSlot, shapes: Shapes) -> Binding | None:
        binding = slot.bindings.get(shapes)
        if binding is not None:
            slot.bindings.move_to_end(shapes)
            return binding
        output_shapes = self._output_shapes.get(shapes)
        if output_shapes is None:
            return None
        tensors = list(zip(self._inputs, shapes, strict=True))
        results = list(zip(self._outputs, output_shapes, strict=True))
        sizes = {tensor: _nbytes(tensor, shape) for tensor, shape in (*tensors, *results)}
        if not slot.require(sizes, self._largest):
            return None
        io = self._session.io_binding()
        views: dict[str, Array] = {}
        copies_in: list[tuple[int, Array]] = []
        for tensor, shape in tensors:
            buffer = slot.buffers[tensor.name]
            view = buffer.host[: _nbytes(tensor, shape)].view(tensor.dtype).reshape(shape)
            views[tensor.name] = view
            if tensor.on_device:
                copies_in.append((buffer.address, view))
            self._bind(io.bind_input, tensor, shape, buffer)
        outputs: list[tuple[GraphTensor, tuple[int, ...], int]] = []
        for tensor, shape in results:
            buffer = slot.buffers[tensor.name]
            self._bind(io.bind_output, tensor, shape, buffer)
            outputs.append((tensor, shape, buffer.address))
        binding = slot.bindings[shapes] = Binding(io, views, copies_in, outputs)
        while len(slot.bindings) > MAX_BINDINGS:
            slot.bindings.popitem(last=False)
        return binding

    def _bind(
        self,
        bind: Callable[..., None],
        tensor: GraphTensor,
        shape: tuple[int, ...],
        buffer: _Buffer,
    ) -> None:
        device = (self._memory.device_type, self._memory.number) if buffer.device else ("cpu", 0)
        bind(tensor.name, *device, tensor.element_type, shape, buffer.address)


def find_memory(device: Device) -> MemoryAllocator | None:
    """Return the memory of a device that runs can be bound to; None if it has none."""
    if device.kind != "cuda":
        return None
    try:
        return CudaMemory(load_driver(), device.number)
    except CudaDriverError as error:
        log.warning("%s: runs are not bound: %s", device.label, error)
        return None


def graph_tensors(
    session: onnxruntime.InferenceSession,
    element_types: Mapping[str, tuple[int, np.dtype[Any]]],
    memory: MemoryAllocator,
    host_names: Collection[str] = (),
) -> tuple[list[GraphTensor], list[GraphTensor]] | None:
    """Return the inputs and outputs of a session that can be bound; None if some cannot.

    Args:
        session: The session.
        element_types: ONNX's number of the element type and numpy's type, by the name of the input
            or output; of those with a fixed size per element.
        memory: Of the session's device.
        host_names: Tensors to keep in the memory of the host whatever ONNX Runtime says.
    """
    get_inputs = getattr(session, "get_input_memory_infos", None)
    get_outputs = getattr(session, "get_output_memory_infos", None)
    if get_inputs is None or get_outputs is None:  # onnxruntime before 1.23
        return None
    groups: list[list[GraphTensor]] = []
    for is_output, nodes, infos in (
        (False, session.get_inputs(), get_inputs()),
        (True, session.get_outputs(), get_outputs()),
    ):
        tensors: list[GraphTensor] = []
        for node, info in zip(nodes, infos, strict=True):
            if node.name not in element_types:
                return None
            on_device = memory.holds(info) and node.name not in host_names
            element_type, dtype = element_types[node.name]
            tensors.append(GraphTensor(node.name, element_type, dtype, on_device, is_output))
        groups.append(tensors)
    inputs, outputs = groups
    # An output that is an input of the graph, too, would share its buffer.
    if {tensor.name for tensor in inputs} & {tensor.name for tensor in outputs}:
        return None
    return inputs, outputs


def count_rows(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return the rows of inputs with these shapes: the size of the first one's first axis."""
    shape = next(iter(shapes), ())
    return shape[0] if shape else 1


def _nbytes(tensor: GraphTensor, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * tensor.dtype.itemsize
