"""Chooses how sequences of different lengths share the runs of a recurrent model.

The choice is between whole sequences that are padded (ragged) and chunks of a few steps between
which sequences join and leave (cellular), by what runs of the model take and what is done between
two of them.
"""

import time
from functools import partial
from typing import NamedTuple

import numpy as np

from neurona_protos.prediction_pb2 import SequenceMethod
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.request import Outputs, Request
from neurona_server.errors import DeviceLostError, NeuronaError
from neurona_server.models.batching_check import Run
from neurona_server.models.signature import Signature
from neurona_server.models.synthetic_inputs import make_inputs
from neurona_server.sequences.cellular import (
    INITIAL_OVERHEAD,
    MergeOfAllLengths,
    SequenceSlots,
    choose_chunk,
)
from neurona_server.sequences.cost import SequenceCostModel
from neurona_server.sequences.form import SequenceForm
from neurona_server.sequences.ragged import LengthGroup, LengthGrouper
from neurona_server.telemetry.metrics import ModelMetrics

EQUAL_LENGTHS = SequenceMethod.SEQUENCE_METHOD_EQUAL_LENGTHS
RAGGED = SequenceMethod.SEQUENCE_METHOD_RAGGED
CELLULAR = SequenceMethod.SEQUENCE_METHOD_CELLULAR

BY_OPTION = "by the option sequence_batching"

TRIAL_ROWS = 32
TRIAL_STEPS = 64
TRIAL_ROUNDS = 3
"""Sequences that run in chunks before the model serves, and how often."""

BATCHER_SHARE = 2.0
"""What is done between two runs of chunks, relative to what the slots take for it: the batcher,
its metrics and the scheduler of the devices have their part."""

TYPICAL_STEPS = 64
"""Steps of a sequence, for the choice: the mean of a log-normal mix with median 40 and p99 400."""

RAGGED_PADDING = 0.15
"""Part of the steps of full ragged batches that is padding, with that mix: lengths in a batch are
similar, and differ by up to a fifth or more."""

MIN_RATE = 0.75
"""Of full cellular batches, relative to that of ragged ones, from which cellular batching is
chosen. An LSTM with 128 units has 0.7: for a log-normal mix of lengths both had about the same rate
and 99th percentile there, but for sequences of 7 or 16 steps cellular batching lost a third of the
rate of plain padding."""


class SequenceBatchingChoice(NamedTuple):
    """How sequences share runs."""

    method: SequenceMethod
    reason: str = ""
    """Why not in another way, where that is not evident."""

    chunk_steps: int = 0
    """The steps of a run of full batches, if it is cellular."""

    def __str__(self) -> str:
        name = SequenceMethod.Name(self.method).removeprefix("SEQUENCE_METHOD_")
        name = name.lower().replace("_", " ")
        chunk = f" in chunks of about {self.chunk_steps} steps" if self.chunk_steps else ""
        return f"{name}{chunk}" + (f" ({self.reason})" if self.reason else "")


def choose_sequence_batching(
    batcher: Batcher,
    form: SequenceForm,
    signature: Signature,
    metrics: ModelMetrics,
    option: str,
    run: Run,
) -> SequenceBatchingChoice:
    """Choose how the sequences of a model share runs, and make its batcher do so.

    Args:
        batcher: Of the model, which has measured its runs and batches ragged sequences if it can.
        form: How the model reads sequences.
        signature: Of the model.
        metrics: Count the steps.
        option: auto, cellular, ragged or equal-lengths.
        run: Runs the model.

    Raises:
        DeviceLostError: The device does not work any more.
    """
    if not form.is_ragged:
        return SequenceBatchingChoice(EQUAL_LENGTHS)
    if option == "equal-lengths":
        names = [spec.name for spec in signature.inputs]
        signature.group_sequences = LengthGrouper(form, names, is_mixed=False)
        batcher.queue.merge = None
        return SequenceBatchingChoice(EQUAL_LENGTHS, BY_OPTION)
    choice = SequenceBatchingChoice(RAGGED, BY_OPTION)
    if option != "ragged":
        choice = _choose_ragged_or_cellular(batcher, form, signature, option, run)
    costs = batcher.cost_model
    if choice.method == CELLULAR and isinstance(costs, SequenceCostModel):
        batcher.use_slots(
            partial(
                SequenceSlots,
                form,
                costs.predict,
                costs.batch_sizes[-1],
                batch_sizes=costs.batch_sizes,
                on_run=metrics.sequences.record_run,
                on_join=costs.note_sequence,
            )
        )
        batcher.queue.merge = MergeOfAllLengths()
    return choice


