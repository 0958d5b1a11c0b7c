"""All attacks at once: a well-behaved caller gets every response, and the server stays.

It is alone because it is the only test of the campaign; `make attacks` runs it for ten minutes.
"""

import pytest

from attacks.attacks import ATTACKS
from attacks.campaign import run_campaign

pytestmark = pytest.mark.slow

SECONDS = 25.0


@pytest.mark.parametrize(
    ("secure", "flags"),
    [(True, ["--transport", "cygrpc"]), (False, ["--transport", "aio", "--processes", "2"])],
    ids=["TLS and tokens", "neither, aio, two processes"],
)
def test_a_second_caller_gets_every_response_during_all_attacks(secure, flags):
    flags = ["--supervise", "true", *flags]
    result = run_campaign("all", [*ATTACKS], SECONDS, flags, secure=secure, seconds_to_recover=5.0)
    assert result.end.startswith("stopped"), result
    assert (result.wrong, list(result.errors)) == (0, [])
    assert len(result.waits) > 5 * SECONDS  # it was not left waiting
