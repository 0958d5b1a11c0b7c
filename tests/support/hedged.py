"""What the tests of hedging share."""

import numpy as np
import pytest

from neurona_client import AsyncClient, Client, Retries

ROW = np.array([1, 2, 3, 4], np.float32)
SOON = Retries(hedge_after=0.02)
BOTH = pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])


def reached(client: Client | AsyncClient) -> bool:
    """Whether all servers are."""
    return all(endpoint.serving for endpoint in client._calls.fleet.endpoints)


def doubted(client: Client | AsyncClient) -> bool:
    """Whether a server is held for one that fails."""
    return any(endpoint.doubtful_until for endpoint in client._calls.fleet.endpoints)
