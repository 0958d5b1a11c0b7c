"""Runs sessions of a rewritten recurrent graph as those of the file.

Callers of `Session.run` may leave out the lengths and the states, as all code does that knows the
file only: then all rows have all steps, and begin with zeros.
"""

from typing import Any

import numpy as np
import onnxruntime

from neurona_server.batching.request import Array, Inputs
from neurona_server.models.onnx.runtime import quiet_options
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm

_MAX_CACHED = 256
"""Arrays of full lengths, by rows and steps, that are kept."""


class SequenceAdapter:
    """Runs sessions of a rewritten graph with inputs of the file."""

    def __init__(self, session: onnxruntime.InferenceSession, form: SequenceForm) -> None:
        """Make it for all sessions of a graph, of which one is given.

        Args:
            session: A session with the graph.
            form: What the graph takes.
        """
        self.form = form
        names = [output.name for output in session.get_outputs()]
        self._all_outputs = names
        self._file_outputs = names[:-1] if form.has_state else names
        self._sequences, self._axis = next(iter(form.time_axes.items()))
        self._full_lengths: dict[tuple[int, int], Array] = {}
        self._zeros = np.zeros((0, form.state_size), np.float32)

    def run(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Inputs,
        options: onnxruntime.RunOptions | None = None,
    ) -> list[Any]:
        """Return the outputs of the file and, for inputs with STATE, the next state as the last."""
        names = self._all_outputs if STATE in inputs else self._file_outputs
        outputs: list[Any] = session.run(names, self.complete(inputs), options)
        return outputs

    def complete(self, inputs: Inputs) -> Inputs:
        """Return the inputs with all steps as lengths and zeros as states, if they have none."""
        shape = inputs[self._sequences].shape
        feeds = dict(inputs)
        if LENGTHS not in feeds:
            feeds[LENGTHS] = self._all_steps(shape[0], shape[self._axis])
        if self.form.has_state and STATE not in feeds:
            feeds[STATE] = self._zero_state(shape[0])
        return feeds

    def _all_steps(self, rows: int, steps: int) -> Array:
        lengths = self._full_lengths.get((rows, steps))
        if lengths is None:
            if len(self._full_lengths) >= _MAX_CACHED:
                self._full_lengths = {}  # another thread may go on with the former one
            lengths = self._full_lengths[rows, steps] = np.full(rows, steps, np.int32)
        return lengths

    def _zero_state(self, rows: int) -> Array:
        zeros = self._zeros
        if len(zeros) < rows:
            zeros = self._zeros = np.zeros((rows, self.form.state_size), np.float32)
        return zeros[:rows]


class SequenceGraph:
    """A rewritten graph that is loaded, before a session of the file uses it.

    Attributes:
        session: The session of ONNX Runtime.
        adapter: Runs it with inputs of the file.
    """

    def __init__(self, session: onnxruntime.InferenceSession, form: SequenceForm) -> None:
        """Hold a session of a graph that takes what the form says."""
        self.session = session
        self.adapter = SequenceAdapter(session, form)

    def run(self, inputs: Inputs) -> list[Any]:
        """Run it as `Session.run` does."""
        return self.adapter.run(self.session, inputs, quiet_options())
