"""What is on disk becomes what is served, while it serves."""

import os
import shutil
import threading

import grpc
import numpy as np
import onnx
import pytest
from support import onnx_models
from support.in_process_server import InProcessServer

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
    """A version whose answers tell which one it is."""
    return onnx_models.save_classifier(
        root / name / str(version) / "model.onnx", offset=float(version)
    )


def say(root, text, *, name="m"):
    (root / name / "model.toml").write_text(text)


def expected(version):
    logits = (X + version) @ onnx_models.WEIGHTS
    return np.exp(logits) / np.exp(logits).sum()


def ask(server, **which):
    request = PredictRequest(model="m", inputs=[to_tensor("x", X)], raw_outputs=True, **which)
    response = server.prediction.Predict(request, timeout=20)
    # The answer must be that of the version that it names.
    np.testing.assert_allclose(to_array(response.outputs[0]), expected(response.version), rtol=1e-4)
    return response.version


def listed(server, name="m"):
    models = server.models.List(ListModelsRequest()).models
    (model,) = [one for one in models if one.model == name] or [None]
    return {one.version: one for one in model.versions} if model else None


def states(server):
    return {
        number: State.Name(one.state).removeprefix("STATE_").lower()
        for number, one in (listed(server) or {}).items()
    }


@pytest.fixture
def start(tmp_path, wait_until):
    servers = []

    def start(**options):
        server = InProcessServer(tmp_path, **{"every": False, **options})
        servers.append(server)

        def look(condition):
            """Looks at the repository, as often as it takes."""

            def looked():
                server.reconciler.poll_once()
                return condition()

            wait_until(looked)

        server.look = look
        return server

    yield start
    for server in servers:
        server.stop()


