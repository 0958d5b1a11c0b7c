"""Configurations and files that a call gives, and paths that lead elsewhere."""

import threading

import pytest
from support import onnx_models
from support.in_process_server import InProcessServer

from neurona_server.errors import InvalidArgumentError, NotLoadedError
from neurona_server.models.repository.override import UploadedModel, make_override
from neurona_server.models.repository.scanner import Repository

CONFIG = '{"backend": "onnxruntime"}'


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "/", "..", "../x", "1/../../x", "/etc/passwd", "1/model.onnx\0", "C:/x", "1\\x"),
        *("model.toml", "config.pbtxt", "./model.toml", ".//config.pbtxt", "model.toml/"),
        *("1/" + "x" * 256, "1/" + "ü" * 128),
    ],
)
def test_a_path_must_lead_to_a_file_of_a_version(path):
    with pytest.raises(InvalidArgumentError, match="Invalid file path"):
        make_override("m", CONFIG, {path: b""})


def test_two_paths_of_one_file_are_refused():
    with pytest.raises(InvalidArgumentError, match="is a duplicate of 'file:1/model.onnx'"):
        make_override("m", CONFIG, {"1/model.onnx": b"a", "1//model.onnx": b"b"})


@pytest.mark.parametrize(
    "paths", [("1", "1/model.onnx"), ("config.pbtxt/x",), ("a/" * 3000 + "model.onnx",)]
)
def test_files_that_cannot_be_stored_leave_nothing(tmp_path, monkeypatch, paths):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NotLoadedError, match="the files of model 'm' cannot be stored"):
        UploadedModel("m", make_override("m", CONFIG, dict.fromkeys(paths, b"x")))
    assert not [*tmp_path.iterdir()]


def test_an_empty_folder_of_that_name_does_not_hide_the_configuration(tmp_path):
    roots = [tmp_path / "first", tmp_path / "second"]
    onnx_models.save_classifier(roots[1] / "m" / "1" / "model.onnx")
    (roots[0] / "m").mkdir(parents=True)
    repository = Repository(roots)
    folder = repository.scan_with_config("m", "max_batch_size: 7")
    assert folder.settings.max_batch_rows == 7
    assert [*folder.versions] == [1]
    onnx_models.save_classifier(roots[0] / "m" / "1" / "model.onnx")
    assert "duplicate" in repository.scan_with_config("m", "max_batch_size: 7").problem
    assert repository.scan_with_config("other", "max_batch_size: 7") is None


@pytest.fixture
def reconciler(tmp_path, monkeypatch):
    """Of a server with an empty repository, and the files of uploads in tmp_path / "uploads"."""
    for name in ("repository", "uploads"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "uploads"))
    server = InProcessServer(tmp_path / "repository", explicit=True)
    yield server.reconciler
    server.stop()


@pytest.fixture
def content(tmp_path):
    return onnx_models.save_classifier(tmp_path / "model.onnx").read_bytes()


def test_a_long_load_of_uploaded_files_goes_on_while_the_repository_is_polled(
    reconciler, content, monkeypatch
):
    loading, released = threading.Event(), threading.Event()
    load = reconciler._load_model

    def wait_and_load(source, cancellation):
        loading.set()
        assert released.wait(20)
        return load(source, cancellation)

    monkeypatch.setattr(reconciler, "_load_model", wait_and_load)
    loaded = reconciler.load("m", make_override("m", CONFIG, {"1/model.onnx": content}))
    assert loading.wait(20)
    for _ in range(3):  # it finds no folder of that name
        reconciler.poll_once()
    released.set()
    assert loaded.result(20) is None
    assert reconciler.requested == ["m"]
    reconciler.poll_once()
    assert reconciler.requested == ["m"]


def test_uploaded_files_go_with_their_model(reconciler, content, tmp_path):
    uploads = tmp_path / "uploads"
    for name in ("a", "b"):
        override = make_override(name, CONFIG, {"1/model.onnx": b"no model"})
        with pytest.raises(NotLoadedError):
            reconciler.load(name, override).result(20)
    reconciler.poll_once()
    assert not [*uploads.iterdir()]
    good = make_override("a", CONFIG, {"1/model.onnx": content})
    for _ in range(2):
        reconciler.load("a", good).result(20)
        assert len([*uploads.iterdir()]) == 1
    reconciler.unload("a").result(20)
    assert not [*uploads.iterdir()]
