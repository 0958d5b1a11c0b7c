"""Holds many sessions open, each with a step a second; prints Markdown.

    python tests/benchmarks/sessions.py [--sessions 10000] [--seconds 20] [--network lstm32]
        [--processes 1] [--folder bench]

Every session sends a sequence of its own, one step at a time, and its last answer is compared with
ONNX Runtime's for the whole sequence. The memory is that of the server before, with as many open
streams that hold no state, and with the sessions: the difference between the latter is what the
states take.
"""

import argparse
import json
import os
import select
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from http2 import Connection, encode_headers
from models import FACTORIES, Model, create_model
from processes import PREDICT, Command, RunningServer, Server, start_server
from servers import copy_model, neurona_command
from session_load import (
    CONNECTIONS,
    SessionLoad,
    SessionOutcome,
    finish_session_load,
    start_session_load,
)

from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    SessionRequest,
    SessionResponse,
    SessionStart,
)
from neurona_protos.prediction_pb2_grpc import ModelsStub
from neurona_protos.tensors import to_tensor

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
TRAJECTORIES = 64
TOLERANCE = 1e-5
PREDICT_STREAM = "/neurona.v1.Prediction/PredictStream"


@dataclass(frozen=True)
class Held:
    """What was measured.

    Attributes:
        sessions: That were open.
        seconds: For which they had steps.
        state_bytes: Of a session, as Describe says.
        step_rate: Answers per second.
        p50, p99, longest: Seconds from when a step should have been sent to its answer.
        missing: Steps without an answer.
        ended: Sessions that the server ended.
        wrong: Sessions whose last answer is not that of their whole sequence.
        refused: Sessions with a step that the server refused, such as for a full queue.
        stream_bytes: Memory of the server for each open stream without a state.
        session_bytes: The same for each session.
        server_cpu: CPU seconds of the server per second.
        load_cpu: The same of the process that made the load.
        open_seconds: Until all sessions were open.
    """

    sessions: int
    seconds: float
    state_bytes: int
    step_rate: float
    p50: float
    p99: float
    longest: float
    missing: int
    ended: int
    wrong: int
    refused: int
    stream_bytes: float
    session_bytes: float
    server_cpu: float
    load_cpu: float
    open_seconds: float


@contextmanager
def session_server(model: Model, sessions: int, processes: int = 1) -> Iterator[RunningServer]:
    """Starts a server that takes so many sessions in each of its processes."""

    def command(model: Model, folder: Path, address: str) -> Command:
        copy_model(model, folder / "models")
        limit = str(sessions + 1000)
        return neurona_command(
            folder / "models",
            address,
            *("--max-sessions", limit, "--max-streams", limit, "--processes", str(processes)),
        )

    server = Server("neurona", (PREDICT,), command)
    with (
        tempfile.TemporaryDirectory() as folder,
        start_server(server, model, Path(folder) / "server") as running,
    ):
        yield running


def describe_state_bytes(address: str, model: str) -> int:
    """Returns the bytes of the state of one row, as the server says."""
    with grpc.insecure_channel(address) as channel:
        described = ModelsStub(channel).Describe(DescribeModelRequest(model=model), timeout=20)
    return int(described.sequences.state_bytes)


def stream_memory(model: Model, streams: int, processes: int) -> float:
    """Returns the bytes that a server takes for an open stream without a state."""
    with session_server(model, streams, processes) as running:
        before = running.memory_bytes()
        connections = [Connection(running.address) for _ in range(CONNECTIONS)]
        headers = encode_headers(PREDICT_STREAM)
        for number in range(streams):
            connections[number % CONNECTIONS].open_stream(headers)
            if number % 256 == 0:
                _let_write(connections)
        for _ in range(40):
            _let_write(connections)
            time.sleep(0.05)
        more = running.memory_bytes() - before
        for one in connections:
            one.socket.close()
    return more / streams


def _let_write(connections: list[Connection]) -> None:
    for one in connections:
        one.read_frames()
        if one.wants_to_write:
            one.write_unsent()


