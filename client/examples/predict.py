"""Call a Neurona server from a program with threads, or without any.

    python predict.py                       # a server at 127.0.0.1:8001, as `make serve` starts it
    python predict.py models.example.com:8001

Needs: pip install neurona
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from neurona_client import Client, InvalidInputError, OverloadedError


def main(address: str) -> None:
    """Run the example."""
    # One client for the whole program: it holds the connections, and threads may share it.
    with Client(address, timeout=5.0) as client:
        client.wait_until_ready(30, models=["lenet5"])

        # What does the model take? Here an image of 8 x 8 grey levels, and any number of them.
        model = client.describe("lenet5")
        print(f"{model.name} takes", ", ".join(f"{one.name} {one.shape}" for one in model.inputs))

        # One sample, without a batch axis, gives one result.
        image = np.zeros((8, 8), np.float32)
        result = client.predict("lenet5", image)
        print(f"one image: {result.label} with probability {result.probability:.2f}")

        # A batch gives a sequence of results, one for each row.
        images = np.random.default_rng(0).uniform(0, 16, (3, 8, 8)).astype(np.float32)
        for number, row in enumerate(client.predict("lenet5", images, top_k=2)):
            best = ", ".join(f"{one.label} {one.probability:.2f}" for one in row.top)
            print(f"image {number} of a batch: {best}")

        # Many small calls: those of all threads share a stream to the server.
        with ThreadPoolExecutor(8) as pool:
            labels = list(pool.map(lambda one: client.predict("lenet5", one).label, [image] * 100))
        print(f"{len(labels)} calls from 8 threads")

        # An error says what was received and what was expected.
        try:
            client.predict("lenet5", np.zeros((3, 8)))
        except InvalidInputError as error:
            print(f"invalid input: {error}")

        # An overloaded server says when to try again (after the client's own retries).
        try:
            client.predict("lenet5", image)
        except OverloadedError as error:
            time.sleep(error.retry_after or 1.0)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
