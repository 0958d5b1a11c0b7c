"""The cache of TensorRT's engines: one model's for one model, complete ones only, bounded."""

import os
import subprocess
import sys
import threading
import time

import pytest

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.engine_cache import EngineCache, engine_key, open_engine_cache

NOW = LoadCancellation()


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def compile_engine(cache, key, content=b"engine"):
    """Do what a load does: compile if there is no engine. Return whether there was none."""
    with cache.open(key, NOW) as folder:
        path = folder.path / "subgraph_sm90.engine"
        if path.exists():
            assert path.read_bytes() == content
            return False
        path.write_bytes(content)
        (folder.timing_path / "kernels_sm90.timing").write_bytes(b"times")
        return True


def test_an_engine_survives_a_restart(tmp_path, cache):
    assert compile_engine(cache, "a")
    assert not compile_engine(cache, "a")
    assert not compile_engine(EngineCache(tmp_path / "engines"), "a")


def test_each_model_has_its_own_engines_and_all_share_the_times_of_kernels(cache):
    assert compile_engine(cache, "a", b"of a")
    with cache.open("b", NOW) as folder:
        assert not [*folder.path.iterdir()]
        assert (folder.timing_path / "kernels_sm90.timing").read_bytes() == b"times"
    assert compile_engine(cache, "b", b"of b")
    assert not compile_engine(cache, "a", b"of a")


@pytest.mark.parametrize("damage", ["truncated", "added", "link", "manifest"])
def test_files_that_were_not_sealed_are_deleted(tmp_path, cache, damage, caplog):
    compile_engine(cache, "a")
    folder = tmp_path / "engines" / "a"
    engine = folder / "subgraph_sm90.engine"
    if damage == "truncated":
        engine.write_bytes(b"eng")
    elif damage == "added":
        (folder / "other.engine").write_bytes(b"")
    elif damage == "link":
        engine.rename(tmp_path / "elsewhere")
        engine.symlink_to(tmp_path / "elsewhere")
    else:
        (folder / "manifest.json").write_text("[]")
    with cache.open("a", NOW) as opened:
        remaining = sorted(path.name for path in opened.path.glob("*.engine"))
    assert remaining == (["subgraph_sm90.engine"] if damage == "added" else [])
    assert "deleting an incomplete file" in caplog.text


def test_a_load_that_fails_seals_nothing(cache):
    def fail():
        with cache.open("a", NOW) as folder:
            (folder.path / "half.engine").write_bytes(b"ha")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert compile_engine(cache, "a")


def test_engines_of_first_runs_can_be_sealed_later(cache):
    with cache.open("a", NOW) as folder:
        pass
    (folder.path / "subgraph_sm90.engine").write_bytes(b"engine")
    folder.seal()
    assert not compile_engine(cache, "a")


def test_engines_that_cannot_be_loaded_are_compiled_again(cache):
    compile_engine(cache, "a")
    with cache.open("a", NOW) as folder:
        folder.discard()
    assert compile_engine(cache, "a")


def test_the_least_recently_used_models_are_deleted(tmp_path):
    cache = EngineCache(tmp_path / "engines", max_bytes=250)
    for age, key in ((30, "a"), (20, "b")):
        compile_engine(cache, key, bytes(100))
        os.utime(tmp_path / "engines" / key, (time.time() - age,) * 2)
    assert not compile_engine(cache, "a", bytes(100))
    compile_engine(cache, "c", bytes(100))
    assert sorted(p.name for p in (tmp_path / "engines").iterdir() if len(p.name) == 1) == [*"ac"]
    assert compile_engine(cache, "b", bytes(100))


def test_a_model_that_is_too_large_is_kept_while_it_is_the_latest(tmp_path):
    cache = EngineCache(tmp_path / "engines", max_bytes=10)
    compile_engine(cache, "a", bytes(100))
    assert not compile_engine(cache, "a", bytes(100))


COMPILE_SLOWLY = """
import sys, time
from pathlib import Path
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.engine_cache import EngineCache
with EngineCache(Path(sys.argv[1])).open("a", LoadCancellation()) as opened:
    engine = opened.path / "x.engine"
    loaded = engine.exists()
    if not loaded:
        time.sleep(0.3)
        engine.write_bytes(b"engine")
print("loaded" if loaded else "compiled")
"""


def test_processes_wait_for_the_one_that_compiles(tmp_path):
    command = [sys.executable, "-c", COMPILE_SLOWLY, str(tmp_path / "engines")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(outputs) == ["compiled", "loaded", "loaded"]


def test_a_waiting_load_can_be_cancelled_and_notes_progress(cache):
    steps = []
    cancellation = LoadCancellation(lambda: steps.append(1))
    failures = []

    def wait():
        try:
            with cache.open("b", cancellation):
                pass
        except LoadError as error:
            failures.append(str(error))

    thread = threading.Thread(target=wait)
    with cache.open("a", NOW):
        thread.start()
        while not steps:
            time.sleep(0.01)
        cancellation.cancel("given up")
        thread.join(10)
    assert failures == ["given up"]


def test_a_folder_that_others_may_write_is_not_used(tmp_path, caplog):
    (tmp_path / "cache").mkdir(mode=0o755)
    (tmp_path / "cache").chmod(0o755)
    with caplog.at_level("INFO"):
        assert open_engine_cache(tmp_path / "cache" / "engines") is None
    assert "no engine cache in" in caplog.text
    assert open_engine_cache(tmp_path / "own" / "engines") is not None


def test_the_key_depends_on_the_files_and_on_every_setting(tmp_path):
    weights = [tmp_path / "model.onnx", tmp_path / "weights"]
    for path in weights:
        path.write_bytes(b"1")
    keys = {engine_key(weights, ["1.31", "sm90"]), engine_key(weights, ["1.31", "sm80"])}
    keys |= {engine_key(weights, ["1.31sm90"]), engine_key(weights[:1], ["1.31", "sm90"])}
    before = engine_key(weights, ["1.31", "sm90"])
    assert before in keys
    weights[1].write_bytes(b"2")  # of the same size
    keys.add(engine_key(weights, ["1.31", "sm90"]))
    assert len(keys) == 5
