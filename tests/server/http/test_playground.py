"""The playground's page: its files, its headers, its switch, and what it says without a token."""

import contextlib
import hashlib
import http.client
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import onnx_models
from support.in_process_server import run_app
from support.server_process import free_addresses

from neurona_server.http.playground import pages

STATIC = Path(pages.__file__).parent / "static"
TOKEN = "a-token-of-a-person"  # noqa: S105


def get(app, path, headers=(), data=None):
    """Returns status, headers and body."""
    with contextlib.closing(http.client.HTTPConnection(app.http_address, timeout=20)) as connection:
        connection.request("GET" if data is None else "POST", path, data, dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()


@contextlib.contextmanager
def serve(*arguments):
    """Runs a server with HTTP; its addresses are attributes."""
    (http_address,) = free_addresses(1)
    with run_app([str(one) for one in arguments], {}, http_address=http_address) as app:
        yield SimpleNamespace(
            http_address=http_address, address=app.address, metrics_address=app.metrics_address
        )


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_classifier(root / "classifier" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="module")
def app(repository):
    with serve("--repository", repository) as app:
        yield app


@pytest.fixture(scope="module")
def guarded_app(repository, tmp_path_factory):
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    rights = '["predict", "describe"]'
    tokens.write_text(f'[[tokens]]\nname = "person"\nsha256 = "{digest}"\nrights = {rights}\n')
    with serve("--repository", repository, "--tokens-file", tokens) as app:
        yield app


class References(HTMLParser):
    """Collects what a document loads, and scripts and styles inside it."""

    def __init__(self):
        super().__init__()
        self.loaded, self.inline = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("link", "script", "img"):
            self.loaded.append(attributes.get("href") or attributes.get("src") or "inline")
        self.inline += [name for name in attributes if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" else []


def test_the_page_and_all_its_files_are_served(app):
    status, headers, document = get(app, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    parser = References()
    parser.feed(document.decode())
    assert parser.inline == []
    assert parser.loaded == ["data:,", "playground/style.css", "playground/main.js"]
    names = {path.name for path in STATIC.iterdir()} - {"page.html"}
    assert {"main.js", "style.css"} < names
    for name in names:
        status, headers, content = get(app, f"/playground/{name}")
        assert status == 200
        assert content == (STATIC / name).read_bytes()
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        assert headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_policy_allows_this_server_only(app):
    _, headers, _ = get(app, "/")
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob: data:"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"unsafe|\*|http", headers["Content-Security-Policy"])
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_no_file_names_another_server_or_makes_markup_of_text():
    for path in STATIC.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://[a-z0-9]", text), path.name
        pattern = r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function\()\b"
        assert not re.search(pattern, text), path.name


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/pages.py",
        "/playground/../pages.py",
        "/playground/..%2fpages.py",
        "/playground/%2e%2e/pages.py",
        "/playground/static/main.js",
        "/playground//main.js",
        "/playground/main.js%00",
        "/playground/page.html",
        "/playground/....//....//etc/passwd",
    ],
)
def test_no_other_path_is_a_file(app, path):
    status, _, content = get(app, path)
    assert status == 404
    assert str(STATIC.parents[2]).encode() not in content


def test_a_post_to_the_page_is_refused(app):
    status, headers, _ = get(app, "/", data=b"{}")
    assert status == 405
    assert "GET" in headers["Allow"]


def test_what_the_page_knows_of_the_server(app):
    status, headers, content = get(app, "/playground/server.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    facts = json.loads(content)
    host, port = app.address.rsplit(":", 1)
    assert facts["grpc"] == {"host": host, "port": int(port), "tls": False}
    host, port = app.metrics_address.rsplit(":", 1)
    assert facts["metrics"] == {"host": host, "port": int(port), "tls": False}
    assert facts["tokens"] is False
    assert facts["version"]
    for link in facts["links"]:
        assert get(app, link["path"])[0] == 200
    assert b"service Prediction" in get(app, pages.PROTO_PATH)[2]


def test_with_tokens_the_page_is_served_and_its_calls_need_one(guarded_app):
    assert get(guarded_app, "/")[0] == 200
    facts = json.loads(get(guarded_app, "/playground/server.json")[2])
    assert facts["tokens"] is True
    assert facts["version"] == ""
    headers = {"Content-Type": "application/json"}
    path = "/neurona.v1.Models/List"
    status, _, content = get(guarded_app, path, headers, b"{}")
    assert status == 401
    assert json.loads(content)["code"] == "UNAUTHENTICATED"
    headers["Authorization"] = f"Bearer {TOKEN}"
    status, _, content = get(guarded_app, path, headers, b"{}")
    assert status == 200
    assert json.loads(content)["models"][0]["model"] == "classifier"


def test_switched_off_the_page_says_so(repository):
    with serve("--repository", repository, "--playground", "false") as app:
        status, _, content = get(app, "/")
        assert status == 404
        assert content == b"the playground is off (expected the option playground)\n"
        assert get(app, "/playground/main.js")[0] == 404
        assert get(app, "/playground/server.json")[0] == 404
