"""Servers for the cases, and the table of their results.

A case is what one test of Triton's own suites (qa/L0_*) or one of its example programs checks over
gRPC, written anew for ONNX models. `pytest -m "slow or not slow" tests/triton_compatibility` runs
all, and prints the table.
"""

import collections

import pytest
from support import triton_calls
from support.server_process import ServerProcess
from support.triton_calls import RESULTS, TritonCaller

_PROPERTY = "triton"


def _classify(item, report):
    """Return the suite, the cause and the result of a case that has ended."""
    marks = list(item.iter_markers("triton"))
    suite = next(mark.args[0] for mark in marks if mark.args)
    declared = next((m.kwargs["declared"] for m in marks if m.kwargs.get("declared")), "")
    cause = declared or next((m.kwargs["cause"] for m in marks if m.kwargs.get("cause")), "")
    if report.failed:
        return suite, cause or "other", triton_calls.UNDECLARED
    if declared:
        return suite, declared, triton_calls.DECLARED
    if triton_calls.wording_differences:
        return suite, "wording", triton_calls.WORDING
    return suite, cause, triton_calls.SAME


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if item.get_closest_marker("triton") is None:
        return
    if report.when == "setup":
        triton_calls.wording_differences.clear()
    if report.when == "call" or (report.when == "setup" and report.failed):
        report.user_properties.append((_PROPERTY, _classify(item, report)))


def _table(title, rows):
    """Yield the lines of a table; a row is a name and the result of a case."""
    counts = collections.defaultdict(collections.Counter)
    for name, result in rows:
        counts[name][result] += 1
    yield f"| {title} | cases | " + " | ".join(RESULTS) + " |"
    yield "|" + "---|" * (len(RESULTS) + 2)
    total = collections.Counter(result for _, result in rows)
    for name, row in [*sorted(counts.items()), ("all", total)]:
        cells = [str(row[result]) for result in RESULTS]
        yield f"| {name} | {row.total()} | " + " | ".join(cells) + " |"


def pytest_terminal_summary(terminalreporter):
    cases = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _PROPERTY
    ]
    if not cases:
        return
    write = terminalreporter.write_line
    terminalreporter.section("cases of Triton's suites")
    if terminalreporter.config.get_verbosity() < 0:
        counts = collections.Counter(result for *_, result in cases)
        write(", ".join(f"{counts[result]} {result}" for result in RESULTS))
        return
    for line in _table("suite", [(suite, result) for suite, _, result in cases]):
        write(line)
    write("")
    causes = [(cause, result) for _, cause, result in cases if cause]
    for line in _table("cause", causes):
        write(line)


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Starts servers of a module, and returns a ServerProcess with `.triton`, its caller."""
    started = []

    def serve(root, *flags, wait=True):
        cache = tmp_path_factory.mktemp("cache")
        server = ServerProcess(root, "--load-check", "false", "--cache", cache, *flags)
        server.triton = TritonCaller(server.channel)
        server.triton.address = server.address
        started.append(server)
        server.start()
        return server.wait_until_serving() if wait else server

    yield serve
    for server in started:
        server.close()


@pytest.fixture
def start(serve, tmp_path):
    """Starts servers of a test, whose repository is `tmp_path` unless the test names another."""
    started = []

    def start(*flags, root=tmp_path, **options):
        started.append(serve(root, *flags, **options))
        return started[-1]

    yield start
    for server in started:
        server.kill()
