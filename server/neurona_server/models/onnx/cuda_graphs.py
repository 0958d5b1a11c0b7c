"""Runs of a session as CUDA graphs: all kernels of a run are launched by one call.

ONNX Runtime captures the kernels of a run (provider option enable_cuda_graph) under a number that
the run's options have (gpu_graph_id), and launches them again in later runs with that number. What
follows from how it does that (onnxruntime's cuda_execution_provider.cc, cuda_graph.cc):

- The addresses of inputs and outputs are those of the captured run: see bindings.py.
- A graph has the values that kernels were given by the host, such as the lengths of sequences. So
  it is used for the same values only.
- Each thread has graphs of its own, under the same numbers, which are freed with the session. So a
  number stands for a thread too, and their number is limited.
- All runs of the session share one stream and one pool of memory, and cannot be concurrent. The
  session is used for nothing else, and its memory is never given back to the device, since graphs
  have addresses in it.

Written from the specification, and tested with a stand-in on the CPU provider; not run on a GPU
yet.
"""

import itertools
import threading
from collections.abc import Collection, Sequence

import onnxruntime

from neurona_server.models.onnx.bindings import (
    CAPTURE_SECONDS,
    Binding,
    BoundRunner,
    GraphTensor,
    MemoryAllocator,
    capture_lock,
)

MAX_GRAPHS = 256
"""Graphs of a session, of all threads and slots together. One takes memory of the device for each
kernel."""

RUNS_BEFORE_CAPTURE = 3
"""Batches of the same shapes, and values for the host, before they are captured: most of many
different ones never come again."""

MAX_HOST_VALUES = 4096
"""Bytes of values for the host; a run with more is not captured."""

MAX_COUNTED_VALUES = 1024
"""Values that were not captured yet of which the runs are counted, for each set of shapes."""

_GRAPH_ID = "gpu_graph_id"

_FATAL = 4  # log_severity_level

_threads = threading.local()
_thread_numbers = itertools.count()


def _thread_number() -> int:
    """Return a number that no other thread has or had: identifiers of threads come again."""
    number: int | None = getattr(_threads, "number", None)
    if number is None:
        number = _threads.number = next(_thread_numbers)
    return number


class GraphRunner(BoundRunner):
    """Runs a session that was loaded with enable_cuda_graph.

    `run` returns None for what is not captured, and not to be captured now.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        memory: MemoryAllocator,
        inputs: Sequence[GraphTensor],
        outputs: Sequence[GraphTensor],
        host_values: Collection[str] = (),
    ) -> None:
        """Capture nothing yet.

        Args:
            session: The session.
            memory: Of the device that it runs on.
            inputs: All required inputs of the graph, in its order.
            outputs: All outputs, in its order.
            host_values: The inputs whose values kernels get from the host. Inputs that the graph
                wants in the host's memory are among them anyway.
        """
        super().__init__(session, memory, inputs, outputs)
        self._host_values = tuple(
            tensor.name for tensor in inputs if tensor.name in host_values or not tensor.on_device
        )
        self._run_lock = threading.Lock()
        self._numbers = itertools.count(1)  # 0 is ONNX Runtime's default, -1 means no graph
        self._graphs = 0
        self.eager = False
        """Whether to capture at the first run, for measurements."""

    @property
    def graphs(self) -> int:
        """Graphs captured so far."""
        return self._graphs

    def _prepare(self, binding: Binding, options: onnxruntime.RunOptions) -> bool:
        binding.uncaptured = None  # of a run whose copies failed
        views = binding.views
        values = b"".join([views[name].tobytes() for name in self._host_values])
        key = (_thread_number(), values)
        number = binding.graph_ids.get(key)
        if number is not None:
            options.add_run_config_entry(_GRAPH_ID, str(number))
        elif self._is_capture_due(binding, key):
            binding.uncaptured = key
        else:
            return False
        return True

    def _execute(self, binding: Binding, options: onnxruntime.RunOptions) -> None:
        key, binding.uncaptured = binding.uncaptured, None
        if key is None:
            # ONNX Runtime launches a graph on the calling thread's current device, which may be
            # another one that the thread has run a batch on since.
            with self._run_lock, self._memory.activate():
                super()._execute(binding, options)
            return
        # With options of its own, since a run that is terminated could leave a part of a graph. Its
        # number is not used again after an error, either.
        number = next(self._numbers)
        capture_options = onnxruntime.RunOptions()
        capture_options.log_severity_level = _FATAL
        capture_options.add_run_config_entry(_GRAPH_ID, str(number))
        if not capture_lock.acquire(timeout=CAPTURE_SECONDS):
            raise TimeoutError("another CUDA graph is being captured")
        try:
            with self._run_lock:
                super()._execute(binding, capture_options)  # runs, captures and launches the graph
        finally:
            capture_lock.release()
        binding.graph_ids[key] = number

    def _is_capture_due(self, binding: Binding, key: tuple[int, bytes]) -> bool:
        if self._graphs >= MAX_GRAPHS or len(key[1]) > MAX_HOST_VALUES:
            return False
        if not self.eager:
            if capture_lock.locked():  # later, rather than to wait
                return False
            counts = binding.graph_counts
            count = counts.pop(key, 0) + 1
            if count < RUNS_BEFORE_CAPTURE:
                if len(counts) >= MAX_COUNTED_VALUES:
                    counts.clear()
                counts[key] = count
                return False
        self._graphs += 1
        return True
