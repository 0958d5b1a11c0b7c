"""neurona doctor: that it runs the server's checks, and what it says without a server."""

import json
import subprocess

from support.cli import NEURONA, environment

from neurona_client.cli import doctor
from neurona_client.cli.main import main
from neurona_server.doctor.settings import DEFAULT_ADDRESSES


def test_it_runs_the_checks_of_the_server(tmp_path):
    ports = {f"NEURONA_{name.upper()}": "127.0.0.1:0" for name in DEFAULT_ADDRESSES}
    (tmp_path / "o.toml").write_text("threads = 1\n")
    done = subprocess.run(
        [NEURONA, "doctor", "--config", "o.toml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment(**ports),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nok     CPU provider: runs a model\n" in done.stdout
    assert done.stdout.endswith("\nno fault: neurona-serve can run here\n")


def test_without_the_server_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "SERVER", "neurona_server_that_is_not_installed")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("fault  packages: the server is not installed\n")
    assert "pip install 'neurona[server]'" in shown
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == 1
