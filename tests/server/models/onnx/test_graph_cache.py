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
from neurona_server.models.onnx.graph_cache import GraphCache, default_cache_folder, key, saves_time
from neurona_server.models.onnx.session import RuntimeOptions, Session
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs

SHARED = os.environ.get("NEURONA_SHARED")
X = {"x": np.ones((2, 4), np.float32)}
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


@pytest.fixture(autouse=True)
def _every_model_is_worth_it(monkeypatch):
    monkeypatch.setattr(graph_cache, "LEAST_GAIN", -math.inf)
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


def test_only_many_nodes_for_few_bytes_are_worth_it(monkeypatch):
    """Figures of the docstring: ResNet-50, a transformer of 48 layers of 64, a small one."""
    monkeypatch.undo()
    assert not saves_time(nodes=120, size=112 << 20)
    assert saves_time(nodes=1728, size=9 << 20)
    assert not saves_time(nodes=57, size=28_000)


def test_the_second_load_comes_from_the_cache(load, folder, monkeypatch):
    expected = load().run(X)[0]
    (entry,) = entries(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert entry.stat().st_mode & 0o077 == 0
    assert list(folder.iterdir()) == [entry]
    monkeypatch.setattr(GraphCache, "put", None)  # not called again
    session = load()
    assert np.array_equal(session.run(X)[0], expected)
    assert session.properties  # they are in the entry too


def test_another_model_or_another_runtime_is_another_entry(load, path, folder, monkeypatch):
    load()
    onnx_models.save_classifier(path, offset=2.0)
    expected = Session(path, RuntimeOptions()).run(X)[0]
    assert np.array_equal(load().run(X)[0], expected)
    assert np.array_equal(load().run(X)[0], expected)
    assert len(entries(folder)) == 2
    monkeypatch.setattr(onnxruntime, "__version__", "99")
    load()
    assert len(entries(folder)) == 3
    monkeypatch.setattr(graph_cache, "_processor", lambda: ("another one",))
    load()
    assert len(entries(folder)) == 4
    assert key(b"m", "a", "b") != key(b"m", "ab") != key(b"m", "a")


@pytest.mark.parametrize("damage", ["cut off", "empty", "one bit", "no model"])
def test_a_damaged_entry_is_discarded_and_made_again(load, folder, damage):
    expected = load().run(X)[0]
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    if damage == "no model":  # but what was written: as from a runtime with a fault
        entry.write_bytes(hashlib.sha256(b"?").digest() + b"?")
    else:
        bit = bytes([*whole[:-40], whole[-40] ^ 1, *whole[-39:]])
        entry.write_bytes({"cut off": whole[:200], "empty": b"", "one bit": bit}[damage])
    assert np.array_equal(load().run(X)[0], expected)
    assert entry.read_bytes() == whole


def test_a_model_that_cannot_be_loaded_leaves_nothing(path, folder):
    onnx_models.save(
        path,
        [helper.make_node("Nonsense", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [1])},
        {"y": (TensorProto.FLOAT, [1])},
    )
    with pytest.raises(LoadError, match="Nonsense"):
        Session(path, RuntimeOptions(cache=folder))
    assert list(folder.iterdir()) == []


def test_what_was_used_longest_ago_goes_first(folder):
    cache = GraphCache(folder, limit=300)
    for number, name in enumerate("abc"):
        put(cache, name, bytes(60))
        os.utime(folder / f"{name}.graph", (number, number))
    assert cache.get("a") == bytes(60)  # used just now
    put(cache, "d", bytes(60))
    assert [path.stem for path in entries(folder)] == ["a", "c", "d"]
    put(cache, "e", bytes(1000))
    assert entries(folder) == []


def test_unfinished_files_of_the_dead_go_too(folder):
    cache = GraphCache(folder)
    for name, age in (("old", 1e5), ("new", 0)):
        path = folder / f"{name}.part"
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    put(cache, "a", b"model")
    assert {path.name for path in folder.iterdir()} == {"a.graph", "new.part"}


def test_a_disk_that_is_full_is_no_fault_of_the_model(folder, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    cache = GraphCache(folder)

    def full(path):
        raise OSError(28, "No space left on device")

    cache.put("a", full)
    assert "is not kept: No space left on device" in caplog.text
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("fault", ["open to others", "a link", "a file", "not writable"])
def test_where_there_can_be_no_cache_there_is_none_and_one_line(load, folder, caplog, fault):
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
    lines = [one for one in caplog.messages if "no cache of optimised graphs" in one]
    assert len(lines) == 1


def test_an_entry_that_is_a_link_is_not_followed(folder, tmp_path):
    cache = GraphCache(folder)
    put(cache, "a", b"model")
    shutil.move(folder / "a.graph", tmp_path / "elsewhere")
    (folder / "a.graph").symlink_to(tmp_path / "elsewhere")
    assert cache.get("a") is None


def test_the_folder_is_where_users_expect_it(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_folder() == Path("/x/neurona")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_folder() == Path("/home/me/.cache/neurona")


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED does not say where they are")
def test_no_model_that_others_made_answers_otherwise_through_it(folder):
    proved = []
    for path in sorted(Path(SHARED or "").glob("onnx/**/*.onnx")):
        if path.parent.name == "ort_sequence_length":
            continue  # a sequence for an input, which no tensor carries
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
            except Exception:  # noqa: S112  this size does not suit the model
                continue
            for session in (filling, cached):
                for came, wanted in zip(session.run(inputs), expected, strict=True):
                    assert came.dtype == wanted.dtype
                    np.testing.assert_array_equal(came, wanted)
                assert session.class_labels == plain.class_labels
            proved.append(path)
            break
    assert len(proved) == 28
    kept = [path for path in entries(folder) if path.stat().st_size > 32]
    assert 20 <= len(kept) < len(entries(folder)) == 27  # all but the one with external data


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED does not say where they are")
def test_one_that_would_ask_for_its_weights_is_not_kept(folder, caplog):
    """Saved by ONNX Runtime 1.31, it has them among its inputs, and no value for them."""
    caplog.set_level(logging.INFO)
    path = Path(SHARED or "") / "onnx" / "ort_lstm_bidirectional_cntk" / "model.onnx"
    for _ in range(3):
        session = Session(path, RuntimeOptions(providers=("cpu",), cache=folder))
        assert [spec.name for spec in session.inputs] == ["Input3"]
        assert session.optional == []
    (entry,) = entries(folder)
    assert entry.stat().st_size == 32
    assert sum("takes other inputs" in line for line in caplog.messages) == 1
