"""The status page with metrics that a real server would have rarely or never."""

import time

import pytest
from prometheus_client import CollectorRegistry
from support.fake_nvml import FakeNvml

from neurona_server.telemetry.collectors import GpuCollector, VersionInfo
from neurona_server.telemetry.metrics import Metrics
from neurona_server.web.metrics_server import MetricsServer

HOSTILE = (
    '<img src=x onerror="window.broken=1">',
    "</script><script>window.broken=1</script>",
    '"\'} 7\nneurona_version_state{model="forged",state="ready",version="1"} 1',
    "back\\slash\\n",
    "javascript:window.broken=1",
    "\u202eright to left",
    "x" * 300,
    "constructor",
    "__proto__",
)


class Site:
    def __init__(self):
        self.metrics = Metrics(CollectorRegistry())
        self.state = "SERVING"
        self.versions = []
        self.metrics.watch_versions(lambda: self.versions)
        self.port = MetricsServer("127.0.0.1:0", self.metrics.registry, lambda: self.state)
        self.url = f"http://127.0.0.1:{self.port.port}/"


@pytest.fixture
def site():
    site = Site()
    yield site
    site.port.close()


def test_names_of_models_are_never_markup(browser, site, screenshot):
    for name in HOSTILE:
        site.versions.append(VersionInfo(name, 1, "ready", [name], True, 0.5))
        model = site.metrics.for_version(name, 1)
        model.set_model_info(name, name)
        model.record_request("ok", 0.001)
    browser.open(site.url)
    browser.wait_until(f"document.querySelectorAll('tbody tr').length === {len(HOSTILE)}")
    names = browser.evaluate("[...document.querySelectorAll('.name')].map(n => n.textContent)")
    assert sorted(names) == sorted(HOSTILE)
    assert browser.evaluate("window.broken") is None
    assert browser.evaluate("document.images.length + document.scripts.length") == 1
    assert not any(error for error in browser.errors), browser.errors
    screenshot("hostile")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1400


def test_injected_code_does_not_run(browser, site):
    browser.open(site.url)
    browser.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.broken=1>')"
    )
    browser.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        "{text: 'window.broken=1'}))"
    )
    browser.evaluate("fetch('http://127.0.0.2:1/').catch(() => null)")
    end = time.monotonic() + 10
    while not sum("Content Security Policy" in str(error) for error in browser.errors) >= 3:
        assert time.monotonic() < end, browser.errors
        time.sleep(0.05)
    assert browser.evaluate("window.broken") is None


@pytest.mark.parametrize(
    ("state", "word"), [("STARTING", "starting"), ("NOT_SERVING", "not serving")]
)
def test_the_state_of_the_server_is_shown(browser, site, state, word):
    site.state = state
    site.versions.append(VersionInfo("m", 1, "loading"))
    site.metrics.loading.start_load("m", 1)
    browser.open(site.url)
    browser.wait_until(f"document.getElementById('state').innerText === {word!r}")
    browser.wait_until("document.querySelectorAll('tbody tr').length === 1")
    assert "loading for" in browser.text("tbody")


def test_gpus_are_shown(browser, site, screenshot):
    site.metrics.registry.register(GpuCollector(FakeNvml(2, missing=["power"])))
    browser.open(site.url)
    browser.wait_until("!document.getElementById('gpus').hidden")
    assert "No models yet" in browser.text("#models")
    assert browser.text("#gpus").split("\n")[0] == "GPU 0 37 % busy · 3.0 GiB of 16 GiB"
    screenshot("gpus")


def test_shares_and_percentiles_are_computed_like_prometheus(browser, site):
    site.versions.append(VersionInfo("m", 3, "ready", ["latest"], False, 0.25))
    model = site.metrics.for_version("m", 3)
    browser.open(site.url)
    browser.wait_until("document.querySelectorAll('tbody tr').length === 1")
    for index in range(100):  # half of them in (2.5 ms, 5 ms], half in (50 ms, 100 ms]
        model.record_request("ok", 0.004 if index % 2 else 0.08)
    model.record_run(30, 10, 0, (0.0, 0.001, 0.0), 0.0)
    model.record_run(10, 10, 0, (0.0, 0.001, 0.0), 0.0)
    browser.wait_until("document.querySelector('tbody .p50').innerText.endsWith('ms')")
    assert browser.text("tbody .p50") == "5.0 ms"
    assert browser.text("tbody .p99") == "99 ms"  # 50 + 50 * 49 / 50
    assert browser.text("tbody .batch") == "20.0"
    assert "25 % of requests" in browser.text("tbody .model")


