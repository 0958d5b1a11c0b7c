import pytest

from neurona_server.address import is_local


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *[(one, True) for one in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1")],
        *[(one, True) for one in ("unix:/run/neurona", "unix:x")],
        *[(one, False) for one in ("0.0.0.0:1", "[::]:1", "10.0.0.7:1", "models.example:1")],
        *[(one, False) for one in ("localhost.example:1", "[fe80::1%eth0]:1")],
    ],
)
def test_addresses_that_only_this_machine_reaches(address, local):
    assert is_local(address) is local
