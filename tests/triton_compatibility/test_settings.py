"""L0_logging and L0_trace: the settings that callers read and update."""

import pytest
from support import triton_models
from support.triton_calls import expect_error

from neurona_protos import open_inference_pb2 as pb

pytestmark = pytest.mark.triton("L0_logging", cause="log settings")
LEVELS = ("log_info", "log_warning", "log_error")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    triton_models.save_add_sub(root / "simple" / "1" / "model.onnx")
    return root


@pytest.fixture(scope="module")
def server(serve, repository):
    flags = ("--model-control", "explicit", "--load-model", "simple", "--log-level", "info")
    return serve(repository, *flags).triton


@pytest.fixture(autouse=True)
def initial_settings(request, server):
    yield
    if "server" in request.fixturenames:
        update(server, log_verbose_level=0, **dict.fromkeys(LEVELS, True))


def update(server, **settings):
    message = pb.LogSettingsRequest()
    for name, value in settings.items():
        if isinstance(value, bool):
            message.settings[name].bool_param = value
        elif isinstance(value, int):
            message.settings[name].uint32_param = value
        else:
            message.settings[name].string_param = value
    settings = server.stub.LogSettings(message, timeout=30).settings
    return {name: getattr(s, s.WhichOneof("parameter_choice")) for name, s in settings.items()}


def test_initial_settings(server):
    assert update(server) == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"log_info": False, "log_warning": True, "log_error": True, "log_verbose_level": 0},
        {"log_info": False, "log_warning": False, "log_error": True, "log_verbose_level": 0},
        {"log_info": False, "log_warning": False, "log_error": False, "log_verbose_level": 0},
        {"log_info": False, "log_warning": False, "log_error": False, "log_verbose_level": 1},
        {"log_info": True, "log_warning": False, "log_error": False, "log_verbose_level": 0},
        {"log_info": True, "log_warning": False, "log_error": True, "log_verbose_level": 1},
    ],
)
def test_settings_are_independent(server, settings):
    assert update(server, **settings, log_format="default").items() >= settings.items()
    assert update(server).items() >= settings.items()


@pytest.mark.triton("L0_logging", declared="log settings")
def test_the_log_file_cannot_be_set(server):
    expect_error(
        lambda: update(server, log_file="log_file.log"),
        "UNIMPLEMENTED",
        "log file location can not be updated through network protocol",
    )


@pytest.mark.triton("L0_logging", declared="log settings")
def test_formats(server):
    expect_error(
        lambda: update(server, log_format="ISO8601"), "UNIMPLEMENTED", "log_format", "log_format"
    )


@pytest.mark.slow
@pytest.mark.triton("L0_logging", declared="log settings")
def test_updates_without_explicit_control(serve, repository):
    triton = serve(repository).triton
    assert update(triton)["log_info"] is True
    expect_error(lambda: update(triton, log_info=False), "FAILED_PRECONDITION", "explicit")


@pytest.mark.parametrize(
    "settings", [{"log_info": 1}, {"log_verbose_level": True}, {"unknown": True}]
)
def test_invalid_settings(server, settings):
    expect_error(lambda: update(server, **settings), "INVALID_ARGUMENT", "", "")


def trace(server, model="", **settings):
    message = pb.TraceSettingRequest(model_name=model)
    for name, values in settings.items():
        message.settings[name].value.extend(values)
    settings = server.stub.TraceSetting(message, timeout=30).settings
    return {name: [*setting.value] for name, setting in settings.items()}


@pytest.mark.triton("L0_trace")
@pytest.mark.parametrize("model", ["", "simple"])
def test_trace_settings(server, model):
    settings = trace(server, model)
    assert settings["trace_level"] == ["OFF"]
    assert {*settings} >= {"trace_rate", "trace_count", "log_frequency", "trace_mode"}


@pytest.mark.triton("L0_trace", cause="error texts")
def test_trace_settings_of_an_unknown_model(server):
    expect_error(
        lambda: trace(server, "does-not-exist"),
        "NOT_FOUND",
        "Request for unknown model : does-not-exist",
        "Request for unknown model: 'does-not-exist'",
    )


@pytest.mark.triton("L0_trace", declared="trace settings")
@pytest.mark.parametrize(
    "settings",
    [{"trace_level": ["TIMESTAMPS"]}, {"trace_rate": ["12"]}, {"trace_file": ["model.log"]}],
)
def test_trace_settings_cannot_be_set(server, settings):
    expect_error(lambda: trace(server, **settings), "UNIMPLEMENTED", "", "")


@pytest.mark.triton("L0_trace")
def test_clearing_trace_settings(server):
    assert trace(server, trace_level=[], trace_rate=[]) == trace(server)


@pytest.mark.triton("L0_trace")
def test_unknown_trace_settings(server):
    expect_error(lambda: trace(server, unknown=["1"]), "INVALID_ARGUMENT", "unknown", "unknown")
