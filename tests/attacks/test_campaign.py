"""All attacks at once: a well-behaved caller gets every response, the server stays, and so does
its memory.

It is alone because it is the only test of the campaign; `make attacks` runs it for ten minutes.
"""

import pytest

from attacks.attacks import ATTACKS
from attacks.campaign import run_campaign

pytestmark = pytest.mark.slow

SECONDS = 12.0
RECOVERED = 1.5


@pytest.mark.long
@pytest.mark.parametrize(
    ("secure", "flags"),
    [(True, ["--transport", "cygrpc"]), (False, ["--transport", "aio", "--processes", "2"])],
    ids=["TLS and tokens", "neither, aio, two processes"],
)
def test_a_second_caller_gets_every_response_during_all_attacks(secure, flags):
    flags = ["--supervise", "true", "--shrink-seconds", "2", *flags]
    result = run_campaign("all", [*ATTACKS], SECONDS, flags, secure=secure, recovered=RECOVERED)
    assert result.end.startswith("stopped"), result
    assert (result.wrong, list(result.errors)) == (0, [])
    before, _, after = result.memory
    assert after <= RECOVERED * before, result.memory
    assert len(result.waits) > 5 * SECONDS  # it was not left waiting
