"""deploy/open_page.py, which `make serve` runs beside the server."""

import importlib.util
import sys
from pathlib import Path

import pytest
from support import onnx_models

import neurona_server

FILE = Path(__file__).parents[2] / "deploy" / "open_page.py"


@pytest.fixture(scope="module")
def open_page():
    spec = importlib.util.spec_from_file_location("open_page", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def opened(open_page, monkeypatch):
    """The pages that a browser was asked to open, on a machine with a terminal and a display."""
    pages = []
    monkeypatch.setattr(open_page.webbrowser, "open", pages.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    return pages


def test_the_page_opens_once_a_server_answers(open_page, opened, tmp_path):
    with neurona_server.serve(onnx_models.save_classifier(tmp_path / "m.onnx")) as server:
        assert open_page.main(server.url) == 0
    assert opened == [server.url]


def test_without_a_server_nothing_opens(open_page, opened, monkeypatch):
    monkeypatch.setattr(open_page, "WAIT_SECONDS", 0.3)
    assert open_page.main("http://127.0.0.1:1/") == 0
    assert opened == []


def test_without_a_terminal_nothing_opens(open_page, opened, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert open_page.main("http://127.0.0.1:1/") == 0
    assert opened == []


@pytest.mark.parametrize(
    ("platform", "environment", "screen"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"DISPLAY": ":10", "SSH_CONNECTION": "x"}, False),
        ("darwin", {}, True),
        ("win32", {}, True),
    ],
)
def test_a_browser_needs_a_screen(open_page, platform, environment, screen):
    assert open_page.has_screen(platform, environment) is screen
