"""Call a Neurona server from coroutines.

    python predict_async.py                       # a server at 127.0.0.1:8001
    python predict_async.py models.example.com:8001

Needs: pip install neurona
"""

import asyncio
import sys

import numpy as np

from neurona_client import AsyncClient


async def main(address: str) -> None:
    """Run the example."""
    # One client for each event loop; the coroutines share it and its stream.
    async with AsyncClient(address, timeout=5.0) as client:
        await client.wait_until_ready(30, models=["lenet5", "rnn"])

        # 200 calls at a time: the server runs them in a few batches.
        images = np.random.default_rng(0).uniform(0, 16, (200, 8, 8)).astype(np.float32)
        results = await asyncio.gather(*(client.predict("lenet5", image) for image in images))
        print(f"{len(results)} images, {len({result.label for result in results})} digits")

        # A regression has a value and its unit. The series may have any length.
        forecast = await client.regress("rnn", [[5.0], [11.0], [16.0], [23.0]])
        print(f"forecast: {forecast.value:.0f} {forecast.unit}")

        # A call that is cancelled, here by a timeout, is given up.
        try:
            async with asyncio.timeout(0.0):
                await client.predict("lenet5", images[0])
        except TimeoutError:
            print("cancelled")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"))
