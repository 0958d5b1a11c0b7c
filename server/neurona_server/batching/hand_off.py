"""What it costs to give work to another thread: shorter runs are not worth it."""

import threading
import time
from functools import cache
from statistics import median

ROUNDS = 200


@cache
def hand_off_seconds() -> float:
    """Seconds from waking a thread until it works, on this machine: measured once."""
    go, gone = threading.Semaphore(0), threading.Semaphore(0)

    def answer() -> None:
        for _ in range(ROUNDS):
            go.acquire()
            gone.release()

    thread = threading.Thread(target=answer, name="hand-off", daemon=True)
    thread.start()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        go.release()
        gone.acquire()
        rounds.append(time.perf_counter() - started)
    thread.join()
    return median(rounds) / 2
