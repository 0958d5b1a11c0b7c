"""A probe for the stalls of the machine itself, so that they can be told from those of a server.

    python stalls.py CORE > STALLS

wakes every millisecond on one core until its input ends, before all ordinary processes (SCHED_FIFO,
which needs CAP_SYS_NICE; without, at the highest priority that is allowed). What wakes it late, no
scheduling of ordinary processes explains: another guest of the host, an interrupt, a pause of the
virtual machine. It imports little, as one runs on each core beside what is measured.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PERIOD = 0.001
LATE_SECONDS = 0.001
"""A stall is a wake-up that is later than this."""
REAL_TIME_PRIORITY = 50
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Stalls:
    """The stalls of a while.

    Attributes:
        intervals: Begin and end of each on any core, on the clock of `time.perf_counter`.
        is_real_time: Whether the probes ran before all ordinary processes: otherwise their
            stalls may be those of ordinary load.
    """

    intervals: list[tuple[float, float]] = field(default_factory=list)
    is_real_time: bool = True

    def merged(self) -> list[tuple[float, float]]:
        """Returns the intervals in which any core stalled, ascending, none overlapping."""
        merged: list[tuple[float, float]] = []
        for begin, end in sorted(self.intervals):
            if merged and begin <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((begin, end))
        return merged


@contextlib.contextmanager
def stall_probe() -> Iterator[Stalls]:
    """Runs a probe on each core; what it found is filled in when the block ends."""
    stalls = Stalls()
    probes = []
    try:
        for core in sorted(os.sched_getaffinity(0)):
            command = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(core)]
            probes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for one in probes:
            assert one.stdout is not None
            one.stdout.readline()  # it probes now
        yield stalls
    finally:
        for one in probes:
            found = json.loads(one.communicate()[0])
            stalls.intervals += [(begin, end) for begin, end in found["intervals"]]
            stalls.is_real_time &= found["is_real_time"]


@dataclass(frozen=True)
class MachineTime:
    """Seconds of CPU of the whole machine since its start, of all cores together.

    Attributes:
        busy: Used by any process or interrupt.
        stolen: In which the host ran something else although a process could have run.
    """

    busy: float
    stolen: float

    @classmethod
    def now(cls) -> "MachineTime":
        """Returns them from /proc/stat, proc(5)."""
        words = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = (int(word) / TICKS for word in words)
        return cls(user + nice + system + irq + softirq, steal)


def _raise_priority() -> bool:
    """Returns whether the process runs before all ordinary ones."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))
    except PermissionError:
        with contextlib.suppress(PermissionError):
            os.nice(-20)
        return False
    return True


def probe(core: int) -> None:
    """Probes a core until the standard input ends, then prints what it found as JSON."""
    os.sched_setaffinity(0, {core})
    is_real_time = _raise_priority()
    os.set_blocking(0, False)
    print("probing", flush=True)
    intervals = []
    rounds = 0
    due = time.perf_counter()
    while True:
        due += PERIOD
        time.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        if now - due > LATE_SECONDS:
            intervals.append((due, now))
            due = now
        rounds += 1
        if rounds % 16 == 0 and _has_ended():
            break
    print(json.dumps({"intervals": intervals, "is_real_time": is_real_time}))


def _has_ended() -> bool:
    try:
        return not os.read(0, 1)
    except BlockingIOError:
        return False


if __name__ == "__main__":
    probe(int(sys.argv[1]))
