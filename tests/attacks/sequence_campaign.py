"""Interleaves the steps of many sequences with hostile ids, and counts the wrong answers.

    PYTHONPATH=tests python -m attacks.sequence_campaign --steps 1000000 [--callers 8] [--seed 0]

Each caller sends bursts of steps in a stream, without waiting for their answers: of a sum, whose
state is a tensor of its graph, and of an LSTM. Some begin a sequence, end one, do both, or use an
id again at once; others must fail: steps of sequences that never began or have ended, that begin
twice, or have another shape. Some calls are cancelled. The ids are alike or have equal hashes, and
every caller has the same ones for both models. Expected answers come from a sum in Python, and from
the LSTM's answers to whole sequences.
"""

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from support import recurrent_models, stateful_models
from support.sequence_caller import output_of, step_request
from support.server_process import ServerProcess
from support.triton_requests import request

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

SUM, LSTM = "accumulator", "lstm"
SEQUENCES, STEPS = 64, 40
"""Sequences of the LSTM whose answers are known, and their steps."""

BURST = 200
"""Steps that a caller sends at once."""

EQUAL_HASH = 2**61 - 1
"""Python's hashes of integers are equal modulo this."""

NO_START = "must specify the START flag"

Expected = Callable[[pb.ModelStreamInferResponse], bool]


def save_models(root: Path) -> None:
    """Save the models of a campaign."""
    stateful_models.save_accumulator(root / SUM)
    recurrent_models.save_recurrent(root / LSTM / "1" / "model.onnx")


def hostile_ids(caller: int) -> list[int | str]:
    """Return ids that are easily confused, and different for each caller."""
    number = caller + 1
    return [
        *(number + 1000 * index for index in range(20)),
        *(number + 1000 * index + EQUAL_HASH for index in range(4)),
        *(number + 1000 * index + 2 * EQUAL_HASH for index in range(4)),
        *(-number - 1000 * index for index in range(4)),
        *(str(number + 1000 * index) for index in range(20)),
        *(f"{number}{suffix}" for suffix in ("\0", "\0\0", " ", "a\0b", "\u00e9", "e\u0301", "'")),
        *(f"{number}" + "x" * length for length in (1, 500, 501)),
        *(f"\u202e{number}", f"\U0001f600{number}", f"({number},)"),
    ]


