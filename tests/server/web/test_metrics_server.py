"""The metrics port over real sockets, with well-behaved and hostile callers."""

import contextlib
import gzip
import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic
from prometheus_client.registry import Collector

from neurona_server.errors import ConfigError
from neurona_server.web.metrics_server import MetricsServer

# The Accept header of Prometheus 2.42.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


class Site:
    def __init__(self):
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.state = "SERVING"
        self.server = MetricsServer(
            "127.0.0.1:0", self.registry, lambda: self.state, hosts=["metrics.example.com"]
        )
        self.address = ("127.0.0.1", self.server.port)

    def get(self, path, method="GET", data=None, **headers):
        url = f"http://127.0.0.1:{self.server.port}{path}"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def send(self, raw):
        """Everything received in response to these bytes, until the connection ends."""
        with socket.create_connection(self.address, timeout=20) as one:
            one.sendall(raw)
            return b"".join(iter(lambda: one.recv(1 << 16), b""))


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.close()


def test_metrics_have_the_requested_format(site):
    Counter("c", "Counts.", ["of"], registry=site.registry).labels('a "b"\n').inc(3)
    _, headers, content = site.get("/metrics")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    (family,) = classic(content.decode())
    (sample,) = family.samples
    assert (sample.name, sample.labels, sample.value) == ("c_total", {"of": 'a "b"\n'}, 3.0)
    _, headers, content = site.get("/metrics", Accept=PROMETHEUS)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert content.endswith(b"# EOF\n")
    (family,) = openmetrics(content.decode())
    assert family.name == "c"


@pytest.mark.parametrize(
    ("accept", "open_metrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text; q=0.3, text/plain; q=0.4", False),
        ("APPLICATION/OpenMetrics-Text;version=nonsense;q=0.9,text/plain;q=0.4", True),
        ("application/openmetrics-text;q=nonsense", False),
    ],
)
def test_the_accept_header_selects_the_format(site, accept, open_metrics):
    _, headers, _ = site.get("/metrics", Accept=accept)
    assert ("openmetrics" in headers["Content-Type"]) == open_metrics


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("gzip;q=0", False), ("*", True), ("br", False)],
)
def test_metrics_are_compressed_if_accepted(site, accept_encoding, compressed):
    Gauge("g", "Goes up and down.", registry=site.registry).set(7)
    _, headers, content = site.get("/metrics", Accept_Encoding=accept_encoding)
    assert (headers["Content-Encoding"] == "gzip") == compressed
    assert b"g 7.0" in (gzip.decompress(content) if compressed else content)


def test_metrics_can_be_selected_by_sample_name(site):
    for name in ("a", "b", "c"):
        Counter(name, "Counts.", registry=site.registry)
    _, _, content = site.get("/metrics?name[]=a_total&name[]=c_total&name[]=nothing")
    assert [family.name for family in classic(content.decode())] == ["a", "c"]


@pytest.mark.parametrize("state", ["SERVING", "NOT_SERVING", "STARTING"])
def test_health_has_a_text_and_a_status(site, state):
    site.state = state
    status, headers, content = site.get("/healthz")
    assert (status, content) == (200 if state == "SERVING" else 503, f"{state}\n".encode())
    assert headers["Cache-Control"] == "no-store"


