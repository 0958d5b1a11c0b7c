"""The reconciler follows the repository while it serves."""

import os
import shutil
import threading

import grpc
import numpy as np
import onnx
import pytest
from support import onnx_models
from support.in_process_server import InProcessServer

from neurona_protos.open_inference_pb2 import RepositoryIndexRequest
from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    LoadModelRequest,
    PredictRequest,
    State,
    UnloadModelRequest,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.errors import LoadError, UnavailableError

X = np.ones((1, 4), np.float32)


def save(root, version, *, name="m"):
    """Save a version whose outputs identify it."""
    return onnx_models.save_classifier(
        root / name / str(version) / "model.onnx", offset=float(str(version).removeprefix("v"))
    )


def write_settings(root, text, *, name="m"):
    (root / name / "model.toml").write_text(text)


def expected_outputs(version):
    logits = (X + version) @ onnx_models.WEIGHTS
    return np.exp(logits) / np.exp(logits).sum()


def predict(server, **target):
    request = PredictRequest(model="m", inputs=[to_tensor("x", X)], raw_outputs=True, **target)
    response = server.prediction.Predict(request, timeout=20)
    # The outputs must be those of the version that the response names.
    np.testing.assert_allclose(
        to_array(response.outputs[0]), expected_outputs(response.version), rtol=1e-4
    )
    return response.version


def list_versions(server, name="m"):
    models = server.models.List(ListModelsRequest()).models
    (model,) = [one for one in models if one.model == name] or [None]
    return {one.version: one for one in model.versions} if model else None


def states(server):
    return {
        number: State.Name(one.state).removeprefix("STATE_").lower()
        for number, one in (list_versions(server) or {}).items()
    }


@pytest.fixture
def start(tmp_path, wait_until):
    servers = []

    def start(**options):
        server = InProcessServer(tmp_path, **{"every": False, **options})
        servers.append(server)

        def poll_until(condition):
            """Poll the repository until the condition holds."""

            def poll_and_check():
                server.reconciler.poll_once()
                return condition()

            wait_until(poll_and_check)

        server.poll_until = poll_until
        return server

    yield start
    for server in servers:
        server.stop()


