"""`python -m neurona_server.doctor`: each check alone, and the report of a process."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from support.cli import environment

from neurona_server.config.options import Config
from neurona_server.doctor.__main__ import main
from neurona_server.doctor.findings import (
    Finding,
    Mark,
    print_findings,
    run_checks,
    run_in_child,
    write_findings,
)
from neurona_server.doctor.machine_checks import machine_checks, port_user
from neurona_server.doctor.package_checks import is_within, package_checks
from neurona_server.doctor.runtime_checks import runtime_checks
from neurona_server.doctor.settings import DEFAULT_ADDRESSES, DoctorSettings, read_settings

NO_ADDRESSES = DoctorSettings(addresses={}, cache="off")


def diagnose(*arguments, cwd, **variables):
    """Run the doctor in a process; returns its status and the findings by subject."""
    done = subprocess.run(
        [sys.executable, "-m", "neurona_server.doctor", "--json", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=environment(**variables),
    )
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["faults"] == sum(one["mark"] == "fault" for one in report["findings"])
    return done.returncode, {one["subject"]: one for one in report["findings"]}


def findings_of(checks):
    return {one.subject: one for one in run_checks(checks)}


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """The report of this machine, with ports that nothing uses."""
    variables = {f"NEURONA_{name.upper()}": "127.0.0.1:0" for name in DEFAULT_ADDRESSES}
    folder = tmp_path_factory.mktemp("doctor")
    return diagnose(cwd=folder, NEURONA_CACHE=str(folder / "cache"), **variables)


def test_a_machine_that_can_serve_has_no_fault(machine):
    status, findings = machine
    assert status == 0
    assert {one["mark"] for one in findings.values()} <= {"ok", "note"}
    for subject in ("Python", "neurona", "packages", "options", "ONNX Runtime", "CPU provider"):
        assert findings[subject]["mark"] == "ok", findings[subject]
    for subject in ("GPU driver", "GPU", "CPUs", "memory", "open files", "gRPC transport"):
        assert subject in findings
    for package in ("grpcio", "protobuf", "numpy", "msgspec", "onnx"):
        assert f"{package} " in findings["packages"]["text"]
    assert findings["cache"]["text"].endswith("cache can be made")


def test_the_doctor_leaves_no_folder(tmp_path):
    settings = DoctorSettings(addresses={}, cache=str(tmp_path / "a" / "b"))
    assert findings_of(machine_checks(settings))["cache"].mark is Mark.OK
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stub", "subject", "texts"),
    [
        ({"devices": 2}, "GPU driver", ["supports CUDA "]),
        ({"devices": 1}, "GPU 0", ["compute capability ", " GiB"]),
        ({"devices": 0}, "GPU", ["models run on the CPU", "GPU"]),
    ],
)
def test_a_driver_and_its_devices_are_described(cuda_stub, tmp_path, stub, subject, texts):
    variables = cuda_stub.environment(**stub)
    command = [sys.executable, "-m", "neurona_server.doctor", "--group", "runtime"]
    done = subprocess.run(
        command, check=True, capture_output=True, cwd=tmp_path, env=environment(**variables)
    )
    findings = {one["subject"]: one for one in map(json.loads, done.stdout.splitlines())}
    for text in texts:
        assert text in findings[subject]["text"]


def test_a_gpu_that_is_required_and_missing_is_a_fault(monkeypatch):
    from neurona_server.models.onnx import runtime

    monkeypatch.setattr(runtime, "missing_gpu_reason", lambda: "the driver is too old")
    finding = findings_of(runtime_checks(DoctorSettings(require_gpu=True)))["GPU"]
    assert finding.mark is Mark.FAULT
    assert finding.text.startswith("require_gpu is true, but ")


def test_two_runtimes_over_each_other_are_a_fault(monkeypatch):
    from neurona_server.models.onnx import gpu_facts

    both = ["onnxruntime", "onnxruntime-gpu"]
    monkeypatch.setattr(gpu_facts, "runtime_packages", lambda: both)
    finding = findings_of(runtime_checks(NO_ADDRESSES))["ONNX Runtime"]
    assert finding.mark is Mark.FAULT
    assert "onnxruntime and onnxruntime-gpu are installed over each other" in finding.text
    assert "pip uninstall onnxruntime onnxruntime-gpu" in finding.advice


def test_a_missing_runtime_is_a_fault_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    findings = findings_of(runtime_checks(NO_ADDRESSES))
    assert findings["ONNX Runtime"].mark is Mark.FAULT
    assert "pip install onnxruntime" in findings["ONNX Runtime"].advice


def test_missing_and_old_packages_are_faults(monkeypatch):
    from importlib import metadata

    versions = {"neurona": "0.1.0", "grpcio": "1.70.0"}

    def version(name):
        try:
            return versions[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "version", version)
    findings = findings_of(package_checks())
    assert findings["grpcio"].text == "1.70.0 (expected >=1.76,<2)" or (
        findings["grpcio"].text == "1.70.0 (expected <2,>=1.76)"
    )
    assert findings["grpcio"].mark is findings["packages"].mark is Mark.FAULT
    assert "msgspec" in findings["packages"].text
    assert "torch" not in findings["packages"].text  # of another extra
    assert "pip install 'neurona[server]'" in findings["packages"].advice


@pytest.mark.parametrize(
    ("version", "bounds", "within"),
    [
        ("1.76.0", ">=1.76,<2", True),
        ("1.75.9", ">=1.76,<2", False),
        ("2.0", "<2", False),
        ("10.0", ">=9.5", True),
        ("1.0rc1", ">=1", True),
        ("1", "", True),
    ],
)
def test_bounds_of_versions(version, bounds, within):
    assert is_within(version, bounds) is within


def test_a_port_in_use_is_a_fault_with_its_user():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        settings = DoctorSettings({"address": address, "http_address": address}, "off")
        findings = findings_of(machine_checks(settings))
        assert findings["address"].mark is Mark.FAULT
        assert f"{address} is in use by process {os.getpid()} (" in findings["address"].text
        assert findings["address"].advice == "set address to another HOST:PORT"
        assert findings["http_address"].advice == "set http_address to another HOST:PORT, or off"
    assert port_user(int(address.rpartition(":")[2])) == ("", "")


@pytest.mark.parametrize(
    ("address", "mark", "text"),
    [
        ("127.0.0.1:0", Mark.OK, "is free"),
        ("", Mark.OK, "off"),
        ("nowhere.invalid:1", Mark.FAULT, "unknown host"),
        ("192.0.2.1:8001", Mark.FAULT, "Cannot assign"),
        ("unix:/nowhere/socket", Mark.FAULT, "/nowhere is not a writable folder"),
        ("unix:socket", Mark.OK, "its folder is writable"),
    ],
)
def test_addresses_that_can_and_cannot_be_listened_on(tmp_path, monkeypatch, address, mark, text):
    monkeypatch.chdir(tmp_path)
    findings = findings_of(machine_checks(DoctorSettings({"address": address}, "off")))
    assert findings["address"].mark is mark
    assert text in findings["address"].text


def test_a_server_that_runs_already_is_no_fault(tmp_path):
    code = (
        "import socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, "neurona-serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        finding = findings_of(machine_checks(DoctorSettings({"address": address}, "off")))
        process.stdin.close()
    assert finding["address"].mark is Mark.NOTE
    assert finding["address"].text.endswith("a server runs already")


def test_a_cache_that_others_may_use_is_a_note(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    findings = findings_of(machine_checks(DoctorSettings({}, str(folder))))
    assert findings["cache"].mark is Mark.NOTE
    assert "expected mode 0700" in findings["cache"].text


def test_the_options_of_the_server_decide_what_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neurona.toml").write_text('address = "h:1"\nmetrics_address = "off"\n')
    monkeypatch.setenv("NEURONA_TRANSPORT", "aio")
    settings, finding = read_settings([])
    assert (settings.addresses["address"], settings.transport) == ("h:1", "aio")
    assert settings.addresses["metrics_address"] == ""
    assert finding.mark is Mark.OK
    assert "NEURONA_TRANSPORT" in finding.text
    (tmp_path / "neurona.toml").write_text("adress = 3\n")
    settings, finding = read_settings([])
    assert settings == DoctorSettings()
    assert (finding.mark, finding.subject) == (Mark.FAULT, "options")
    assert "unknown option 'adress'" in finding.text


def test_the_default_addresses_are_those_of_the_options():
    config = Config()
    assert {name: getattr(config, name) for name in DEFAULT_ADDRESSES} == DEFAULT_ADDRESSES


def test_a_check_that_fails_is_a_line_and_stops_no_other():
    def fail():
        yield Finding("a", Mark.OK, "fine")
        raise ValueError("no\nsuch\nthing")

    lines = list(run_checks([("a", fail), ("b", lambda: [Finding("b", Mark.OK, "fine")])]))
    assert [(one.subject, one.mark) for one in lines] == [
        ("a", Mark.OK),
        ("a", Mark.NOTE),
        ("b", Mark.OK),
    ]
    assert lines[1].text == "cannot be checked: ValueError: no such thing"


WRITE = "from neurona_server.doctor.findings import *; write_findings([Finding('a', Mark.OK, 'x')])"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the check was ended by signal 11"),
        ("import sys; sys.exit('no library')", "the check ended with status 1: no library"),
        ("import time; time.sleep(60)", "the check did not end within 3 s"),
    ],
)
def test_a_crash_of_a_library_is_a_fault_after_the_findings_so_far(code, text):
    command = [sys.executable, "-c", f"{WRITE}\n{code}"]
    first, second = run_in_child("b", command, seconds=3)
    assert first == Finding("a", Mark.OK, "x")
    assert (second.subject, second.mark, second.text) == ("b", Mark.FAULT, text)


def test_what_libraries_print_is_no_finding(capfd):
    os.write(1, b"before\n")
    saved = os.dup(1)
    try:
        write_findings([Finding("a", Mark.NOTE, "é")])
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert capfd.readouterr().out == (
        'before\n{"subject": "a", "mark": "note", "text": "\\u00e9", "advice": ""}\n'
    )


def test_the_report_is_lines_with_marks_and_what_to_do(capsys):
    findings = [
        Finding("a", Mark.OK, "fine"),
        Finding("b", Mark.FAULT, "gone\x1b[2J", "install it"),
    ]
    assert print_findings(findings, as_json=False) == 1
    assert capsys.readouterr().out == (
        "ok     a: fine\n"
        "fault  b: gone\\x1b[2J\n"
        "       -> install it\n"
        "\n1 fault keeps it from running\n"
    )
    assert print_findings(findings[:1], as_json=False) == 0
    assert capsys.readouterr().out.endswith("\nno fault: neurona-serve can run here\n")


def test_a_fault_exits_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neurona_server.doctor.__main__.SUBJECTS", {})
    monkeypatch.setenv("NEURONA_MAX_BATCH_ROWS", "none")
    assert main([]) == 1
    assert "fault  options: option max_batch_rows is 'none'" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