def test_the_highest_version_serves_and_the_others_are_listed(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    server = start()
    assert ask(server) == 2
    assert states(server) == {1: "unloaded", 2: "ready"}
    with pytest.raises(grpc.RpcError, match="not loaded is version 1; served: 2"):
        ask(server, version=1)


@pytest.mark.parametrize(
    ("said", "served"),
    [("all", {1, 2, 3}), ("latest 2", {2, 3}), ("[1, 3, 7]", {1, 3}), ("latest", {3})],
)
def test_a_model_says_which_versions_are_served(tmp_path, start, said, served):
    for version in (1, 2, 3):
        save(tmp_path, version)
    say(tmp_path, f"versions = {said if said[0] == '[' else repr(said)}")
    server = start()
    assert {n for n, state in states(server).items() if state == "ready"} == served


def test_a_new_version_takes_over_and_the_old_one_is_freed(tmp_path, start, wait_until):
    save(tmp_path, 1)
    server = start()
    (old,) = server.registry.models()
    save(tmp_path, 2)
    server.look(lambda: ask(server) == 2)
    wait_until(lambda: server.count("requests_total", model="m", version="1", outcome="ok") == 0)
    assert old.state == State.STATE_DRAINING
    with pytest.raises(UnavailableError, match="the model has been unloaded"):
        old.instances[0].session.run({"x": X})
    assert states(server) == {1: "unloaded", 2: "ready"}
    assert server.count("version_state", model="m", version="2", state="ready") == 1
    assert server.count("version_label", model="m", version="2", label="latest") == 1
    assert server.count("loads_total", model="m", outcome="ok") == 2


def test_a_run_that_outlasts_its_drain_gives_everything_back_when_it_ends(
    tmp_path, start, wait_until, monkeypatch
):
    monkeypatch.setattr("neurona_server.models.model.TERMINATION", 0.0)
    save(tmp_path, 1)
    say(tmp_path, 'inline = "never"')
    server = start()
    server.reconciler._drains.timeout = 0.0
    (old,) = server.registry.models()
    session, goes_on, running = old.instances[0].session, threading.Event(), threading.Event()

    def run(*_):
        running.set()
        goes_on.wait(20)
        raise RuntimeError("too late")

    monkeypatch.setattr(session, "run_with", run)
    request = PredictRequest(model="m", inputs=[to_tensor("x", X)])
    call = server.prediction.Predict.future(request, timeout=20)
    assert running.wait(20)
    save(tmp_path, 2)
    server.look(lambda: server.count("version_state", model="m", version="2", state="ready"))
    assert call.exception().code() == grpc.StatusCode.UNAVAILABLE  # it had its time
    series = {"model": "m", "version": "1"}
    assert server.metrics.registry.get_sample_value("neurona_queue_rows", series) is not None
    goes_on.set()
    wait_until(
        lambda: server.metrics.registry.get_sample_value("neurona_queue_rows", series) is None
    )


def test_a_file_that_is_replaced_is_loaded_anew_under_the_same_version(tmp_path, start):
    path = save(tmp_path, 1)
    server = start()
    assert ask(server) == 1
    before = server.count("requests_total", model="m", version="1", outcome="ok")
    onnx_models.save_classifier(tmp_path / "new", offset=5.0)
    os.replace(tmp_path / "new", path)

    def replaced():
        request = PredictRequest(model="m", inputs=[to_tensor("x", X)], raw_outputs=True)
        outputs = server.prediction.Predict(request, timeout=20).outputs
        return np.allclose(to_array(outputs[0]), expected(5), rtol=1e-4)

    server.look(replaced)
    assert server.count("requests_total", model="m", version="1", outcome="ok") > before
    assert server.count("queue_rows", model="m", version="1") == 0


def test_a_file_that_is_still_being_written_is_not_loaded(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    whole = save(tmp_path / "elsewhere", 2).read_bytes()
    growing = tmp_path / "m" / "2" / "model.onnx"
    growing.parent.mkdir()
    for end in range(0, len(whole), 50):
        growing.write_bytes(whole[:end])
        server.reconciler.poll_once()
        assert ask(server) == 1
    assert server.count("loads_total", model="m", outcome="failed") == 0
    growing.write_bytes(whole)
    server.look(lambda: ask(server) == 2)


def test_a_corrupt_version_leaves_the_old_one_serving_and_says_why(tmp_path, start, wait_until):
    save(tmp_path, 1)
    server = start()
    whole = save(tmp_path / "elsewhere", 2).read_bytes()
    (tmp_path / "m" / "2").mkdir()
    corrupt = tmp_path / "m" / "2" / "model.onnx"
    corrupt.write_bytes(whole[: len(whole) // 2])
    server.look(lambda: states(server).get(2) == "failed")
    assert ask(server) == 1
    assert listed(server)[2].reason
    assert str(tmp_path) not in listed(server)[2].reason
    assert server.count("version_problem", model="m", version="2") == 1
    assert server.count("loads_total", model="m", outcome="failed") == 1
    for _ in range(3):  # it is not tried again and again
        server.reconciler.poll_once()
    assert server.count("loads_total", model="m", outcome="failed") == 1
    corrupt.write_bytes(whole)
    server.look(lambda: ask(server) == 2)
    assert server.count("version_problem", model="m", version="2") == 0


def test_when_the_highest_version_fails_at_start_the_next_one_serves(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "m" / "3").mkdir()
    (tmp_path / "m" / "3" / "model.onnx").write_bytes(b"not a model")
    server = start()
    assert ask(server) == 2
    assert states(server) == {1: "unloaded", 2: "ready", 3: "failed"}


def test_a_file_that_is_replaced_by_a_corrupt_one_leaves_what_serves(tmp_path, start):
    path = save(tmp_path, 1)
    server = start()
    good = path.read_bytes()
    path.write_bytes(b"oops")
    server.look(lambda: bool(listed(server)[1].reason))
    assert states(server) == {1: "ready"}
    assert ask(server) == 1
    path.write_bytes(good)
    server.look(lambda: not listed(server)[1].reason)
    assert ask(server) == 1


def test_a_version_that_is_deleted_gives_way_to_the_next(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    server = start()
    shutil.rmtree(tmp_path / "m" / "2")
    server.look(lambda: ask(server) == 1)
    assert states(server) == {1: "ready"}


def test_the_last_version_serves_on_when_its_files_are_gone(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    shutil.rmtree(tmp_path / "m" / "1")
    server.look(lambda: "its files are gone" in listed(server)[1].reason)
    assert ask(server) == 1
    assert server.count("version_problem", model="m", version="1") == 1


def test_a_model_whose_folder_is_gone_is_unloaded(tmp_path, start, wait_until):
    save(tmp_path, 1)
    save(tmp_path, 1, name="other")
    server = start()

    def models():
        """That have a series of any kind."""
        families = server.metrics.registry.collect()
        samples = [sample for family in families for sample in family.samples]
        return {sample.labels["model"] for sample in samples if sample.labels.get("model")}

    assert models() == {"m", "other"}
    shutil.rmtree(tmp_path / "m")
    server.look(lambda: listed(server) is None)
    wait_until(lambda: models() == {"other"})
    with pytest.raises(grpc.RpcError, match="there is no model 'm'; served: other"):
        ask(server)


def test_a_repository_that_cannot_be_read_changes_nothing(tmp_path, start, caplog):
    save(tmp_path, 1)
    server = start()
    tmp_path.rename(tmp_path.with_name("away"))
    try:
        for _ in range(3):
            server.reconciler.poll_once()
        assert ask(server) == 1
        assert caplog.text.count("cannot read the repository") == 1  # said once
    finally:
        tmp_path.with_name("away").rename(tmp_path)


def test_settings_that_cannot_be_read_leave_what_serves(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    say(tmp_path, "labelz = ['a']")
    server.look(lambda: "labelz" in listed(server)[1].reason)
    assert ask(server) == 1
    say(tmp_path, "")
    server.look(lambda: not listed(server)[1].reason)


def test_a_link_that_leads_out_of_the_repository_is_refused(tmp_path, start, tmp_path_factory):
    save(tmp_path, 1)
    outside = save(tmp_path_factory.mktemp("outside"), 2)
    (tmp_path / "m" / "2").mkdir()
    (tmp_path / "m" / "2" / "model.onnx").symlink_to(outside)
    (tmp_path / "m" / "3").symlink_to(outside.parent)
    inside = save(tmp_path / "m", 9, name="store")
    (tmp_path / "linked" / "1").mkdir(parents=True)
    (tmp_path / "linked" / "1" / "model.onnx").symlink_to(inside)
    server = start()
    assert ask(server) == 1
    assert states(server) == {1: "ready", 2: "failed", 3: "failed"}
    assert "leads out of the repository" in listed(server)[2].reason
    assert [one.state for one in listed(server, "linked").values()] == [State.STATE_READY]


def test_labels_move_when_their_version_is_there(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    say(tmp_path, "[version_labels]\nstable = 1\ncanary = 2")
    server = start()
    assert (ask(server, label="stable"), ask(server, label="canary")) == (1, 2)
    say(tmp_path, "[version_labels]\nstable = 2\ncanary = 3")
    server.look(lambda: ask(server, label="stable") == 2)
    assert ask(server, label="canary") == 2  # 3 is not there yet
    save(tmp_path, 3)
    server.look(lambda: ask(server, label="canary") == 3)
    assert states(server) == {1: "unloaded", 2: "ready", 3: "ready"}
    with pytest.raises(grpc.RpcError, match="no label 'best'; its labels: latest, stable, canary"):
        ask(server, label="best")


def test_a_canary_gets_its_share_of_the_requests_that_name_no_version(tmp_path, start):
    save(tmp_path, 1)
    save(tmp_path, 2)
    say(tmp_path, "[version_labels]\nstable = 1\ncanary = 2\n[traffic]\ncanary = 20")
    server = start()
    answers = [ask(server) for _ in range(400)]
    assert 30 <= answers.count(2) <= 140  # 80, and six standard deviations
    assert {n: one.share for n, one in listed(server).items()} == {1: 80, 2: 20}
    say(tmp_path, "[version_labels]\nstable = 1\ncanary = 2\n[traffic]\ncanary = 100")
    server.look(lambda: listed(server)[2].share == 100)
    assert {ask(server) for _ in range(50)} == {2}


def test_a_shadow_is_compared_and_never_answers(tmp_path, start, wait_until):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "m" / "1", tmp_path / "m" / "2")
    say(tmp_path, 'versions = "all"\n[shadow]\nto = 2')
    server = start()
    for _ in range(20):
        assert ask(server) == 1
    shadows = {"model": "m", "version": "2"}
    wait_until(lambda: server.count("shadow_requests_total", outcome="equal", **shadows) == 20)
    assert listed(server)[2].shadow
    save(tmp_path, 2)  # now its answers are others
    server.look(lambda: server.count("loads_total", model="m", outcome="ok") == 3)
    ask(server)
    wait_until(
        lambda: (
            server.count("shadow_requests_total", outcome="different", **shadows)
            + server.count("shadow_requests_total", outcome="same_class", **shadows)
            == 1
        )
    )


def test_a_shadow_that_takes_other_inputs_disturbs_nobody(tmp_path, start, wait_until):
    save(tmp_path, 1)
    onnx_models.save_picker(tmp_path / "m" / "2" / "model.onnx")
    say(tmp_path, "default = 1\n[shadow]\nto = 2")
    server = start()
    assert ask(server) == 1
    labels = {"model": "m", "version": "2", "outcome": "incompatible"}
    wait_until(lambda: server.count("shadow_requests_total", **labels) == 1)


def test_no_request_is_lost_while_versions_are_swapped(tmp_path, start):
    save(tmp_path, 1)
    server = start()
    stop = threading.Event()
    failures, answered = [], []

    def call():
        while not stop.is_set():
            try:
                answered.append(ask(server))
            except Exception as error:
                failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for version in range(2, 8):
        save(tmp_path, version)
        server.look(lambda version=version: version in answered[-8:])
        shutil.rmtree(tmp_path / "m" / str(version - 1))
    stop.set()
    for caller in callers:
        caller.join()
    assert not failures
    assert set(answered) >= set(range(2, 8))


class TestExplicit:
    def test_nothing_is_loaded_until_somebody_asks(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        assert states(server) == {1: "unloaded"}
        loaded = server.models.Load(LoadModelRequest(model="m"), timeout=20).model
        assert [one.state for one in loaded.versions] == [State.STATE_READY]
        assert ask(server) == 1
        server.models.Unload(UnloadModelRequest(model="m"), timeout=20)
        assert states(server) == {1: "unloaded"}
        with pytest.raises(grpc.RpcError, match="has no version that is ready"):
            ask(server)

    def test_a_load_that_fails_says_why_and_leaves_what_serves(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        server.models.Load(LoadModelRequest(model="m"), timeout=20)
        bad = tmp_path / "m" / "2" / "model.onnx"
        bad.parent.mkdir()
        bad.write_bytes(b"not a model")
        with pytest.raises(grpc.RpcError, match="'m' cannot be loaded: version 2: ") as caught:
            server.models.Load(LoadModelRequest(model="m"), timeout=20)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert ask(server) == 1
        save(tmp_path, 2)
        server.models.Load(LoadModelRequest(model="m"), timeout=20)
        assert ask(server) == 2

    def test_a_load_that_is_overtaken_by_a_stop_says_so_at_once(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        load, loading, goes_on = server.reconciler._load, threading.Event(), threading.Event()

        def wait_and_load(found):
            loading.set()
            goes_on.wait(20)
            return load(found)

        server.reconciler._load = wait_and_load
        call = server.models.Load.future(LoadModelRequest(model="m"), timeout=20)
        assert loading.wait(20)
        server.reconciler.stop_loading()
        assert call.exception().code() == grpc.StatusCode.UNAVAILABLE
        goes_on.set()

    def test_a_load_that_is_overtaken_by_an_unload_says_so(self, tmp_path, start):
        save(tmp_path, 1)
        server = start(explicit=True)
        load = server.reconciler._load

        def unload_first(found):
            server.reconciler.unload("m")
            return load(found)

        server.reconciler._load = unload_first
        with pytest.raises(grpc.RpcError, match="was unloaded while it was loaded") as caught:
            server.models.Load(LoadModelRequest(model="m"), timeout=20)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert states(server) == {1: "unloaded"}
        assert not server.registry.models()

    @pytest.mark.parametrize("name", ["nobody", "..", "../m", "m/1", "", "a\nb\x00", "m" * 10_000])
    def test_a_name_that_is_not_there_is_not_found(self, tmp_path, start, name):
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

    def test_where_it_is_not_explicit_nobody_may(self, tmp_path, start):
        save(tmp_path, 1)
        server = start()
        for method, request in (
            (server.models.Load, LoadModelRequest(model="m")),
            (server.models.Unload, UnloadModelRequest(model="m")),
        ):
            with pytest.raises(grpc.RpcError, match="expected the option model_control") as caught:
                method(request, timeout=20)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert ask(server) == 1


def test_a_model_that_is_asked_for_at_start_must_be_there(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(LoadError, match="no model 'other'"):
        InProcessServer(tmp_path, explicit=True, load_model=["other"])


def test_what_keeps_a_model_from_being_tried_is_in_the_log_once(tmp_path, start, caplog):
    save(tmp_path, 1)
    say(tmp_path, "lables = ['a']")
    save(tmp_path, 1, name="linked")
    save(tmp_path, 1, name="other")
    say(tmp_path, "default = 7", name="other")
    (tmp_path / "linked" / "1" / "weights").symlink_to("/etc/hostname")
    (tmp_path / "loop").symlink_to("loop")
    server = start()
    server.reconciler.poll_once()
    for said in (
        "m: model.toml: it has an unknown key 'lables'",
        "other: its settings name version 7, which is not there",
        "linked: version 1: 'weights' is a link that leads out of the repository",
        "loop: it is a link that leads back to itself",
    ):
        assert caplog.text.count(said) == 1


def test_a_name_in_a_file_starts_no_line_of_the_log(tmp_path, start, caplog):
    caplog.set_level("INFO")
    axis = "a\nERROR evil"
    onnx_models.save(
        tmp_path / "m" / "1" / "model.onnx",
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        {"x": (onnx.TensorProto.FLOAT, [axis, 2])},
        {"y": (onnx.TensorProto.FLOAT, [axis, 2])},
    )
    say(tmp_path, 'inputs.x.axes = ["batch"]')
    save(tmp_path, 1, name="triton")
    parameter = 'key: "a\\nERROR evil" value { string_value: "1" }'
    (tmp_path / "triton" / "config.pbtxt").write_text(f"parameters {{ {parameter} }}")
    server = start()
    assert caplog.text.count("a\\nERROR evil") == 2
    assert "\nERROR evil" not in caplog.text
    assert listed(server)[1].reason.isprintable()


def test_what_replaces_a_version_leaves_no_series_of_the_old_one(tmp_path, start):
    save(tmp_path, 1)
    say(tmp_path, 'max_batch_rows = 64\ntask = "tensors"\ninline = "always"')
    server = start()
    of_m = {"model": "m", "version": "1"}
    assert server.count("inline", **of_m) == 1
    assert server.count("model_info", task="TENSORS", provider="CPUExecutionProvider", **of_m)
    say(tmp_path, 'max_batch_rows = 4\ninline = "never"')
    now = {"task": "CLASSIFICATION", "provider": "CPUExecutionProvider", **of_m}
    server.look(lambda: server.count("model_info", **now) == 1)
    assert server.count("batch_limit_rows", **of_m) == 4
    assert server.count("inline", **of_m) == 0
    samples = [one for metric in server.metrics.registry.collect() for one in metric.samples]
    rows = {one.labels["rows"] for one in samples if one.name == "neurona_run_predicted_seconds"}
    assert rows == {"1", "2", "4"}
    assert [one.labels for one in samples if one.name == "neurona_model_info"] == [now]


def test_a_shadow_may_call_its_free_sizes_otherwise(tmp_path, start, wait_until):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    other = onnx.load(path)
    for tensor in (*other.graph.input, *other.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(other, path)
    say(tmp_path, "default = 1\n[shadow]\nto = 2")
    server = start()
    assert ask(server) == 1
    labels = {"model": "m", "version": "2"}
    wait_until(
        lambda: sum(
            server.count("shadow_requests_total", outcome=outcome, **labels)
            for outcome in ("same_class", "different")
        )
    )
