"""Attacks a server and prints what a well-behaved caller notices, and what memory it takes.

    PYTHONPATH=tests python -m attacks.campaign --seconds 20 [--each] [--secure] [--recover 90]
        [--flags "--transport aio"] [--serve PATH_OF_NEURONA_SERVE] [ATTACK ...]

All named attacks (default: all) run at once for the time, or with --each one after the other, each
against a server of its own. For each there is a row: the victim's calls, wrong answers, errors,
median, 99th percentile and longest wait in ms; the longest wait for /healthz; memory before, its
peak, and after the attack, once it has recovered or after --recover seconds, in MiB; and how the
server ended.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.attacks import ATTACKS, WITHOUT_TOKEN
from attacks.target import AttackedServer, Target, Watch

VICTIM_CALLS_PER_SECOND = 50
SECONDS_TO_RECOVER = 90.0

RECOVERED = 1.2
"""Memory after the attack, as a multiple of that before, at which it has recovered."""

COLUMNS = (
    *("attack", "calls", "wrong", "errors", "p50", "p99", "longest", "healthz"),
    *("before", "peak", "after", "server"),
)


@dataclass(frozen=True)
class Result:
    """What one campaign showed. Waits in seconds, memory in bytes."""

    name: str
    waits: Sequence[float]
    wrong: int
    errors: Sequence[str]
    longest_healthz: float
    memory: tuple[int, int, int]
    """Before the attack, its peak, and after the attack."""
    end: str
    """How the server ended."""

    def quantile(self, share: float) -> float:
        ordered = sorted(self.waits) or [float("nan")]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def row(self) -> list[str]:
        waits = [f"{1000 * self.quantile(share):.1f}" for share in (0.5, 0.99, 1.0)]
        memory = [f"{size >> 20}" for size in self.memory]
        return [
            *(self.name, str(len(self.waits)), str(self.wrong), str(len(self.errors)), *waits),
            *(f"{1000 * self.longest_healthz:.0f}", *memory, self.end),
        ]


def start_process(module: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", f"attacks.{module}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, text=True, env=environment, **options)


def run_campaign(
    name: str,
    attacks: Sequence[str],
    seconds: float,
    flags: Sequence[str] = (),
    *,
    command: Path | None = None,
    secure: bool = False,
    seconds_to_recover: float = SECONDS_TO_RECOVER,
    recovered: float = RECOVERED,
) -> Result:
    """Run attacks at once against a server of their own.

    Args:
        name: The title of the result.
        attacks: Names of the attacks.
        seconds: Their duration.
        flags: Flags of neurona-serve.
        command: The neurona-serve to start; None: that of this environment.
        secure: Whether the server has TLS and tokens.
        seconds_to_recover: Most time between the attack and the last look at the memory.
        recovered: The multiple of the memory before at which it has recovered.
    """
    options = {"command": command} if command else {}
    with tempfile.TemporaryDirectory(prefix="neurona-attacked-") as folder:
        server = AttackedServer(Path(folder), *flags, secure=secure, **options)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        victim = start_process("victim", server.victim.to_json(), VICTIM_CALLS_PER_SECOND, **pipes)
        time.sleep(3.0)  # the victim's own first calls
        before = server.memory_bytes()
        memory, healthz_waits = [before], [0.0]
        watches = [
            Watch(lambda: memory.append(server.memory_bytes())),
            Watch(lambda: healthz_waits.append(server.healthz()[1])),
        ]
        attackers = [
            start_process("attacks", attack, _target(server, attack).to_json())
            for attack in attacks
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end and server.exit_status is None:
            time.sleep(0.2)
        for attacker in attackers:
            attacker.terminate()
        for attacker in attackers:
            attacker.wait()
        for watch in watches:
            watch.close()
        after = _settled_memory(server, recovered * before, seconds_to_recover)
        output, _ = victim.communicate()  # closes its standard input
        noticed = json.loads(output or '{"waits": [], "wrong": 0, "errors": ["no result"]}')
        if (status := server.exit_status) is not None:
            ended = f"ended with {status}"
        else:
            stop_seconds = server.stop()
            ended = "had to be killed" if stop_seconds < 0 else f"stopped in {stop_seconds:.1f} s"
    return Result(
        name,
        noticed["waits"],
        noticed["wrong"],
        noticed["errors"],
        max(healthz_waits),
        (before, max(memory), after),
        ended,
    )


def _settled_memory(server: AttackedServer, expected: float, seconds: float) -> int:
    """Return the memory once it is as expected, or what it is after that time."""
    end = time.monotonic() + seconds
    while (after := server.memory_bytes()) > expected:
        if time.monotonic() > end or server.exit_status is not None:
            break
        time.sleep(0.5)
    return after


def _target(server: AttackedServer, attack: str) -> Target:
    return server.stranger if attack in WITHOUT_TOKEN else server.attacker


def print_row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--recover",
        type=float,
        default=SECONDS_TO_RECOVER,
        help="most seconds until memory has recovered",
    )
    parser.add_argument("--each", action="store_true", help="one after the other")
    parser.add_argument("--secure", action="store_true", help="with TLS and tokens")
    parser.add_argument("--flags", default="", help="flags of neurona-serve, in one word")
    parser.add_argument("--serve", type=Path, help="the neurona-serve to start")
    options = parser.parse_args()
    names = options.attacks or list(ATTACKS)
    if unknown := set(names) - ATTACKS.keys():
        parser.error(f"unknown attack {min(unknown)} (expected some of {', '.join(ATTACKS)})")
    print_row(COLUMNS)
    print_row(["---"] * len(COLUMNS))
    for group in [[name] for name in names] if options.each else [names]:
        result = run_campaign(
            group[0] if len(group) == 1 else f"{len(group)} attacks",
            group,
            options.seconds,
            shlex.split(options.flags),
            command=options.serve,
            secure=options.secure,
            seconds_to_recover=options.recover,
        )
        print_row(result.row())
        for error in sorted(set(result.errors))[:5]:
            print(f"{result.errors.count(error)} x {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