@dataclass
class Campaign:
    """What all callers have done."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass
class OpenSequence:
    """What a caller knows of a sequence."""

    total: int = 0
    index: int = 0
    """Which of the known sequences of the LSTM."""
    position: int = 0


class HostileCaller:
    """Sends steps of its sequences, one burst after the other."""

    def __init__(self, address: str, number: int, seed: int, campaign: Campaign) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._random = random.Random(seed * 1000 + number)  # noqa: S311  to be repeatable
        self._ids = hostile_ids(number)
        self._campaign = campaign
        self._open: dict[tuple[str, int | str], OpenSequence] = {}
        numbers = np.random.default_rng(seed)
        shape = (SEQUENCES, STEPS, recurrent_models.FEATURES)
        self._steps = numbers.standard_normal(shape, np.float32)
        self._answers = np.stack(
            [
                output_of(
                    self._stub.ModelInfer(
                        request(LSTM, steps=("FP32", self._steps[:, : count + 1])), timeout=60
                    )
                )
                for count in range(STEPS)
            ],
            axis=1,
        )

    def run(self, steps: int) -> None:
        """Send so many steps or a few more, and note wrong answers."""
        sent = 0
        while sent < steps:
            burst = list(self._make_burst())
            messages = [message for message, _ in burst]
            expectations = [expected for _, expected in burst]
            responses = list(self._stub.ModelStreamInfer(iter(messages), timeout=120))
            if len(responses) != len(messages):
                self._campaign.wrong.append(f"{len(responses)} answers to {len(messages)} steps")
            for message, expected, response in zip(messages, expectations, responses, strict=False):
                if not expected(response):
                    self._campaign.wrong.append(f"{describe(message)}: {response}"[:500])
            sent += len(burst)
            self._campaign.counts["steps"] += len(burst)
            self._cancel_one()

    def close(self) -> None:
        """End all sequences and the connection."""
        burst = [self._step(key, ends=True) for key in [*self._open]]
        responses = self._stub.ModelStreamInfer(iter([message for message, _ in burst]))
        for (message, expected), response in zip(burst, responses, strict=True):
            if not expected(response):
                self._campaign.wrong.append(f"{describe(message)}: {response}"[:500])
        self._channel.close()

    def _make_burst(self) -> Iterator[tuple[pb.ModelInferRequest, Expected]]:
        """Yield steps and what tells the right answers to them.

        A sequence gets no step behind one that must fail for its shape: it might wait or not.
        """
        failed: set[tuple[str, int | str]] = set()
        for _ in range(BURST):
            key = (self._random.choice([SUM, LSTM]), self._random.choice(self._ids))
            if key in failed:
                continue
            kind = self._random.random()
            if kind < 0.03:
                failed.add(key)
                yield self._bad_step(key)
            elif key not in self._open:
                yield self._first_step(key) if kind < 0.9 else self._unknown_step(key)
            elif kind < 0.06:
                yield self._second_start(key)
            else:
                yield self._step(key, ends=kind > 0.85)

    def _first_step(self, key: tuple[str, int | str]) -> tuple[pb.ModelInferRequest, Expected]:
        self._open[key] = OpenSequence(0, self._random.randrange(SEQUENCES), 0)
        self._campaign.counts["sequences"] += 1
        return self._step(key, starts=True, ends=self._random.random() < 0.1)

    def _step(
        self, key: tuple[str, int | str], *, starts: bool = False, ends: bool = False
    ) -> tuple[pb.ModelInferRequest, Expected]:
        sequence = self._open[key]
        model, sequence_id = key
        flags = {"start": starts, "end": ends}
        if model == SUM:
            value = self._random.randrange(-1000, 1000)
            sequence.total += value
            message = step_request(SUM, [[value]], sequence_id, **flags)
            answer = np.array([[sequence.total]], np.int32)
        else:
            first = sequence.position
            sequence.position += self._random.choice([1, 1, 1, 2])
            sequence.position = min(sequence.position, STEPS)
            ends = flags["end"] = ends or sequence.position == STEPS
            steps = self._steps[sequence.index, None, first : sequence.position]
            message = step_request(LSTM, steps, sequence_id, name="steps", datatype="FP32", **flags)
            answer = self._answers[sequence.index, None, sequence.position - 1]
        if ends:
            del self._open[key]
        return message, lambda response: is_answer(response, answer)

    def _bad_step(self, key: tuple[str, int | str]) -> tuple[pb.ModelInferRequest, Expected]:
        """Return a step of another shape, which leaves the state as it is."""
        model, sequence_id = key
        starts = key not in self._open
        if model == SUM:
            message = step_request(SUM, [[1, 2]], sequence_id, start=starts)
        else:
            steps = np.zeros((1, 1, recurrent_models.FEATURES + 1), np.float32)
            message = step_request(
                LSTM, steps, sequence_id, start=starts, name="steps", datatype="FP32"
            )
        self._campaign.counts["bad steps"] += 1
        return message, lambda response: "unexpected shape" in response.error_message

    def _unknown_step(self, key: tuple[str, int | str]) -> tuple[pb.ModelInferRequest, Expected]:
        model, sequence_id = key
        message = step_request(
            model,
            [[1]] if model == SUM else self._steps[:1, :1],
            sequence_id,
            end=self._random.random() < 0.5,
            **({} if model == SUM else {"name": "steps", "datatype": "FP32"}),
        )
        self._campaign.counts["unknown sequences"] += 1
        return message, lambda response: NO_START in response.error_message

    def _second_start(self, key: tuple[str, int | str]) -> tuple[pb.ModelInferRequest, Expected]:
        """Return a step that begins a sequence again."""
        message, _ = self._unknown_step(key)
        message.parameters["sequence_start"].bool_param = True
        self._campaign.counts["unknown sequences"] -= 1
        self._campaign.counts["second starts"] += 1
        return message, lambda response: "has the START flag, but" in response.error_message

    def _cancel_one(self) -> None:
        """Cancel a step of a sum at some moment: the next step shows whether it was run."""
        keys = [key for key in self._open if key[0] == SUM]
        if not keys:
            return
        key = self._random.choice(keys)
        sequence = self._open[key]
        call = self._stub.ModelInfer.future(step_request(SUM, [[7]], key[1]), timeout=60)
        time.sleep(self._random.choice([0, 0.0005, 0.002]))
        call.cancel()
        message = step_request(SUM, [[0]], key[1])
        answer = None
        while answer is None:
            try:
                answer = output_of(self._stub.ModelInfer(message, timeout=60)).item()
            except grpc.RpcError as error:  # behind the cancelled one
                if error.code() != grpc.StatusCode.ABORTED:
                    raise
        if answer not in (sequence.total, sequence.total + 7):
            self._campaign.wrong.append(f"{describe(message)} after a cancelled one: {answer}")
        self._campaign.counts["cancelled and run" if answer != sequence.total else "cancelled"] += 1
        sequence.total = answer


def describe(message: pb.ModelInferRequest) -> str:
    """Return what a step is of."""
    parameters = {name: str(value).strip() for name, value in message.parameters.items()}
    return f"{message.model_name} {parameters}"


def is_answer(response: pb.ModelStreamInferResponse, expected: np.ndarray) -> bool:
    """Return whether a response has this answer."""
    if response.error_message:
        return False
    answer = output_of(response.infer_response)
    return answer.shape == expected.shape and np.allclose(answer, expected, rtol=1e-5, atol=1e-5)


def run_campaign(address: str, steps: int, callers: int = 8, seed: int = 0) -> Campaign:
    """Send `steps` steps in all to the server at an address.

    Raises:
        grpc.RpcError: A call failed that must not.
    """
    campaign = Campaign()
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            caller = HostileCaller(address, number, seed, campaign)
            caller.run(steps // callers)
            caller.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder))
        with ServerProcess(Path(folder), "--load-check", "false") as server:
            server.wait_until_serving()
            started = time.monotonic()
            campaign = run_campaign(server.address, options.steps, options.callers, options.seed)
            seconds = time.monotonic() - started
    print(", ".join(f"{count} {name}" for name, count in sorted(campaign.counts.items())))
    print(f"{seconds:.0f} s, {campaign.counts['steps'] / seconds:.0f} steps/s")
    print(f"{len(campaign.wrong)} wrong answers")
    for line in campaign.wrong[:20]:
        print(line)
    raise SystemExit(bool(campaign.wrong))


if __name__ == "__main__":
    main()