def test_highest_version_serves_and_the_others_are_listed(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    server = start()
    assert predict(server) == 2
    assert states(server) == {1: "unloaded", 2: "ready"}
    with pytest.raises(grpc.RpcError, match="version 1 is not loaded; served: 2"):
        predict(server, version=1)


@pytest.mark.parametrize(
    ("versions", "served"),
    [("all", {1, 2, 3}), ("latest 2", {2, 3}), ("[1, 3, 7]", {1, 3}), ("latest", {3})],
)
def test_settings_choose_the_versions_that_are_served(tmp_path, start, versions, served):
    for version in (1, 2, 3):
        save(tmp_path, version)
    write_settings(tmp_path, f"versions = {versions if versions[0] == '[' else repr(versions)}")
    server = start()
    assert {n for n, state in states(server).items() if state == "ready"} == served


def test_new_version_replaces_the_old_one_which_is_freed(tmp_path, start, wait_until):
    save(tmp_path, 1)
    server = start()
    (old,) = server.registry.models()
    save(tmp_path, 2)
    server.poll_until(lambda: predict(server) == 2)
    wait_until(lambda: server.count("requests_total", model="m", version="1", outcome="ok") == 0)
    assert old.state == State.STATE_DRAINING
    with pytest.raises(UnavailableError, match="the model has been unloaded"):
        old.sessions[0].run({"x": X})
    assert states(server) == {1: "unloaded", 2: "ready"}
    assert server.count("version_state", model="m", version="2", state="ready") == 1
    assert server.count("version_label", model="m", version="2", label="latest") == 1
    assert server.count("loads_total", model="m", outcome="ok") == 2


def test_run_that_outlasts_its_drain_frees_everything_when_it_ends(
    tmp_path, start, wait_until, monkeypatch
):
    monkeypatch.setattr("neurona_server.models.model.TERMINATION", 0.0)
    save(tmp_path, 1)
    write_settings(tmp_path, 'inline = "never"')
    server = start()
    server.reconciler._drains.timeout = 0.0
    (old,) = server.registry.models()
    session, released, running = old.sessions[0], threading.Event(), threading.Event()

    def run(*_):
        running.set()
        released.wait(20)
        raise RuntimeError("too late")

    monkeypatch.setattr(session, "run_with_options", run)
    request = PredictRequest(model="m", inputs=[to_tensor("x", X)])
    call = server.prediction.Predict.future(request, timeout=20)
    assert running.wait(20)
    save(tmp_path, 2)
    server.poll_until(lambda: server.count("version_state", model="m", version="2", state="ready"))
    assert call.exception().code() == grpc.StatusCode.UNAVAILABLE  # the drain timed out
    series = {"model": "m", "version": "1"}
    assert server.metrics.registry.get_sample_value("neurona_queue_rows", series) is not None
    released.set()
    wait_until(
        lambda: server.metrics.registry.get_sample_value("neurona_queue_rows", series) is None
    )


def test_replaced_file_is_loaded_again_as_the_same_version(tmp_path, start):
    path = save(tmp_path, 1)
    server = start()
    assert predict(server) == 1
    before = server.count("requests_total", model="m", version="1", outcome="ok")
    onnx_models.save_classifier(tmp_path / "new", offset=5.0)
    os.replace(tmp_path / "new", path)

    def replaced():
        request = PredictRequest(model="m", inputs=[to_tensor("x", X)], raw_outputs=True)
        outputs = server.prediction.Predict(request, timeout=20).outputs
        return np.allclose(to_array(outputs[0]), expected_outputs(5), rtol=1e-4)

    server.poll_until(replaced)
    assert server.count("requests_total", model="m", version="1", outcome="ok") > before
    assert server.count("queue_rows", model="m", version="1") == 0


def test_partly_written_file_is_not_loaded(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    content = save(tmp_path / "elsewhere", 2).read_bytes()
    growing = tmp_path / "m" / "2" / "model.onnx"
    growing.parent.mkdir()
    for end in range(0, len(content), 50):
        growing.write_bytes(content[:end])
        server.reconciler.poll_once()
        assert predict(server) == 1
    assert server.count("loads_total", model="m", outcome="failed") == 0
    growing.write_bytes(content)
    server.poll_until(lambda: predict(server) == 2)


def test_corrupt_version_is_reported_and_the_old_one_keeps_serving(tmp_path, start, wait_until):
    save(tmp_path, 1)
    server = start()
    content = save(tmp_path / "elsewhere", 2).read_bytes()
    (tmp_path / "m" / "2").mkdir()
    corrupt = tmp_path / "m" / "2" / "model.onnx"
    corrupt.write_bytes(content[: len(content) // 2])
    server.poll_until(lambda: states(server).get(2) == "failed")
    assert predict(server) == 1
    assert list_versions(server)[2].reason
    assert str(tmp_path) not in list_versions(server)[2].reason
    assert server.count("version_problem", model="m", version="2") == 1
    assert server.count("loads_total", model="m", outcome="failed") == 1
    for _ in range(3):  # it is not retried
        server.reconciler.poll_once()
    assert server.count("loads_total", model="m", outcome="failed") == 1
    corrupt.write_bytes(content)
    server.poll_until(lambda: predict(server) == 2)
    assert server.count("version_problem", model="m", version="2") == 0


def test_next_version_serves_when_the_highest_fails_at_start(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "m" / "3").mkdir()
    (tmp_path / "m" / "3" / "model.onnx").write_bytes(b"not a model")
    server = start()
    assert predict(server) == 2
    assert states(server) == {1: "unloaded", 2: "ready", 3: "failed"}


def test_file_replaced_by_a_corrupt_one_keeps_the_loaded_version(tmp_path, start):
    path = save(tmp_path, 1)
    server = start()
    good = path.read_bytes()
    path.write_bytes(b"oops")
    server.poll_until(lambda: bool(list_versions(server)[1].reason))
    assert states(server) == {1: "ready"}
    assert predict(server) == 1
    path.write_bytes(good)
    server.poll_until(lambda: not list_versions(server)[1].reason)
    assert predict(server) == 1


def test_deleted_version_is_replaced_by_the_next(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    server = start()
    shutil.rmtree(tmp_path / "m" / "2")
    server.poll_until(lambda: predict(server) == 1)
    assert states(server) == {1: "ready"}


def test_last_version_keeps_serving_without_its_files(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    shutil.rmtree(tmp_path / "m" / "1")
    server.poll_until(lambda: "its files are missing" in list_versions(server)[1].reason)
    assert predict(server) == 1
    assert server.count("version_problem", model="m", version="1") == 1


def test_model_without_its_folder_is_unloaded(tmp_path, start, wait_until):
    save(tmp_path, 1)
    save(tmp_path, 1, name="other")
    server = start()

    def models():
        """Return the models that have a series of any metric."""
        families = server.metrics.registry.collect()
        samples = [sample for family in families for sample in family.samples]
        return {sample.labels["model"] for sample in samples if sample.labels.get("model")}

    assert models() == {"m", "other"}
    shutil.rmtree(tmp_path / "m")
    server.poll_until(lambda: list_versions(server) is None)
    wait_until(lambda: models() == {"other"})
    with pytest.raises(grpc.RpcError, match="there is no model 'm'; served: other"):
        predict(server)


def test_unreadable_repository_changes_nothing(tmp_path, start, caplog):
    save(tmp_path, 1)
    server = start()
    tmp_path.rename(tmp_path.with_name("away"))
    try:
        for _ in range(3):
            server.reconciler.poll_once()
        assert predict(server) == 1
        assert caplog.text.count("cannot read the repository") == 1  # logged once
    finally:
        tmp_path.with_name("away").rename(tmp_path)


def test_invalid_settings_keep_the_loaded_version(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    write_settings(tmp_path, "labelz = ['a']")
    server.poll_until(lambda: "labelz" in list_versions(server)[1].reason)
    assert predict(server) == 1
    write_settings(tmp_path, "")
    server.poll_until(lambda: not list_versions(server)[1].reason)


def test_link_out_of_the_repository_is_rejected(tmp_path, start, tmp_path_factory):
    save(tmp_path, 1)
    outside = save(tmp_path_factory.mktemp("outside"), 2)
    (tmp_path / "m" / "2").mkdir()
    (tmp_path / "m" / "2" / "model.onnx").symlink_to(outside)
    (tmp_path / "m" / "3").symlink_to(outside.parent)
    inside = save(tmp_path / "m", 9, name=".store")
    (tmp_path / "linked" / "1").mkdir(parents=True)
    (tmp_path / "linked" / "1" / "model.onnx").symlink_to(inside)
    server = start()
    assert predict(server) == 1
    assert states(server) == {1: "ready", 2: "failed", 3: "failed"}
    assert "leads out of the repository" in list_versions(server)[2].reason
    assert [one.state for one in list_versions(server, "linked").values()] == [State.STATE_READY]


def index(server, **options):
    response = server.triton.RepositoryIndex(RepositoryIndexRequest(**options), timeout=20)
    return {(one.name, one.version): (one.state, one.reason) for one in response.models}


def test_what_cannot_be_served_is_failed_in_both_protocols(tmp_path, start):
    save(tmp_path, 1)
    for name, version in [("m", "v2"), ("with space", 1), ("two", 1)]:
        save(tmp_path, version, name=name)
    (tmp_path / "two" / "1" / "model.onnx").rename(tmp_path / "two" / "1" / "a.onnx")
    (tmp_path / "two" / "1" / "b.onnx").touch()
    server = start()
    assert predict(server) == 1
    states = {
        model.model: [(one.version, State.Name(one.state), one.reason) for one in model.versions]
        for model in server.models.List(ListModelsRequest()).models
    }
    assert states.keys() == {"m", "two", "with space"}
    assert states["m"][0] == (1, "STATE_READY", "")
    ((number, state, misnamed),) = states["m"][1:]
    assert (number, state) == (0, "STATE_FAILED")
    assert misnamed.startswith("'v2' is not a version (expected a whole number")
    ((number, state, two),) = states["two"]
    assert (number, state) == (1, "STATE_FAILED")
    assert "'a.onnx' and 'b.onnx' are there, and none is named model.onnx" in two
    ((number, state, space),) = states["with space"]
    assert (number, state) == (0, "STATE_FAILED")
    assert index(server) == {
        ("m", "1"): ("READY", ""),
        ("m", "v2"): ("UNAVAILABLE", misnamed),
        ("two", "1"): ("UNAVAILABLE", two),
        ("with space", ""): ("UNAVAILABLE", space),
    }
    assert index(server, ready=True) == {("m", "1"): ("READY", "")}
    problem = server.metrics.registry.get_sample_value
    assert problem("neurona_version_problem", {"model": "m", "version": "v2"}) == 1
    request = PredictRequest(model="two", version=1, inputs=[to_tensor("x", X)])
    with pytest.raises(grpc.RpcError, match="version 1 cannot be loaded; served: none"):
        server.prediction.Predict(request, timeout=20)


def test_a_folder_that_gets_the_name_of_a_version_is_served(tmp_path, start, caplog):
    save(tmp_path, 1)
    server = start()
    save(tmp_path, "v2")
    server.poll_until(lambda: "'v2' is not a version" in caplog.text)
    server.reconciler.poll_once()
    assert caplog.text.count("'v2' is not a version") == 1
    (tmp_path / "m" / "v2").rename(tmp_path / "m" / "2")
    server.poll_until(lambda: states(server).get(2) == "ready")
    assert states(server) == {1: "unloaded", 2: "ready"}


def test_an_upload_under_another_name_is_not_reported_while_it_grows(tmp_path, start, caplog):
    save(tmp_path, 1)
    server = start()
    upload = tmp_path / "m" / "2" / "model.onnx.part"
    upload.parent.mkdir()
    for size in range(1, 5):
        upload.write_bytes(bytes(size))
        server.reconciler.poll_once()
        assert states(server) == {1: "ready"}
    assert not [one for one in caplog.records if one.levelname == "WARNING"]
    upload.unlink()
    save(tmp_path, 2)
    server.poll_until(lambda: states(server).get(2) == "ready")


def test_a_load_by_call_says_why_a_model_cannot_be_used(tmp_path, start):
    save(tmp_path, "v1")
    save(tmp_path, 1, name="served")
    save(tmp_path, "02", name="served")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    server = start(explicit=True)
    for name, reason in (("m", "'v1' is not a version"), ("empty", "no model file: it is empty")):
        with pytest.raises(grpc.RpcError, match=reason) as failure:
            server.models.Load(LoadModelRequest(model=name), timeout=20)
        assert failure.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    loaded = server.models.Load(LoadModelRequest(model="served"), timeout=20).model.versions
    assert [one.state for one in loaded] == [State.STATE_READY, State.STATE_FAILED]


def test_the_index_has_what_the_policy_chooses(tmp_path, start):
    for version in (1, 2, 3):
        save(tmp_path, version)
    write_settings(tmp_path, 'versions = "latest 2"')
    server = start()
    assert index(server) == {("m", "2"): ("READY", ""), ("m", "3"): ("READY", "")}
    save(tmp_path, 4)
    server.poll_until(lambda: index(server).get(("m", "4")) == ("READY", ""))
    assert index(server).keys() == {("m", "3"), ("m", "4")}


def test_the_index_of_models_that_calls_load_and_unload(tmp_path, start, wait_until):
    save(tmp_path, 1)
    save(tmp_path, 2)
    server = start(explicit=True)
    assert index(server) == {("m", ""): ("UNAVAILABLE", "")}
    assert index(server, ready=True) == {}
    server.models.Load(LoadModelRequest(model="m"), timeout=20)
    assert index(server) == {("m", "2"): ("READY", "")}
    server.models.Unload(UnloadModelRequest(model="m"), timeout=20)
    wait_until(lambda: index(server) == {("m", "2"): ("UNAVAILABLE", "unloaded")})


def test_the_index_has_the_models_of_one_moment(tmp_path, start, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 1, name="n")
    server = start()
    names = server.registry.names

    def remove_after_reading():
        found = names()
        server.registry.publish("n", None)
        return found

    monkeypatch.setattr(server.registry, "names", remove_after_reading)
    assert index(server)["m", "1"] == ("READY", "")


def test_labels_move_when_their_version_is_loaded(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    write_settings(tmp_path, "[version_labels]\nstable = 1\ncanary = 2")
    server = start()
    assert (predict(server, label="stable"), predict(server, label="canary")) == (1, 2)
    write_settings(tmp_path, "[version_labels]\nstable = 2\ncanary = 3")
    server.poll_until(lambda: predict(server, label="stable") == 2)
    assert predict(server, label="canary") == 2  # 3 does not exist yet
    save(tmp_path, 3)
    server.poll_until(lambda: predict(server, label="canary") == 3)
    assert states(server) == {1: "unloaded", 2: "ready", 3: "ready"}
    with pytest.raises(grpc.RpcError, match="no label 'best'; its labels: latest, stable, canary"):
        predict(server, label="best")


def test_canary_gets_its_share_of_the_requests_without_version(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    write_settings(tmp_path, "[version_labels]\nstable = 1\ncanary = 2\n[traffic]\ncanary = 20")
    server = start()
    answers = [predict(server) for _ in range(400)]
    assert 30 <= answers.count(2) <= 140  # 80, and six standard deviations
    assert {n: one.share for n, one in list_versions(server).items()} == {1: 80, 2: 20}
    write_settings(tmp_path, "[version_labels]\nstable = 1\ncanary = 2\n[traffic]\ncanary = 100")
    server.poll_until(lambda: list_versions(server)[2].share == 100)
    assert {predict(server) for _ in range(50)} == {2}


def test_shadow_is_compared_and_never_responds(tmp_path, start, wait_until):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "m" / "1", tmp_path / "m" / "2")
    write_settings(tmp_path, 'versions = "all"\n[shadow]\nto = 2')
    server = start()
    for _ in range(20):
        assert predict(server) == 1
    shadows = {"model": "m", "version": "2"}
    wait_until(lambda: server.count("shadow_requests_total", outcome="equal", **shadows) == 20)
    assert list_versions(server)[2].shadow
    save(tmp_path, 2)  # now its outputs differ
    server.poll_until(lambda: server.count("loads_total", model="m", outcome="ok") == 3)
    predict(server)
    wait_until(
        lambda: (
            server.count("shadow_requests_total", outcome="different", **shadows)
            + server.count("shadow_requests_total", outcome="same_class", **shadows)
            == 1
        )
    )


def test_shadow_with_other_inputs_does_not_affect_requests(tmp_path, start, wait_until):
    save(tmp_path, 1)
    onnx_models.save_picker(tmp_path / "m" / "2" / "model.onnx")
    write_settings(tmp_path, "default = 1\n[shadow]\nto = 2")
    server = start()
    assert predict(server) == 1
    labels = {"model": "m", "version": "2", "outcome": "incompatible"}
    wait_until(lambda: server.count("shadow_requests_total", **labels) == 1)


def test_no_request_is_lost_while_versions_are_replaced(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    stop = threading.Event()
    failures, answered = [], []

    def call():
        while not stop.is_set():
            try:
                answered.append(predict(server))
            except Exception as error:
                failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for version in range(2, 8):
        save(tmp_path, version)
        server.poll_until(lambda version=version: version in answered[-8:])
        shutil.rmtree(tmp_path / "m" / str(version - 1))
    stop.set()
    for caller in callers:
        caller.join()
    assert not failures
    assert set(answered) >= set(range(2, 8))


class TestExplicit:
    def test_nothing_is_loaded_until_requested(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        assert states(server) == {1: "unloaded"}
        loaded = server.models.Load(LoadModelRequest(model="m"), timeout=20).model
        assert [one.state for one in loaded.versions] == [State.STATE_READY]
        assert predict(server) == 1
        server.models.Unload(UnloadModelRequest(model="m"), timeout=20)
        assert states(server) == {1: "unloaded"}
        with pytest.raises(grpc.RpcError, match="has no version that is ready"):
            predict(server)

    def test_failed_load_is_reported_and_keeps_the_loaded_version(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        server.models.Load(LoadModelRequest(model="m"), timeout=20)
        bad = tmp_path / "m" / "2" / "model.onnx"
        bad.parent.mkdir()
        bad.write_bytes(b"not a model")
        with pytest.raises(grpc.RpcError, match="load failed for model 'm': version 2: ") as caught:
            server.models.Load(LoadModelRequest(model="m"), timeout=20)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert predict(server) == 1
        save(tmp_path, 2)
        server.models.Load(LoadModelRequest(model="m"), timeout=20)
        assert predict(server) == 2

    def test_load_interrupted_by_a_shutdown_ends_immediately(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        load, loading, released = (
            server.reconciler._load_model,
            threading.Event(),
            threading.Event(),
        )

        def wait_and_load(source, cancellation):
            loading.set()
            released.wait(20)
            return load(source, cancellation)

        server.reconciler._load_model = wait_and_load
        call = server.models.Load.future(LoadModelRequest(model="m"), timeout=20)
        assert loading.wait(20)
        server.reconciler.stop_loading()
        assert call.exception().code() == grpc.StatusCode.UNAVAILABLE
        released.set()

    def test_load_interrupted_by_an_unload_fails(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        load = server.reconciler._load_model

        def unload_first(source, cancellation):
            server.reconciler.unload("m")
            return load(source, cancellation)

        server.reconciler._load_model = unload_first
        with pytest.raises(grpc.RpcError, match="was unloaded while it was loading") as caught:
            server.models.Load(LoadModelRequest(model="m"), timeout=20)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert states(server) == {1: "unloaded"}
        assert not server.registry.models()

    @pytest.mark.parametrize("name", ["unknown", "..", "../m", "m/1", "", "a\nb\x00", "m" * 10_000])
    def test_unknown_name_is_not_found(self, tmp_path, start, name):
        save(tmp_path, 1)
        server = start(explicit=True)
        for method, request in (
            (server.models.Load, LoadModelRequest(model=name)),
            (server.models.Unload, UnloadModelRequest(model=name)),
            (server.models.Describe, DescribeModelRequest(model=name)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                method(request, timeout=20)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            assert str(tmp_path) not in caught.value.details()

    def test_load_and_unload_are_rejected_without_explicit_control(self, tmp_path, start):
        save(tmp_path, 1)
        server = start()
        for method, request in (
            (server.models.Load, LoadModelRequest(model="m")),
            (server.models.Unload, UnloadModelRequest(model="m")),
        ):
            with pytest.raises(grpc.RpcError, match="expected the option model_control") as caught:
                method(request, timeout=20)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert predict(server) == 1


def test_model_requested_at_start_must_exist(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(LoadError, match="no model 'other'"):
        InProcessServer(tmp_path, explicit=True, load_model=["other"])


def test_blocking_problems_are_logged_once(tmp_path, start, caplog):
    save(tmp_path, 1)
    write_settings(tmp_path, "lables = ['a']")
    save(tmp_path, 1, name="linked")
    save(tmp_path, 1, name="other")
    write_settings(tmp_path, "default = 7", name="other")
    (tmp_path / "linked" / "1" / "weights").symlink_to("/etc/hostname")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "outside").symlink_to("/etc")
    server = start()
    server.reconciler.poll_once()
    for line in (
        "m: model.toml: unknown key 'lables'",
        "other: its settings name version 7, which does not exist",
        "linked: version 1: 'weights' is a link that leads out of the repository",
        "loop: it is a link to itself",
        "outside: it is a link that leads out of the repository",
    ):
        assert caplog.text.count(line) == 1


def test_name_in_a_file_cannot_start_a_log_line(tmp_path, start, caplog):
    caplog.set_level("INFO")
    axis = "a\nERROR evil"
    onnx_models.save(
        tmp_path / "m" / "1" / "model.onnx",
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        {"x": (onnx.TensorProto.FLOAT, [axis, 2])},
        {"y": (onnx.TensorProto.FLOAT, [axis, 2])},
    )
    write_settings(tmp_path, 'inputs.x.axes = ["batch"]')
    save(tmp_path, 1, name="triton")
    parameter = 'key: "a\\nERROR evil" value { string_value: "1" }'
    (tmp_path / "triton" / "config.pbtxt").write_text(f"parameters {{ {parameter} }}")
    server = start()
    assert caplog.text.count("a\\nERROR evil") == 2
    assert "\nERROR evil" not in caplog.text
    assert list_versions(server)[1].reason.isprintable()


def test_replaced_version_leaves_no_metric_series(tmp_path, start):
    save(tmp_path, 1)
    write_settings(tmp_path, 'max_batch_rows = 64\ntask = "tensors"\ninline = "always"')
    server = start()
    series = {"model": "m", "version": "1"}
    assert server.count("inline", **series) == 1
    assert server.count("model_info", task="TENSORS", provider="CPUExecutionProvider", **series)
    write_settings(tmp_path, 'max_batch_rows = 4\ninline = "never"')
    now = {"task": "CLASSIFICATION", "provider": "CPUExecutionProvider", **series}
    server.poll_until(lambda: server.count("model_info", **now) == 1)
    assert server.count("batch_limit_rows", **series) == 4
    assert server.count("inline", **series) == 0
    samples = [one for metric in server.metrics.registry.collect() for one in metric.samples]
    rows = {one.labels["rows"] for one in samples if one.name == "neurona_run_predicted_seconds"}
    assert rows == {"1", "2", "4"}
    assert [one.labels for one in samples if one.name == "neurona_model_info"] == [now]


def test_shadow_may_name_its_free_sizes_differently(tmp_path, start, wait_until):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    other = onnx.load(path)
    for tensor in (*other.graph.input, *other.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(other, path)
    write_settings(tmp_path, "default = 1\n[shadow]\nto = 2")
    server = start()
    assert predict(server) == 1
    labels = {"model": "m", "version": "2"}
    wait_until(
        lambda: sum(
            server.count("shadow_requests_total", outcome=outcome, **labels)
            for outcome in ("same_class", "different")
        )
    )


def test_a_rejected_version_fails_with_the_reason_until_its_files_change(tmp_path, start):
    """The version before it keeps serving, as with any version that cannot be loaded."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    rejected = onnx_models.save_classifier(tmp_path / "m" / "3" / "model.onnx").stat().st_mtime_ns

    def find_rejection(source):
        (file,) = source.fingerprint
        return "quarantined: for this test" if rejected in file else ""

    server = start(find_rejections=[find_rejection])
    assert predict(server) == 2
    assert list_versions(server)[3].reason == "quarantined: for this test"
    assert states(server)[3] == "failed"
    save(tmp_path, 3)
    server.poll_until(lambda: predict(server) == 3)
