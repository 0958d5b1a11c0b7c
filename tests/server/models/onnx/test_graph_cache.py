import hashlib
import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.errors import LoadError
from neurona_server.models.onnx import graph_cache
from neurona_server.models.onnx.graph_cache import (
    GraphCache,
    cache_key,
    default_cache_folder,
    saves_time,
)
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs

SHARED = os.environ.get("NEURONA_SHARED")
X = {"x": np.ones((2, 4), np.float32)}
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


@pytest.fixture(autouse=True)
def _cache_every_model(monkeypatch):
    monkeypatch.setattr(graph_cache, "MIN_GAIN", -math.inf)
    graph_cache._open_once.cache_clear()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path):
    return onnx_models.save_classifier(tmp_path / "model.onnx")


@pytest.fixture
def load(path, folder):
    return lambda: Session(path, RuntimeOptions(providers=("cpu",), cache=folder))


def entries(folder):
    return sorted(folder.glob("*.graph"))


def put(cache, key, content):
    cache.put(key, lambda path: path.write_bytes(content) and None)


def test_only_many_nodes_with_few_bytes_are_cached(monkeypatch):
    """ResNet-50, a transformer of 48 layers of 64 units, and a small one."""
    monkeypatch.undo()
    assert not saves_time(nodes=120, size=112 << 20)
    assert saves_time(nodes=1728, size=9 << 20)
    assert not saves_time(nodes=57, size=28_000)


def test_second_load_uses_the_cache(load, folder, monkeypatch):
    expected = load().run(X)[0]
    (entry,) = entries(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert entry.stat().st_mode & 0o077 == 0
    assert list(folder.iterdir()) == [entry]
    monkeypatch.setattr(GraphCache, "put", None)  # not called again
    session = load()
    assert np.array_equal(session.run(X)[0], expected)
    assert session.properties  # the entry has them, too


def test_other_models_and_runtimes_have_other_entries(load, path, folder, monkeypatch):
    load()
    onnx_models.save_classifier(path, offset=2.0)
    expected = Session(path, RuntimeOptions()).run(X)[0]
    assert np.array_equal(load().run(X)[0], expected)
    assert np.array_equal(load().run(X)[0], expected)
    assert len(entries(folder)) == 2
    monkeypatch.setattr(onnxruntime, "__version__", "99")
    load()
    assert len(entries(folder)) == 3
    monkeypatch.setattr(graph_cache, "_describe_processor", lambda: ("another one",))
    load()
    assert len(entries(folder)) == 4
    assert cache_key(b"m", "a", "b") != cache_key(b"m", "ab") != cache_key(b"m", "a")


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "not a model"])
def test_damaged_entry_is_replaced(load, folder, damage):
    expected = load().run(X)[0]
    (entry,) = entries(folder)
    content = entry.read_bytes()
    if damage == "not a model":  # with a valid hash
        entry.write_bytes(hashlib.sha256(b"?").digest() + b"?")
    else:
        bit = bytes([*content[:-40], content[-40] ^ 1, *content[-39:]])
        entry.write_bytes({"truncated": content[:200], "empty": b"", "one bit": bit}[damage])
    assert np.array_equal(load().run(X)[0], expected)
    assert entry.read_bytes() == content


def test_invalid_model_leaves_no_entry(path, folder):
    onnx_models.save(
        path,
        [helper.make_node("Nonsense", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [1])},
        {"y": (TensorProto.FLOAT, [1])},
    )
    with pytest.raises(LoadError, match="Nonsense"):
        Session(path, RuntimeOptions(cache=folder))
    assert list(folder.iterdir()) == []


def test_least_recently_used_entries_are_deleted_first(folder):
    cache = GraphCache(folder, max_bytes=300)
    for number, name in enumerate("abc"):
        put(cache, name, bytes(60))
        os.utime(folder / f"{name}.graph", (number, number))
    assert cache.get("a") == bytes(60)  # most recently used
    put(cache, "d", bytes(60))
    assert [path.stem for path in entries(folder)] == ["a", "c", "d"]
    put(cache, "e", bytes(1000))
    assert entries(folder) == []


