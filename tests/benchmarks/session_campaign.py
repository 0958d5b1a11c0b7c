"""Checks every answer of interleaved sequences whose ids are easily mistaken for each other.

    python tests/benchmarks/session_campaign.py [--steps 1000000] [--folder bench]

Sequences are sent step by step with ModelInfer: integers and strings as ids, among them the same
digits as both, ids that end with a blank or differ in what cannot be seen, and ids that are used
again at once by a sequence of other values. Each answer is compared with ONNX Runtime's for the
whole sequence so far. Now and then a step comes that must fail: of a sequence that has ended or
never began.
"""

import argparse
import json
import random
import select
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from http2 import OK, Connection, encode_headers, encode_message, prepare_call
from models import Model, create_model
from sessions import session_server

from neurona_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse

ROOT = Path(__file__).parents[2]
INFER = "/inference.GRPCInferenceService/ModelInfer"
TRAJECTORIES, LONGEST = 64, 40
ACTIVE = 512
CONNECTIONS = 8
TOLERANCE = 1e-5
BAD_SHARE = 0.01
"""Of steps that must fail."""

Id = int | str


def confusing_ids() -> Iterator[Id]:
    """Yields different ids that a careless key would take for each other."""
    integers = [*range(1, 200), 2**31, 2**31 - 1, 2**32, 2**32 + 1, 2**53 + 1, 2**63 - 1]
    for number in integers:
        yield number
        text = str(number)
        yield from (text, f"0{text}", f"{text} ", f" {text}", f"{text}.0", f"+{text}", f"{text}\n")
        yield from (f"{text}\u200b", f"{text}\u0000", "\uff10" + text, f"-{text}", f"lstm/{text}")
    yield from ("None", "null", "true", "nan", "__class__", "../1", "{}", "1:2", "1|start")
    yield from ("é", "e\u0301", "\ufb01", "fi", "ß", "ss", "A", "a", "\u0410")
    yield from ("x" * 127, "x" * 128)


@dataclass
class Sequence:
    """A sequence that is being sent: its id, its values, its steps so far and in the end."""

    id: Id
    trajectory: int
    length: int
    steps: int = 0