def hold(model: Model, sessions: int, seconds: float, processes: int) -> Held:
    """Opens sessions and gives each a step a second."""
    steps = int(seconds) + 2
    features = model.row[-1]
    generator = np.random.default_rng(3)
    sequences = generator.normal(0, 1, (TRAJECTORIES, steps, features)).astype(np.float32)
    name = model.graph.input[0].name
    load = SessionLoad(
        address="",
        sessions=sessions,
        start=SessionRequest(start=SessionStart(model=model.name)).SerializeToString(),
        trajectories=[
            [
                SessionRequest(inputs=[to_tensor(name, step[None, None])]).SerializeToString()
                for step in sequence
            ]
            for sequence in sequences
        ],
        seconds=seconds,
    )
    per_stream = stream_memory(model, sessions, processes)
    with session_server(model, sessions, processes) as running:
        state_bytes = describe_state_bytes(running.address, model.name)
        before = running.memory_bytes()
        start = time.perf_counter()
        process = start_session_load(SessionLoad(**{**vars(load), "address": running.address}))
        samples = []
        while process.stdout is not None and not select.select([process.stdout], (), (), 0.25)[0]:
            samples.append((time.perf_counter(), running.cpu_seconds(), running.memory_bytes()))
            if time.perf_counter() - start > seconds + 120:
                raise RuntimeError("the load does not end")
        outcome = finish_session_load(process)
        elapsed = time.perf_counter() - start
    # The second half, when all sessions are open.
    (then, cpu_then, _), (now, cpu_now, _) = samples[len(samples) // 2], samples[-1]
    highest = max([memory for _, _, memory in samples])
    latencies = np.array(outcome.latencies)
    wrong, refused = count_wrong(model, sequences, outcome)
    return Held(
        sessions=outcome.opened,
        seconds=seconds,
        state_bytes=state_bytes,
        step_rate=len(latencies) / seconds,
        p50=float(np.quantile(latencies, 0.5)),
        p99=float(np.quantile(latencies, 0.99)),
        longest=float(latencies.max()),
        missing=outcome.sent - len(latencies),
        ended=len(outcome.ended),
        wrong=wrong,
        refused=refused,
        stream_bytes=per_stream,
        session_bytes=(highest - before) / sessions,
        server_cpu=(cpu_now - cpu_then) / (now - then),
        load_cpu=outcome.cpu_seconds / elapsed,
        open_seconds=outcome.open_seconds,
    )


def count_wrong(model: Model, sequences: np.ndarray, outcome: SessionOutcome) -> tuple[int, int]:
    """Checks the last answer of each session against the whole sequence.

    Returns:
        The sessions with another answer, and those with a step that was refused, such as for a
        full queue.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model.file)
    name = model.graph.input[0].name
    expected = {}
    wrong = refused = 0
    for number, (answer, steps) in outcome.answers.items():
        key = number % len(sequences), steps
        response = SessionResponse.FromString(answer)
        if response.HasField("error") or response.steps != steps:
            refused += 1
            continue
        if key not in expected:
            (expected[key],) = session.run(None, {name: sequences[key[0]][None, :steps]})
        row = response.response.classification.rows[0]
        values = expected[key][0, list(row.indices)]
        wrong += not np.allclose(row.probabilities, values, rtol=0, atol=TOLERANCE)
    return wrong, refused


def table(held: Held, server: str) -> str:
    """Returns the measurements of a server as Markdown, and what was expected of them."""
    predicted = held.stream_bytes + held.state_bytes
    return (
        f"# Sessions\n\n{server}; {os.cpu_count()} CPUs, load average "
        f"{os.getloadavg()[0]:.1f}.\n\n"
        f"| | |\n|---|---|\n"
        f"| sessions open | {held.sessions:,}, after {held.open_seconds:.1f} s |\n"
        f"| steps answered | {held.step_rate:,.0f} per second for {held.seconds:.0f} s |\n"
        f"| p50, p99, longest | {1e3 * held.p50:.1f}, {1e3 * held.p99:.1f}, "
        f"{1e3 * held.longest:.0f} ms |\n"
        f"| steps without an answer, sessions ended | {held.missing}, {held.ended} |\n"
        f"| sessions with a wrong answer, with a refused step | {held.wrong}, {held.refused} |\n"
        f"| CPUs: server, load | {held.server_cpu:.2f}, {held.load_cpu:.2f} |\n"
        f"| CPU time of the server for a step | {1e6 * held.server_cpu / held.step_rate:.0f} µs |\n"
        f"| state of a session | {held.state_bytes:,} bytes |\n"
        f"| an open stream without a state | {held.stream_bytes / 1024:.1f} KiB |\n"
        f"| predicted: both | {predicted / 1024:.1f} KiB, "
        f"{predicted * held.sessions / MIB:.0f} MiB in all |\n"
        f"| measured | {held.session_bytes / 1024:.1f} KiB, "
        f"{held.session_bytes * held.sessions / MIB:.0f} MiB in all |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--network", choices=FACTORIES, default="lstm32")
    parser.add_argument("--processes", type=int, default=1, help="of the server")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench", help="for results")
    arguments = parser.parse_args()
    model = create_model(arguments.network, arguments.folder / "models")
    held = hold(model, arguments.sessions, arguments.seconds, arguments.processes)
    text = table(held, f"{arguments.network}, processes: {arguments.processes}")
    (arguments.folder / "sessions.md").write_text(text)
    (arguments.folder / "sessions.json").write_text(json.dumps(vars(held), indent=1) + "\n")
    print(text)
    if held.ended or held.wrong or held.refused or held.missing:
        sys.exit("steps were lost or wrong")


if __name__ == "__main__":
    main()
