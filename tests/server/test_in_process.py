"""`neurona_server.serve`: a server inside a notebook, a test or another program."""

import asyncio
import contextlib
import gc
import http.client
import logging
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import onnx_models
from support.cli import environment

import neurona_server
from neurona_client import AsyncClient
from neurona_client.errors import NeuronaError
from neurona_server.errors import ConfigError, LoadError

ROWS = np.array([[1, 2, 3, 4], [-9, -9, -9, -9]], np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_models.save_classifier(tmp_path_factory.mktemp("models") / "iris.onnx")


@pytest.fixture(scope="module")
def server(model):
    with neurona_server.serve(model) as server:
        yield server


def test_a_file_is_served_under_its_name(server, model):
    assert server.models == [("iris", 1)]
    assert [one.name for one in server.client.models()] == ["iris"]
    first, second = server.client.predict("iris", ROWS)
    assert first.label != second.label
    assert server.client is server.client


def test_a_folder_a_model_in_memory_and_named_ones_are_served_together(repository, model):
    proto = onnx.load(model)
    content = model.read_bytes()
    with neurona_server.serve(repository, proto, content, {"b": proto, "c": content}) as server:
        names = {name for name, _ in server.models}
        assert {"classifier", "regressor", "model", "model-2", "b", "c"} <= names
        answers = [server.client.predict(name, ROWS) for name in ("model", "model-2", "b", "c")]
    assert len({tuple(row.label for row in answer) for answer in answers}) == 1


def test_options_are_those_of_the_command(model):
    with neurona_server.serve(model, max_request_rows=1, metrics_address="127.0.0.1:0") as server:
        with pytest.raises(NeuronaError, match="rows"):
            server.client.predict("iris", ROWS)
        with urllib.request.urlopen(server.metrics_url) as page:  # noqa: S310
            assert page.status == 200
    with neurona_server.serve(model, http_address="off") as server:
        assert (server.url, server.metrics_url) == ("", "")


def test_it_serves_http(server):
    host, _, port = server.url.removeprefix("http://").rstrip("/").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/neurona.v1.Models/List", "{}", headers)
        assert b'"iris"' in connection.getresponse().read()


def test_the_environment_and_files_of_options_are_not_read(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURONA_MAX_REQUEST_ROWS", "1")
    Path("neurona.toml").write_text("max_request_rows = 1\n")
    with neurona_server.serve(model) as server:
        assert len(server.client.predict("iris", ROWS)) == 2


def test_several_servers_run_at_once(server, repository):
    with neurona_server.serve(repository) as other:
        assert other.address != server.address
        assert {name for name, _ in other.models} >= {"classifier", "regressor"}
    assert len(server.client.predict("iris", ROWS)) == 2


def test_it_serves_while_an_event_loop_runs_as_in_a_notebook(model):
    async def cell():
        with neurona_server.serve(model) as server:
            now = len(server.client.predict("iris", ROWS))
            async with AsyncClient(server.address) as client:
                return now, len(await client.predict("iris", ROWS))

    assert asyncio.run(cell()) == (2, 2)


@pytest.mark.parametrize(
    ("models", "options", "error", "message"),
    [
        (["nowhere/x.onnx"], {}, LoadError, "nowhere/x.onnx"),
        ([b"no model"], {}, LoadError, "model.onnx.*its file is not ONNX"),
        ([], {}, LoadError, "no model .expected an ONNX file"),
        (
            [3],
            {},
            TypeError,
            "invalid model of type int .expected a path, bytes or onnx.ModelProto",
        ),
        ([{"a/b": b""}], {}, ConfigError, "invalid model name 'a/b'"),
        ([{"a": b""}, {"a": b""}], {}, ConfigError, "duplicate model name 'a'"),
        ([b""], {"max_rows": 1}, ConfigError, "unknown option 'max_rows'"),
        ([b""], {"threads": -1}, ConfigError, "option threads is -1"),
        ([b""], {"processes": 2}, ConfigError, "option processes is for the command"),
        ([b""], {"tokens_file": "nowhere"}, ConfigError, "cannot read nowhere"),
    ],
)
def test_what_cannot_be_served_is_an_exception_with_the_reason(models, options, error, message):
    with pytest.raises(error, match=message):
        neurona_server.serve(*models, **options)


def test_an_address_in_use_is_an_exception(server, model):
    with pytest.raises(ConfigError, match=f"cannot listen on {server.address}"):
        neurona_server.serve(model, address=server.address)


def test_closing_is_idempotent_and_leaves_no_thread_and_no_file(model, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(threading.enumerate())
    server = neurona_server.serve(model.read_bytes())
    client = server.client
    client.models()
    assert list(tmp_path.iterdir())
    server.close()
    server.close()
    with pytest.raises(LoadError):
        neurona_server.serve(b"no model")
    with pytest.raises(ConfigError):
        neurona_server.serve(b"", tokens_file="nowhere")
    assert set(threading.enumerate()) - before == set()
    assert not list(tmp_path.iterdir())
    assert repr(server) == "<EmbeddedServer closed>"
    with pytest.raises(RuntimeError, match="server closed"):
        server.client.models()


def test_the_host_process_keeps_its_settings(model):
    def settings():
        hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook)
        signals = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        root = logging.getLogger()
        return hooks, signals, root.level, list(root.handlers), gc.get_freeze_count()

    before = settings()
    with neurona_server.serve(model):
        assert settings() == before
    assert settings() == before


def test_it_logs_through_logging(model, caplog):
    with caplog.at_level(logging.INFO, "neurona_server"), neurona_server.serve(model) as server:
        pass
    assert f"serving gRPC on 127.0.0.1:0 (port {server.address.rpartition(':')[2]})" in caplog.text


def test_a_notebook_shows_the_models_and_where_they_are(server):
    page = server._repr_html_()
    assert server.address in page
    assert f'<a href="{server.url}"' in page
    assert "<td>iris</td><td>1</td>" in page
    assert server.address in repr(server)


def test_a_program_that_does_not_close_it_ends_and_prints_nothing(model, tmp_path):
    code = (
        "import sys, neurona_server\n"
        "server = neurona_server.serve(sys.argv[1])\n"
        "assert 'neurona_client' not in sys.modules\n"
        "assert server.client.models()[0].name == 'iris'\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, str(model)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment(HOME=str(tmp_path)),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == []


def test_the_package_imports_nothing_for_it():
    code = "import sys, neurona_server; print('grpc' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False False\n"
    with pytest.raises(AttributeError, match="no attribute 'serves'"):
        neurona_server.serves  # noqa: B018
