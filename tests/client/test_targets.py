"""Targets: their host and port, whether they are this machine, and whether a proxy applies."""

import pytest

from neurona_client.targets import bypasses_proxy, is_local, split_target, validate_target


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("models:8001", ("models", "8001")),
        ("models", ("models", "")),
        ("[::1]:8001", ("::1", "8001")),
        ("[::1]", ("::1", "")),
        ("::1", ("::1", "")),
        ("dns:///models:8001", ("models", "8001")),
        ("dns:models:8001", ("models", "8001")),
        ("dns://10.0.0.1:53/models:8001", ("models", "8001")),
        ("ipv4:10.0.0.7:8001,10.0.0.8:8001", ("10.0.0.7", "8001")),
        ("ipv6:[fe80::1]:8001", ("fe80::1", "8001")),
        ("unix:/run/neurona.sock", ("", "")),
    ],
)
def test_host_and_port_of_a_target(target, parts):
    assert split_target(target) == parts


@pytest.mark.parametrize(
    "target", ["", "http://models:8001", "https://models", "models:65536", "a\nb:1", "a\udcf6:1"]
)
def test_what_grpc_would_misread_is_rejected(target):
    with pytest.raises(ValueError, match="invalid target"):
        validate_target(target)


def test_a_token_without_tls_stays_on_this_machine():
    local = ["localhost:1", "127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "unix:x", "ipv4:127.0.0.1:1"]
    assert all(map(is_local, [*local, "dns:///localhost:1", "unix-abstract:x"]))
    other = ["0.0.0.0:1", "models:1", "localhost.example:1", "vsock:2:1", "[::2]:1"]
    assert not any(map(is_local, [*other, "dns://10.0.0.1/localhost:1"]))


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:8001",
        "127.1:8001",
        "localhost:8001",
        "LOCALHOST:8001",
        "localhost.:8001",
        "models.localhost:8001",
        "ip6-localhost:8001",
        "[::1]:8001",
        "[::ffff:127.0.0.1]:8001",
        "0.0.0.0:8001",
        "dns:///localhost:8001",
        "ipv4:127.0.0.1:8001",
        "ipv6:[::1]:8001",
        "unix:/run/neurona.sock",
        "unix-abstract:neurona",
    ],
)
def test_no_proxy_leads_to_this_machine(target):
    assert bypasses_proxy(target, environment={})


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("entries", "target", "bypasses"),
    [
        ("", "models:8001", False),
        ("*", "models:8001", True),
        ("models", "models:8001", True),
        ("MODELS", "models:8001", True),
        ("models", "MODELS:8001", True),
        ("models", "dns:///models:8001", True),
        ("models", "other-models:8001", False),
        ("example.com", "a.example.com:8001", True),
        (".example.com", "a.example.com:8001", True),
        ("*.example.com", "a.example.com:8001", True),
        ("example.com", "anexample.com:8001", False),
        ("models:8001", "models:8001", True),
        ("models:9000", "models:8001", False),
        ("a, models ,b", "models:8001", True),
        ("10.0.0.7", "10.0.0.7:8001", True),
        ("10.0.0.7:8001", "10.0.0.7:8001", True),
        ("10.0.0.0/8", "10.0.0.7:8001", True),
        ("10.0.0.0/8", "11.0.0.7:8001", False),
        ("0.7", "10.0.0.7:8001", False),
        ("[fd00::7]", "[fd00::7]:8001", True),
        ("fd00::/8", "[fd00::7]:8001", True),
        ("10.0.0.0/8", "models:8001", False),
    ],
)
def test_no_proxy_in_both_cases(variable, entries, target, bypasses):
    assert bypasses_proxy(target, environment={variable: entries}) is bypasses


def test_a_resolved_address_is_excluded_by_its_name_and_by_itself():
    target = "ipv4:10.0.0.7:8001"
    assert bypasses_proxy(target, "a.example.com", environment={"no_proxy": "example.com"})
    assert bypasses_proxy(target, "a.example.com", environment={"no_proxy": "10.0.0.0/8"})
    assert not bypasses_proxy(target, "a.example.com", environment={"no_proxy": "models"})
