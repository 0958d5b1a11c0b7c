"""Published files: from the user's folder or over HTTP, verified by their checksums."""

import gzip
import hashlib
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest

from neurona_training.data.published_files import PublishedFile, fetch
from neurona_training.data.sources.mnist import read_idx
from neurona_training.errors import DataError

CONTENT = b"1958,perceptron\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of its own for each test, and no folder named by the environment."""
    monkeypatch.delenv("NEURONA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "neurona"


@pytest.fixture
def published(tmp_path):
    """A server of its own on this machine: the folder it serves, and its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "years.csv").write_bytes(CONTENT)
    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_once(published, cache, capfd):
    folder, address = published
    file = PublishedFile("history/years.csv", f"{address}/years.csv", SHA256)
    path = fetch(file)
    assert path == cache / "history" / "years.csv"
    assert cache.stat().st_mode & 0o777 == 0o700  # neurona-serve has its cache there too
    assert path.read_bytes() == CONTENT
    (folder / "years.csv").unlink()
    assert fetch(file) == path  # the server no longer has it
    assert capfd.readouterr().err == ""


def test_a_damaged_file_in_the_cache_is_downloaded_again(published, cache):
    file = PublishedFile("years.csv", f"{published[1]}/years.csv", SHA256)
    cache.mkdir(parents=True)
    (cache / "years.csv").write_bytes(CONTENT[:5])
    assert fetch(file).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "sha256", "expected"),
    [
        ("years.csv", "0" * 64, f"the download does not have the SHA-256 {'0' * 64}"),
        ("none.csv", SHA256, "404 Client Error"),
    ],
)
def test_a_failed_download_is_one_line(published, cache, name, sha256, expected):
    url = f"{published[1]}/{name}"
    with pytest.raises(DataError, match="cannot download") as caught:
        fetch(PublishedFile("years.csv", url, sha256))
    for part in (expected, url, "years.csv", "--data-dir"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_missing_network_is_named(published):
    address = published[1].replace("127.0.0.1", "no-such-host.invalid")
    with pytest.raises(DataError, match=r"cannot download years\.csv .*: no connection"):
        fetch(PublishedFile("years.csv", f"{address}/years.csv", SHA256))


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_only_the_given_folder_is_searched(tmp_path, monkeypatch, cache, by):
    file = PublishedFile("history/years.csv", "http://no-such-host.invalid/years.csv", SHA256)
    folder = tmp_path / "mine"
    (folder / "history").mkdir(parents=True)
    data_dir = folder if by == "argument" else None
    if by == "environment":
        monkeypatch.setenv("NEURONA_DATA", str(folder))

    with pytest.raises(
        DataError, match=rf"years\.csv is missing in {folder}; it is published at http:"
    ):
        fetch(file, data_dir)
    (folder / "history" / "years.csv").write_bytes(CONTENT)
    assert fetch(file, data_dir) == folder / "history" / "years.csv"
    (folder / "history" / "years.csv").write_bytes(b"1959")
    with pytest.raises(
        DataError, match=r"is not the published file: its SHA-256 is \w{64} \(expected"
    ):
        fetch(file, data_dir)
    assert not cache.exists()


def _idx(path, header, values):
    path.write_bytes(gzip.compress(bytes(header) + bytes(values)))
    return path


def test_an_idx_file_is_read(tmp_path):
    header = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3]
    read = read_idx(_idx(tmp_path / "a.gz", header, range(6)))
    assert np.array_equal(read, np.arange(6).reshape(2, 1, 3))
    one_axis = [0, 0, 8, 1, 0, 0, 1, 4]  # most significant byte first: 260
    assert read_idx(_idx(tmp_path / "b.gz", one_axis, [7] * 260)).shape == (260,)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain", "is not a gzip file"),
        (gzip.compress(CONTENT)[:-9], "is not a gzip file"),
        (gzip.compress(b"PNG..."), "is not an IDX file of bytes: it begins with 50 4e 47 2e"),
        (gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 0])), "is not an IDX file of bytes"),
        (gzip.compress(bytes([0, 0, 8, 3, 0, 0])), "ends within its header"),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2])), "has 2 values for the shape [3]"),
    ],
    ids=["plain", "truncated", "PNG", "floats", "short header", "too few values"],
)
def test_a_file_of_another_format_is_rejected(tmp_path, content, expected):
    path = tmp_path / "digits.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