class Campaign:
    """Keeps many sequences going, a step of each at a time, and checks each answer."""

    def __init__(self, model: Model, address: str, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._random = random.Random(seed)  # noqa: S311 a repeatable load
        self._values = make_trajectories(model)
        self._expected = expected_outputs(model, self._values)
        self._steps = [
            [_step_bytes(model, step) for step in trajectory] for trajectory in self._values
        ]
        self._free_ids = list(confusing_ids())
        self._headers = encode_headers(INFER)
        self._connections = [Connection(address) for _ in range(CONNECTIONS)]
        self._sequences: dict[int, Sequence] = {}
        """By number of the request that is unanswered; of length 0 for a step that must fail."""
        self._requests = 0

    def run(self, steps: int) -> None:
        """Sends so many steps and waits for the answers.

        Raises:
            RuntimeError: An answer does not come.
        """
        while len(self._sequences) < min(ACTIVE, 1 + steps // LONGEST):
            self._begin()
        by_socket = {one.socket: one for one in self._connections}
        last_answer = time.perf_counter()
        while self._sequences:
            writers = [one.socket for one in self._connections if one.wants_to_write]
            readable, writable, _ = select.select(by_socket, writers, (), 1.0)
            for ready in writable:
                by_socket[ready].write_unsent()
            for ready in readable:
                for item, status, _, answer in by_socket[ready].read():
                    assert isinstance(item, int)
                    last_answer = time.perf_counter()
                    self._answer(item, status, answer, is_last=self.counts["steps"] >= steps)
            if time.perf_counter() - last_answer > 30:
                raise RuntimeError(f"{len(self._sequences)} steps have no answer")
        for one in self._connections:
            one.socket.close()

    def _begin(self) -> None:
        index = self._random.randrange(len(self._free_ids))
        self._free_ids[index], self._free_ids[-1] = self._free_ids[-1], self._free_ids[index]
        trajectory = self._random.randrange(TRAJECTORIES)
        length = self._random.randint(1, LONGEST)
        self._send_next(Sequence(self._free_ids.pop(), trajectory, length))

    def _send_next(self, sequence: Sequence) -> None:
        step = sequence.steps
        self._send(
            sequence,
            self._steps[sequence.trajectory][step],
            sequence.id,
            start=step == 0,
            end=step + 1 == sequence.length,
        )

    def _send_bad(self) -> None:
        """Sends a step of a sequence that is not open, which must change nothing."""
        free_id = self._free_ids.pop(0)  # the one free for longest, and not begun meanwhile
        self._send(Sequence(free_id, 0, 0), self._steps[0][0], free_id)

    def _send(
        self,
        sequence: Sequence,
        step: bytes,
        id: Id,  # noqa: A002 the protocol's word
        *,
        start: bool = False,
        end: bool = False,
    ) -> None:
        parameters = ModelInferRequest()
        if isinstance(id, int):
            parameters.parameters["sequence_id"].int64_param = id
        else:
            parameters.parameters["sequence_id"].string_param = id
        parameters.parameters["sequence_start"].bool_param = start
        parameters.parameters["sequence_end"].bool_param = end
        self._requests += 1
        self._sequences[self._requests] = sequence
        # Serialized messages one after the other are merged.
        message = encode_message(step + parameters.SerializeToString())
        connection = self._connections[self._requests % CONNECTIONS]
        connection.call(prepare_call(self._headers, message), self._requests)

    def _answer(self, item: int, status: int, answer: bytes, *, is_last: bool) -> None:
        sequence = self._sequences.pop(item)
        if not sequence.length:
            self.counts["steps that must fail"] += 1
            self._free_ids.append(sequence.id)
            if status == OK:
                self._note("a step of no open sequence had an answer")
            return
        self.counts["steps"] += 1
        sequence.steps += 1
        if status != OK:
            self._note(f"step {sequence.steps} of {sequence.id!r} ended with status {status}")
            is_end = True
        else:
            values = np.frombuffer(
                ModelInferResponse.FromString(answer).raw_output_contents[0], np.float32
            )
            expected = self._expected[sequence.trajectory, sequence.steps - 1]
            if not np.abs(values - expected).max() <= TOLERANCE:
                self._note(f"step {sequence.steps} of {sequence.id!r} has a wrong answer")
            is_end = sequence.steps == sequence.length
        if not is_end:
            self._send_next(sequence)
            return
        self.counts["sequences"] += 1
        self._free_ids.append(sequence.id)
        if is_last:
            return
        if self._random.random() < BAD_SHARE * LONGEST / 2:
            self._send_bad()
        if self._random.random() < 0.5:  # the same id again, at once
            sequence = Sequence(
                self._free_ids.pop(),
                self._random.randrange(TRAJECTORIES),
                self._random.randint(1, LONGEST),
            )
            self._send_next(sequence)
        else:
            self._begin()

    def _note(self, problem: str) -> None:
        self.counts["problems"] += 1
        if len(self.problems) < 20:
            self.problems.append(problem)


def make_trajectories(model: Model) -> np.ndarray:
    """Returns values of shape (TRAJECTORIES, LONGEST, features); one has huge ones."""
    generator = np.random.default_rng(4)
    values = generator.normal(0, 1, (TRAJECTORIES, LONGEST, model.row[-1])).astype(np.float32)
    values[0] *= 1e30  # saturates all gates, and would be seen in any other sequence
    return values


def expected_outputs(model: Model, values: np.ndarray) -> np.ndarray:
    """Returns the outputs after each step, of shape (TRAJECTORIES, LONGEST, classes)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.file)
    name = model.graph.input[0].name
    prefixes = [
        session.run(None, {name: values[:, : steps + 1]})[0] for steps in range(values.shape[1])
    ]
    return np.stack(prefixes, axis=1)


def _step_bytes(model: Model, step: np.ndarray) -> bytes:
    request = ModelInferRequest(model_name=model.name, raw_input_contents=[step.tobytes()])
    request.inputs.add(name=model.graph.input[0].name, datatype="FP32", shape=(1, 1, len(step)))
    return request.SerializeToString()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "bench", help="for results")
    arguments = parser.parse_args()
    model = create_model("lstm", arguments.folder / "models")
    with session_server(model, 10_000) as running:
        campaign = Campaign(model, running.address, arguments.seed)
        start = time.perf_counter()
        campaign.run(arguments.steps)
        seconds = time.perf_counter() - start
    result = {**campaign.counts, "seconds": round(seconds, 1), "problems": campaign.problems}
    (arguments.folder / "session_campaign.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{campaign.counts['steps']:,} steps of {campaign.counts['sequences']:,} sequences and "
        f"{campaign.counts['steps that must fail']:,} that must fail, in {seconds:.0f} s: "
        f"{campaign.counts['problems']} wrong answers or statuses"
    )
    if campaign.counts["problems"]:
        sys.exit("\n".join(campaign.problems))


if __name__ == "__main__":
    main()
