"""A well-behaved caller: asks without a pause, checks every response, prints what it waited.

    python -m attacks.victim TARGET_AS_JSON CALLS_PER_SECOND

It ends when its standard input is closed. It is alone because it runs in a process of its own.
"""

import json
import sys
import threading
import time

import numpy as np

from attacks.target import VICTIM_MODEL, Target, victim_request, victim_response
from neurona_client import Client, Retries, Tls

TIMEOUT = 20.0
"""Seconds until a call counts as failed."""


def main() -> None:
    target, pause = Target.from_json(sys.argv[1]), 1 / float(sys.argv[2])
    stopping = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopping.set()), daemon=True).start()
    waits: list[float] = []
    wrong, errors = 0, []
    tls = Tls(ca=target.ca) if target.ca else None
    # A server that has crashed starts again beside attacks that take all CPUs.
    retries = Retries(unreachable_timeout=TIMEOUT)
    with Client(target.address, tls=tls, token=target.token or None, retries=retries) as client:
        client.wait_until_ready(60, models=[VICTIM_MODEL])
        while not stopping.wait(pause):
            x = victim_request()
            started = time.monotonic()
            try:
                result = client.predict(VICTIM_MODEL, x, timeout=TIMEOUT, raw_outputs=True)
                right = victim_response(x)
                wrong += not np.allclose(result.outputs["probabilities"], right, atol=1e-5)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}"[:200])
            waits.append(time.monotonic() - started)
    print(json.dumps({"waits": waits, "wrong": wrong, "errors": errors}))


if __name__ == "__main__":
    main()
