"""sequence_batching of a config.pbtxt. Triton's own words name the fields."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.stateful_models import flag, save_accumulator, state

from neurona_protos import model_config_pb2 as triton
from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import LoadError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.triton_config import read_triton_config
from neurona_server.sequences.implicit_state import initial_states, next_states, step_inputs
from neurona_server.sequences.sequence_batching import (
    ControlInput,
    ControlKind,
    SequenceBatching,
    StateTensor,
)
from neurona_server.telemetry.metrics import Metrics

INT32 = DataType.DATA_TYPE_INT32
CORRID = flag("CORRID", "data_type: TYPE_UINT64")


@pytest.fixture
def read(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()

    def read(batching, more=""):
        return read_triton_config(
            folder, f"max_batch_size: 4 sequence_batching {{ {batching} }} {more}"
        )

    read.folder = folder
    return read


def test_the_declared_tensors(read):
    bool_flag = flag("END", "bool_false_true: [ true, false ]")
    settings = read(f"{flag('START')} {bool_flag} {CORRID} {state(dims='2, -1')}")
    assert settings.sequences == SequenceBatching(
        (
            ControlInput("START", ControlKind.START, INT32, (0, 1)),
            ControlInput("END", ControlKind.END, DataType.DATA_TYPE_BOOL, (True, False)),
            ControlInput("CORRID", ControlKind.CORRID, DataType.DATA_TYPE_UINT64),
        ),
        (StateTensor("PAST", "NEXT", INT32, (2, 1)),),
        None,
        frozenset({"NEXT"}),
    )
    assert settings.sequences.hidden_inputs == {"START", "END", "CORRID", "PAST"}
    assert settings.batched is True
    assert settings.ignored == ()


@pytest.mark.parametrize(
    ("strategy", "delay", "sizes", "preserves", "ignored"),
    [
        ("", 0, (), False, ()),
        (
            "direct { max_queue_delay_microseconds: 2000 minimum_slot_utilization: 0.5 }",
            2,
            (),
            False,
            ("sequence_batching.direct.minimum_slot_utilization",),
        ),
        (
            "oldest { max_queue_delay_microseconds: 3000 preferred_batch_size: [ 4, 2 ] "
            "max_candidate_sequences: 9 preserve_ordering: true }",
            3,
            (2, 4),
            True,
            ("sequence_batching.oldest.max_candidate_sequences",),
        ),
    ],
)
def test_strategies_say_how_batches_wait(read, strategy, delay, sizes, preserves, ignored):
    settings = read(f"max_sequence_idle_microseconds: 1500000 {strategy}")
    assert (settings.max_delay_ms, settings.preferred_batch_rows) == (delay, sizes)
    assert (settings.preserve_order, settings.ignored) == (preserves, ignored)
    assert settings.sequences.idle_seconds == 1.5


def initial(more, dims="1", data_type="TYPE_INT32"):
    return state(
        more=f'initial_state {{ name: "n" data_type: {data_type} dims: [ {dims} ] {more} }}'
    )


@pytest.mark.parametrize(
    ("batching", "text"),
    [
        ("iterative_sequence: true", "iterative_sequence is not supported: requests that the"),
        (
            "max_sequence_idle_microseconds: 10000000000001",
            "max_sequence_idle_microseconds is 10000000000001 (expected at most 10000000000000)",
        ),
        (
            "oldest { preferred_batch_size: 5 }",
            "sequence_batching.oldest.preferred_batch_size has 5 (expected sizes from 1 to",
        ),
        (
            "direct { max_queue_delay_microseconds: 100000000001 }",
            "sequence_batching.direct.max_queue_delay_microseconds is 100000000001 (expected at",
        ),
        ("control_input [ {} ]", "sequence_batching.control_input[0] has no name"),
        ('control_input [ { name: "x" } ]', "control_input[0] has 0 controls (expected 1)"),
        (
            'control_input [ { name: "x" control [ {}, {} ] } ]',
            "control_input[0] has 2 controls (expected 1)",
        ),
        (
            'control_input [ { name: "x" control [ { kind: 7 } ] } ]',
            "control[0].kind is 7, an unknown kind",
        ),
        (flag("START", ""), "control[0] has no two values (expected one of int32_false_true,"),
        (flag("START", "int32_false_true: [ 0 ]"), "has no two values"),
        (
            flag("START", "int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]"),
            "has no two values",
        ),
        (flag("CORRID", ""), "control[0] has no data_type of ids (expected only one of TYPE_UINT"),
        (flag("CORRID", "data_type: TYPE_FP32"), "has no data_type of ids"),
        (f"{flag('START')} {flag('START')}", "control_input[1].name is 'START', as that of anoth"),
        (
            flag("START") + " " + flag("START").replace('"START"', '"S"'),
            "control_input[1].control[0].kind is CONTROL_SEQUENCE_START, as another's",
        ),
        ("state [ {} ]", "sequence_batching.state[0] has no input_name"),
        ('state [ { input_name: "x" } ]', "state[0] has no output_name"),
        (
            'state [ { input_name: "x" output_name: "y" } ]',
            "sequence_batching.state[0] has no data_type",
        ),
        (state(dims=0), "state[0].dims has 0 (expected -1 or at least 1)"),
        (state(dims="100000, 100000"), "dims has 40000000000 bytes (expected at most 67108864)"),
        (f"{state()} {state()}", "state[1].input_name is 'PAST', as another's"),
        (initial(""), "initial_state[0] has no data (expected zero_data or data_file)"),
        (initial("zero_data: false"), "has no data (expected zero_data or data_file)"),
        (
            initial("zero_data: true", data_type="TYPE_FP32"),
            "data_type is TYPE_FP32 (expected TYPE_INT32, that of the state)",
        ),
        (initial("zero_data: true", dims="2"), "dims is [2] (expected fixed sizes of [1])"),
        (initial("zero_data: true", dims="-1"), "dims is [-1] (expected fixed sizes of [1])"),
        (initial('data_file: "none"'), "data_file: the file 'none' "),
        (initial('data_file: "../config.pbtxt"'), "data_file: the file name '../config.pbtxt'"),
        (initial('data_file: "short"'), "data_file: "),
        (
            state(more="initial_state [ { zero_data: true }, { zero_data: true } ]"),
            "state[0] has 2 initial states (expected 1)",
        ),
    ],
)
def test_invalid_configs(read, batching, text):
    (read.folder / "initial_state").mkdir()
    (read.folder / "initial_state" / "short").write_bytes(b"abc")
    with pytest.raises(LoadError) as caught:
        read(batching)
    assert str(caught.value).startswith("config.pbtxt: ")
    assert text in str(caught.value)


def test_callers_cannot_send_what_the_server_fills_in(read):
    with pytest.raises(LoadError, match="is 'PAST', an input of sequence_batching"):
        read(state(), 'input [ { name: "PAST" } ]')


@pytest.mark.parametrize(
    ("batching", "text"),
    [
        (f"{flag('START')} {state().replace('PAST', 'NONE')}", "has an input 'NONE'; the graph's"),
        (f"{flag('START')} {state().replace('NEXT', 'NONE')}", "has an output 'NONE'; the graph's"),
        (f"{flag('START')} {state('TYPE_FP32')}", "declares the input 'PAST' as FLOAT of shape"),
        (f"{flag('START')} {state(dims=2)}", "declares the input 'PAST' as INT32 of shape [?, 2]"),
        (
            flag("START", "fp32_false_true: [ 0, 1 ]") + state(),
            "declares the input 'START' as FLOAT of shape [?, 1]",
        ),
        (f"{flag('READY')} {state()}", "has an input 'READY'; the graph's inputs are"),
    ],
)
def test_configs_that_the_graph_contradicts(tmp_path, batching, text):
    folder = save_accumulator(tmp_path / "m", batching=batching)
    settings = read_triton_config(folder)
    source = ModelSource("m", 1, folder / "1" / "model.onnx", settings=settings)
    with pytest.raises(LoadError) as caught:
        Model(source, ModelOptions(BatchPolicy()), Metrics(CollectorRegistry()))
    assert text in str(caught.value)


def test_the_inputs_of_a_step():
    controls = tuple(
        ControlInput(kind.name, kind, INT32, (-1, 1))
        for kind in (ControlKind.START, ControlKind.END, ControlKind.READY)
    )
    text = ControlInput("CORRID", ControlKind.CORRID, DataType.DATA_TYPE_STRING)
    data = np.arange(2, dtype="<i4").tobytes()
    batching = SequenceBatching(
        (*controls, text), (StateTensor("PAST", "NEXT", INT32, (2,), data),)
    )
    states = initial_states(batching, 3)
    inputs = step_inputs(batching, 7, states, 3, starts=True, ends=False)
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "PAST": [[0, 1]] * 3,
        "START": [[1]] * 3,
        "END": [[-1]] * 3,
        "READY": [[1]] * 3,
        "CORRID": [["7"]] * 3,
    }
    batch = np.arange(20, dtype=np.int32).reshape(10, 2)
    (after,) = next_states(batching, {"NEXT": batch[2:5]})
    assert (after == batch[2:5]).all()
    assert after.base is None  # it does not keep the batch
    (alone,) = initial_states(batching, None)
    assert alone.tolist() == [0, 1]


def test_the_kinds_are_those_of_the_schema():
    names = set(triton.ModelSequenceBatching.Control.Kind.keys())
    assert names == {kind.value for kind in ControlKind}