def test_other_paths_and_methods_are_rejected(site):
    for path in ("/nothing", "/metrics/", "/page/main.js", "/../../etc/passwd", "//metrics"):
        status, _, content = site.get(path)
        assert status == 404
        assert content == b"not found; available paths: /, /metrics, /healthz\n"
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        status, headers, _ = site.get("/metrics", method=method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, headers, content = site.get("/metrics", method="HEAD")
    assert (status, content) == (200, b"")
    assert site.get("/metrics", method="POST", data=b"x" * (512 << 10))[0] == 405


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /healthz?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"400"),
        (b"GET http://elsewhere/metrics?name[]=a HTTP/1.1\r\n\r\n", b"200"),
        (b"GET http:///metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET //elsewhere/metrics HTTP/1.1\r\n\r\n", b"404"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.x\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nA: b\nC: d\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nA: b\0\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", b"400"),
        (b"\r\nGET /healthz#top HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nbroken\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost : x\r\n\r\n", b"400"),
        (b"GET /[ HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics?" + b"name[]=a&" * 1000 + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_every_request_gets_a_response(site, raw, status):
    assert site.send(raw).split(b" ", 2)[1] == status


def test_idle_connections_make_room_for_others(site):
    idle = [
        socket.create_connection(site.address) for _ in range(site.server.limits.max_connections)
    ]
    try:
        for one in idle:
            one.sendall(b"GET /met")
        for _ in range(3):
            assert site.get("/healthz")[0] == 200
        idle[0].settimeout(10)
        assert idle[0].recv(1) == b""  # the oldest was closed
    finally:
        for one in idle:
            one.close()


def test_an_idle_connection_is_closed(site, monkeypatch):
    monkeypatch.setattr(site.server.limits, "head_timeout", 0.05)
    assert site.send(b"GET /") == b""


def test_a_caller_that_does_not_read_blocks_no_other(site):
    gauge = Gauge("g", "Large.", ["of"], registry=site.registry)
    for number in range(500):
        gauge.labels(f"{number} {'x' * 20_000}")
    slow = [socket.create_connection(site.address) for _ in range(8)]
    for one in slow:
        one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert site.get("/healthz")[0] == 200
    assert len(site.get("/metrics")[2]) > 10_000_000
    for one in slow:
        one.close()


class BlockingCollector(Collector):
    """Collects when the test allows it."""

    def __init__(self):
        self.started, self.resume, self.count = threading.Semaphore(0), threading.Event(), 0

    def collect(self):
        self.count += 1
        self.started.release()
        self.resume.wait(20)
        return []


def test_concurrent_requests_share_renders(site):
    blocking = BlockingCollector()
    blocking.resume.set()
    site.registry.register(blocking)
    blocking.resume.clear()
    before = blocking.count
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(site.get("/metrics")[0])) for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    assert blocking.started.acquire(timeout=10)
    assert site.get("/healthz")[0] == 200  # does not wait for a render
    blocking.resume.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 30
    assert blocking.count - before < 30


def test_an_internal_error_does_not_reveal_its_cause(site, caplog):
    class Broken(Collector):
        def collect(self):
            raise ValueError("secret")

        def describe(self):
            return []

    site.registry.register(Broken())
    status, _, content = site.get("/metrics")
    assert status == 500
    assert b"secret" not in content
    assert "secret" in caplog.text
    assert site.get("/healthz")[0] == 200


def test_a_port_in_use_is_a_configuration_error(site):
    address = f"127.0.0.1:{site.server.port}"
    with pytest.raises(
        ConfigError, match=f"{address}: Address already in use .expected another metrics_address"
    ):
        MetricsServer(address, site.registry, lambda: "SERVING")


def test_a_closed_port_can_be_opened_again(site):
    address = f"127.0.0.1:{site.server.port}"
    with socket.create_connection(site.address, timeout=10) as half:
        site.server.close()
        site.server.close()
        with contextlib.suppress(ConnectionResetError):  # it was not accepted yet
            assert half.recv(1) == b""
    MetricsServer(address, site.registry, lambda: "SERVING").close()


def test_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        one = MetricsServer("[::1]:0", CollectorRegistry(), lambda: "SERVING")
    except ConfigError:
        pytest.skip("no IPv6 address here")
    with urllib.request.urlopen(f"http://[::1]:{one.port}/healthz") as response:
        assert response.read() == b"SERVING\n"
    one.close()


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "127.0.0.1:8002", "10.1.2.3", "[::1]:8002", "[fe80::1]", "LOCALHOST.:80"),
        *("neurona:8002", "project-neurona-1", "neurona_1:"),  # compose
        *("neurona.models.svc:8002", "neurona.models.svc.cluster.local.", "host.docker.internal"),
        *("metrics.example.com", "Metrics.Example.COM:443", socket.gethostname()),
    ],
)
def test_hosts_that_no_web_page_can_have_are_answered(site, host):
    for path in ("/", "/metrics", "/healthz"):
        assert site.get(path, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("attacker.com", "attacker.com:8002", "127.0.0.1.attacker.com", "localhost.attacker.com"),
        *("metrics.example.com.attacker.com", "x.metrics.example.com", "attacker.svc.com"),
        *("127.0.0.1@attacker.com", "attacker.com#127.0.0.1", "[attacker.com]x", "a b.com", "1.2"),
        *("\xe4.com", "x" * 300 + ".com", "evil.com,localhost", "[", "]", ":", "..com"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/nothing", "//healthz", "/healthz/"])
def test_a_web_page_cannot_read_under_a_name_of_its_own(site, host, path):
    """DNS rebinding: a page's own name resolves to the address of this server."""
    raw = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")
    head, _, body = site.send(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 421 ")
    assert b"text/plain" in head
    assert body.startswith(b"unknown host ")
    assert b"metrics_hosts" in body


def test_a_load_balancer_may_ask_for_the_health_under_any_name(site):
    for method in ("GET", "HEAD"):
        raw = f"{method} /healthz HTTP/1.1\r\nHost: predictions.example.com\r\n\r\n".encode()
        assert site.send(raw).split()[1] == b"200"


def test_the_host_of_the_target_takes_precedence(site):
    for target, host, status in [
        ("http://attacker.com/metrics", "localhost", b"421"),
        ("http://localhost/metrics", "attacker.com", b"200"),
    ]:
        raw = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert site.send(raw).split()[1] == status


def test_a_request_has_one_host_or_none(site):
    assert site.send(b"GET /healthz HTTP/1.0\r\n\r\n").split()[1] == b"200"
    for hosts in ("Host: localhost\r\nHost: attacker.com", "Host: a\r\nhost: a"):
        assert site.send(f"GET / HTTP/1.1\r\n{hosts}\r\n\r\n".encode()).split()[1] == b"400"


def test_every_name_can_be_allowed():
    server = MetricsServer("127.0.0.1:0", CollectorRegistry(), lambda: "SERVING", hosts=["*"])
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: anything.com\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 200 ")
    server.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".com", ".a"])
def test_an_address_that_is_no_host_name_is_an_error(host):
    with pytest.raises(ConfigError, match="cannot serve metrics on"):
        MetricsServer(f"{host}:0", CollectorRegistry(), lambda: "SERVING")