def test_abandoned_files_are_deleted(folder):
    cache = GraphCache(folder)
    for name, age in (("old", 1e5), ("new", 0)):
        path = folder / f"{name}.part"
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    put(cache, "a", b"model")
    assert {path.name for path in folder.iterdir()} == {"a.graph", "new.part"}


def test_full_disk_is_not_an_error_of_the_model(folder, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    cache = GraphCache(folder)

    def full(path):
        raise OSError(28, "No space left on device")

    cache.put("a", full)
    assert "entry not written: No space left on device" in caplog.text
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("fault", ["open to others", "a link", "a file", "not writable"])
def test_unusable_folder_is_logged_once(load, folder, caplog, fault):
    caplog.set_level(logging.INFO)
    if fault == "a file":
        folder.touch()
    elif fault == "a link":
        (folder.parent / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to("elsewhere")
    elif fault == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(mode=0o500)
    for _ in range(2):
        assert load().run(X)[0].shape == (2, 3)
    lines = [one for one in caplog.messages if "no graph cache in" in one]
    assert len(lines) == 1


def test_entry_that_is_a_link_is_not_followed(folder, tmp_path):
    cache = GraphCache(folder)
    put(cache, "a", b"model")
    shutil.move(folder / "a.graph", tmp_path / "elsewhere")
    (folder / "a.graph").symlink_to(tmp_path / "elsewhere")
    assert cache.get("a") is None


def test_default_folder_follows_the_xdg_specification(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_folder() == Path("/x/neurona")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_folder() == Path("/home/me/.cache/neurona")


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
def test_cached_third_party_models_have_the_same_outputs(folder):
    compared = []
    for path in sorted(Path(SHARED or "").glob("onnx/**/*.onnx")):
        if path.parent.name == "ort_sequence_length":
            continue  # its input is a sequence, not a tensor
        options = RuntimeOptions(providers=("cpu",), cache=folder)
        plain = Session(path, RuntimeOptions(providers=("cpu",)))
        filling = Session(path, options)
        cached = Session(path, options)
        for session in (filling, cached):
            assert session.properties == plain.properties
            assert (session.inputs, session.optional, session.outputs) == (
                plain.inputs,
                plain.optional,
                plain.outputs,
            )
        for size in FREE_SIZES:
            inputs = make_inputs([*plain.inputs, *plain.optional], 3, size)
            if path.parent.parent.name == "triton_simple_string":
                inputs = {name: np.full((3, 16), "7", object) for name in inputs}
            try:
                expected = plain.run(inputs)
            except Exception:  # noqa: S112  the model does not support this size
                continue
            for session in (filling, cached):
                for output, plain_output in zip(session.run(inputs), expected, strict=True):
                    assert output.dtype == plain_output.dtype
                    np.testing.assert_array_equal(output, plain_output)
                assert session.class_labels == plain.class_labels
            compared.append(path)
            break
    assert len(compared) == 28
    cached = [path for path in entries(folder) if path.stat().st_size > 32]
    assert 20 <= len(cached) < len(entries(folder)) == 27  # all but the one with external data


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
def test_graph_that_would_need_its_weights_is_not_cached(folder, caplog):
    """ONNX Runtime 1.31 saves its weights as inputs without values."""
    caplog.set_level(logging.INFO)
    path = Path(SHARED or "") / "onnx" / "ort_lstm_bidirectional_cntk" / "model.onnx"
    for _ in range(3):
        session = Session(path, RuntimeOptions(providers=("cpu",), cache=folder))
        assert [spec.name for spec in session.inputs] == ["Input3"]
        assert session.optional == []
    (entry,) = entries(folder)
    assert entry.stat().st_size == 32
    assert sum("the optimised graph has other inputs" in line for line in caplog.messages) == 1