def _choose_ragged_or_cellular(
    batcher: Batcher, form: SequenceForm, signature: Signature, option: str, run: Run
) -> SequenceBatchingChoice:
    if reason := _why_not_cellular(batcher, form, signature):
        return SequenceBatchingChoice(RAGGED, f"not cellular: {reason}")
    if option == "cellular":
        chunk, _ = compare_rates(batcher, signature, INITIAL_OVERHEAD)
        return SequenceBatchingChoice(CELLULAR, BY_OPTION, chunk)
    max_rows = batcher.cost_model.batch_sizes[-1]
    try:
        slots = SequenceSlots(form, batcher.cost_model.predict, max_rows)
        overhead = measure_overhead(slots, signature, run, min(TRIAL_ROWS, max_rows))
    except DeviceLostError:
        raise
    except Exception as error:  # values that the model does not take, or too little memory
        return SequenceBatchingChoice(RAGGED, f"not cellular: a trial failed: {error}")
    chunk, ratio = compare_rates(batcher, signature, overhead)
    evidence = f"cellular batches have {ratio:.2f} of the rate of ragged ones"
    if ratio < MIN_RATE:
        return SequenceBatchingChoice(RAGGED, evidence)
    return SequenceBatchingChoice(CELLULAR, evidence, chunk)


def compare_rates(batcher: Batcher, signature: Signature, overhead: float) -> tuple[int, float]:
    """Return the steps of chunks of cellular batches, and their rate relative to ragged ones.

    Both have as many rows as their rates are highest with.

    Args:
        batcher: Of the model, which has measured its runs.
        signature: Of the model.
        overhead: Seconds between two runs of chunks.
    """
    predict = batcher.cost_model.predict
    group = _trial_request(signature).group
    base = group.base if isinstance(group, LengthGroup) else group
    best, chunk, ragged_rate = 0.0, 0, 0.0
    for rows in batcher.cost_model.batch_sizes:
        # Rows are anywhere in their sequences: what they have left is spread evenly.
        left = np.ceil((np.arange(rows) + 0.5) * (TYPICAL_STEPS / rows)).astype(np.int64)
        steps, rate = choose_chunk(left, base, predict, overhead)
        if rate > best:
            best, chunk = rate, steps
        whole = predict(rows, LengthGroup(base, TYPICAL_STEPS)) + overhead
        ragged_rate = max(ragged_rate, rows * TYPICAL_STEPS * (1 - RAGGED_PADDING) / whole)
    return chunk, best / ragged_rate


def measure_overhead(slots: SequenceSlots, signature: Signature, run: Run, rows: int) -> float:
    """Return the seconds between two runs of chunks, with sequences of synthetic values.

    Args:
        slots: Where they run.
        signature: Of the model.
        run: Runs it.
        rows: The number of sequences.
    """
    best = float("inf")
    for _ in range(TRIAL_ROUNDS):
        requests = [_trial_request(signature) for _ in range(rows)]
        started = time.perf_counter()
        run_seconds, runs = 0.0, 0
        slots.add(requests)
        while batch := slots.next_requests(rows):
            slots.group(batch)
            inputs = slots.join(batch, 0, None)
            run_started = time.perf_counter()
            outputs = run(inputs)
            run_seconds += time.perf_counter() - run_started
            slots.split(outputs, batch, 0)
            slots.pop_ended()
            runs += 1
        best = min(best, (time.perf_counter() - started - run_seconds) / runs)
    return BATCHER_SHARE * best


def _why_not_cellular(batcher: Batcher, form: SequenceForm, signature: Signature) -> str:
    if not form.has_state:
        return form.stateless_reason or "the model has no state"
    if form.lengths_input:
        return f"callers send lengths in the input {form.lengths_input!r}"
    if signature.optional:
        return "the model has inputs that callers may leave out"
    if not isinstance(batcher.cost_model, SequenceCostModel) or not batcher.cost_model.seconds:
        return "its runs could not be measured before the first request"
    return ""


class _TrialRequest(Request):
    """A request that nobody waits for."""

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Do nothing."""


def _trial_request(signature: Signature) -> _TrialRequest:
    inputs = make_inputs(signature.inputs, 1, TRIAL_STEPS)
    types = {spec.name: (spec.dtype, inputs[spec.name].shape) for spec in signature.inputs}
    return _TrialRequest(inputs, 1, signature.group(types))