def test_the_share_of_requests_that_met_their_objective_is_shown(browser, site, screenshot):
    for name, seconds in (("kept", 0.05), ("missed", 0.02), ("unused", 1.0), ("without", None)):
        site.versions.append(VersionInfo(name, 1, "ready", [], False, 1.0))
        site.metrics.for_version(name, 1).set_objective(seconds)
    site.metrics.for_version("kept", 1).record_objective(19_999, 1)
    site.metrics.for_version("missed", 1).record_objective(57, 43)
    browser.open(site.url)
    browser.wait_until("document.querySelectorAll('tbody .objective').length === 4")
    texts = "[...document.querySelectorAll('tbody .objective')].map((e) => e.innerText).join()"
    browser.wait_until(f"{texts}.includes('%')")
    expected = ["99.99 % within 50 ms", "57 % within 20 ms", "objective 1.0 s", ""]
    assert browser.evaluate(texts) == ",".join(expected)
    assert browser.evaluate("document.querySelectorAll('.objective.missed').length") == 1
    screenshot("objectives")


def test_open_sessions_and_padding_are_shown(browser, site, screenshot):
    for name in ("lstm", "mlp"):
        site.versions.append(VersionInfo(name, 1, "ready", [], False, 1.0))
        site.metrics.for_version(name, 1).record_request("ok", 0.004)
    site.metrics.for_version("lstm", 1).sessions.open_sessions.set(1234)
    site.metrics.for_version("lstm", 1).sequences.record_run(100, 100)
    browser.open(site.url)
    browser.wait_until("document.querySelectorAll('tbody .tag').length === 1")
    assert browser.text("tbody .tag") == "1,234 sessions"
    assert "padding" not in browser.text("tbody .batch")
    site.metrics.for_version("lstm", 1).record_run(30, 10, 0, (0.0, 0.001, 0.0), 0.0)
    site.metrics.for_version("lstm", 1).sequences.record_run(100, 88)
    browser.wait_until("document.querySelector('tbody .batch').innerText.includes('padding')")
    assert browser.text("tbody .batch").split("\n") == ["30.0", "12 % padding"]
    assert "1,234 open sessions" in browser.text("#tile-requests")
    screenshot("sessions")
    site.metrics.for_version("lstm", 1).sessions.open_sessions.set(1)
    browser.wait_until("document.querySelector('tbody .tag').innerText === '1 session'")
    assert "1 open session" in browser.text("#tile-requests")
    site.metrics.for_version("lstm", 1).sessions.open_sessions.set(0)
    browser.wait_until("document.querySelectorAll('tbody .tag').length === 0")


def test_the_page_works_with_keyboard_and_screen_reader(browser, site):
    for name in ("b", "a", "c"):
        site.versions.append(VersionInfo(name, 1, "ready", ["latest"]))
        site.metrics.for_version(name, 1)
    browser.open(site.url)
    browser.wait_until("document.querySelectorAll('tbody tr').length === 3")
    tree = browser.accessibility_tree()
    roles = [role for role, _, _ in tree]
    assert roles.count("columnheader") == 10
    assert roles.count("rowheader") == 3
    named = {(role, name) for role, name, _ in tree}
    assert ("searchbox", "Filter by model, label or state") in named
    assert ("checkbox", "only with problems") in named
    assert ("heading", "Models") in named
    assert any(role == "table" and name.startswith("Rates, percentiles") for role, name in named)
    focused = "document.activeElement.textContent"
    for _ in range(12):
        browser.press("Tab")
        if browser.evaluate(focused) == "Model":
            break
    assert browser.evaluate(focused) == "Model"
    browser.press("Enter", "\r")
    names = "[...document.querySelectorAll('.name')].map(n => n.innerText).join('')"
    browser.wait_until(f"{names} === 'cba'")
    sort = "document.querySelector('th.model').getAttribute('aria-sort')"
    assert browser.evaluate(sort) == "descending"
    browser.press("Enter", "\r")
    browser.wait_until(f"{names} === 'abc'")


def test_text_has_enough_contrast(browser, site):
    """Web Content Accessibility Guidelines 2.2, 1.4.3: text at 4.5 to 1 and more."""
    script = """(() => {
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = n => { for (; n; n = n.parentElement) {
        const c = getComputedStyle(n).backgroundColor;
        if (!c.endsWith(', 0)') && c !== 'transparent') return c; } };
      return ['#facts', '.pill', 'h1', 'article h2', '.note', 'caption', 'thead button', '.tag',
        '.version', 'td .pill', '.flags', 'footer p', 'footer a'].map(s => {
        const n = document.querySelector(s), c = getComputedStyle(n).color;
        const [a, b] = [light(c), light(ground(n))].sort((x, y) => y - x);
        return [s, (a + 0.05) / (b + 0.05)]; });
    })()"""
    site.versions.append(VersionInfo("m", 1, "loading", ["latest"], True))
    for dark in (False, True):
        browser.open(site.url, dark=dark)
        browser.wait_until("document.querySelectorAll('tbody .tag').length === 1")
        for selector, ratio in browser.evaluate(script):
            assert ratio >= 4.5, (selector, ratio, dark)
