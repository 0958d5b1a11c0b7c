"""Options from flags, the environment and files: precedence, conversion and error messages."""

from pathlib import Path

import pytest

from neurona_server.config.options import Config, list_options
from neurona_server.config.sources import check_processes, from_values, load
from neurona_server.errors import ConfigError

REPOSITORY = ["--repository", "models"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_defaults():
    config = load(REPOSITORY, {})
    assert config == Config(repository=(Path("models"),))
    assert (config.address, config.metrics_address) == ("127.0.0.1:8001", "127.0.0.1:8002")


def test_a_flag_takes_precedence_over_the_environment_and_that_over_the_file():
    Path("neurona.toml").write_text(
        'repository = ["a", "b"]\nmax_batch_rows = 1\nmax_queue_rows = 2\ninstances = 3\n'
    )
    environment = {"NEURONA_MAX_BATCH_ROWS": "10", "NEURONA_MAX_QUEUE_ROWS": "20", "PATH": "/bin"}
    config = load(["--max-batch-rows", "100"], environment)
    assert config.repository == (Path("a"), Path("b"))
    assert (config.max_batch_rows, config.max_queue_rows, config.instances) == (100, 20, 3)


def test_an_empty_variable_counts_as_not_set():
    empty = {"NEURONA_CONFIG": "", "NEURONA_MAX_BATCH_ROWS": ""}
    assert load(REPOSITORY, empty) == load(REPOSITORY, {})
    Path("neurona.toml").write_text("max_batch_rows = 3\n")
    assert load(REPOSITORY, empty).max_batch_rows == 3


def test_options_that_a_program_gives_are_checked_as_flags_are():
    config = from_values(
        {"repository": [Path("a"), "b"], "max_batch_rows": 3, "spinning": True, "devices": "0"}
    )
    flags = ["--repository", "a", "--repository", "b", "--max-batch-rows", "3"]
    assert config == load([*flags, "--spinning", "true", "--devices", "0"], {})
    assert from_values({"model": ("m=r",), "max_delay_ms": 1.5}).model == (("m", Path("r")),)
    for values, message in (
        ({"max_batch_row": 3}, r"unknown option 'max_batch_row'; did you mean 'max_batch_rows'\?"),
        ({"max_batch_rows": 0}, "option max_batch_rows is 0"),
        ({"max_batch_rows": None}, "option max_batch_rows is None"),
        ({"max_batch_rows": b"1"}, "option max_batch_rows is"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_values(values)


def test_several_repositories():
    both = (Path("a"), Path("b"))
    assert load(["--repository", "a", "--repository", "b"], {}).repository == both
    assert load([], {"NEURONA_REPOSITORY": "a:b"}).repository == both


def test_files_are_named_without_a_flag_and_anywhere():
    config = load(["a.onnx", "--threads", "2", "b"], {})
    assert (config.files, config.threads) == ((Path("a.onnx"), Path("b")), 2)
    assert load([], {"NEURONA_FILES": "a.onnx:b", "NEURONA_THREADS": "2"}) == config
    Path("neurona.toml").write_text('files = ["a.onnx", "b"]\nthreads = 2\n')
    assert load([], {}) == config
    assert load(["c"], {}).files == (Path("c"),)


def test_without_a_name_the_folder_models_is_served():
    Path("models").mkdir()
    assert load([], {}).files == (Path("models"),)
    assert load(["a.onnx"], {}).files == (Path("a.onnx"),)
    assert not load(REPOSITORY, {}).files


def test_single_models_need_no_repository():
    config = load(["--model", "a=/x", "--model", "b=/y=z"], {})
    assert config.model == (("a", Path("/x")), ("b", Path("/y=z")))
    assert load([], {"NEURONA_MODEL": "a=/x:b=/y=z"}) == config
    with pytest.raises(ConfigError, match=r"option model\[0\] is '/x' \(expected NAME=DIR"):
        load(["--model", "/x"], {})


def test_every_option_can_be_set_in_every_source():
    texts = {
        "repository": "r",
        "address": "[::1]:1",
        "metrics_address": "h:2",
        "http_address": "h:3",
        "playground": "false",
        "log_level": "debug",
        "log_format": "json",
        "traces_endpoint": "http://collector:4317",
        "traces_ratio": "0.5",
        "inline": "never",
        "sequence_batching": "ragged",
        "versions": "latest 3",
        "transport": "cygrpc",
        "model_control": "explicit",
        "strict": "true",
        "strict_readiness": "true",
        "load_check": "false",
        "providers": "cuda,cpu",
        "devices": "0, GPU-1",
        "provider_options": "cuda.use_tf32=0",
        "require_gpu": "true",
        "split_devices": "true",
        "arena": "false",
        "spinning": "true",
        "run_method": "bound",
        "shared_memory": "true",
        "triton_metrics": "true",
        "typed_responses": "true",
        "compress_responses": "true",
        "reuse_port": "true",
        "supervise": "true",
        "max_metadata_bytes": "7000",
        "max_image_pixels": "1000000",
        "model": "m=r",
    }
    texts |= {option.name: "7" for option in list_options() if option.name not in texts}
    flags = [x for name, text in texts.items() for x in ("--" + name.replace("_", "-"), text)]
    environment = {"NEURONA_" + name.upper(): text for name, text in texts.items()}
    Path("o.toml").write_text("".join(f'{name} = "{text}"\n' for name, text in texts.items()))
    assert load(flags, {}) == load([], environment) == load(["--config", "o.toml"], {})


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "no models: name an ONNX file or a folder with some, as in 'neurona-serve model"),
        ([*REPOSITORY, "--address", "8001"], {}, r"address is '8001' \(expected HOST:PORT"),
        ([*REPOSITORY, "--address", "::1:1"], {}, r"expected HOST:PORT or \[IPV6\]:PORT or unix"),
        ([*REPOSITORY, "--address", "[::1:1"], {}, r"address is .* \(expected HOST:PORT"),
        ([*REPOSITORY, "--address", "[h]:1"], {}, r"address is .* \(expected HOST:PORT"),
        ([*REPOSITORY, "--address", "unix:"], {}, r"address is 'unix:' \(expected HOST:PORT"),
        ([*REPOSITORY, "--metrics-address", "unix:/x"], {}, "metrics_address is 'unix:/x'"),
        (
            [*REPOSITORY, "--metrics-address", "none"],
            {},
            r"metrics_address is 'none' \(expected HOST:PORT or \[IPV6\]:PORT, or off\)",
        ),
        ([*REPOSITORY, "--address", "h:99999"], {}, r"address is 'h:99999' \(expected HOST:PORT"),
        (
            [*REPOSITORY, "--max-batch-rows", "0"],
            {},
            r"^option max_batch_rows is 0 \(expected an integer from 1 to 2147483647\)$",
        ),
        ([*REPOSITORY, "--reuse-port", "7"], {}, r"reuse_port is '7' \(expected true or false"),
        (
            [*REPOSITORY, "--keepalive-s", "-1"],
            {},
            r"keepalive_s is -1.0 \(expected a number from 0",
        ),
        (
            [*REPOSITORY, "--max-connection-age-grace-s", "0"],
            {},
            r"is 0.0 \(expected a number from 1",
        ),
        ([*REPOSITORY, "--log-level", "loud"], {}, r"log_level is 'loud' \(expected debug"),
        (REPOSITORY, {"NEURONA_MAX_BATCH_ROW": "1"}, "NEURONA_MAX_BATCH_ROW .*'max_batch_rows'"),
        ([*REPOSITORY, "--model-control", "x"], {}, r"'x' \(expected poll, none or explicit"),
        ([*REPOSITORY, "--versions", "two"], {}, r"versions is 'two' \(expected .all., .latest."),
        ([*REPOSITORY, "--strict", "yes"], {}, r"strict is 'yes' \(expected true or false"),
        (
            REPOSITORY,
            {"NEURONA_THREADS": "many"},
            r"threads is 'many' \(expected an integer",
        ),
        (
            [*REPOSITORY, "--provider-options", "use_tf32=0"],
            {},
            r"provider_options is 'use_tf32=0' \(expected PROVIDER.KEY=VALUE, like cuda",
        ),
        ([*REPOSITORY, "--provider-options", "cuda.use_tf32="], {}, "expected PROVIDER.KEY=VALUE"),
        (REPOSITORY, {"NEURONA_CONFIG": "nowhere.toml"}, "cannot read nowhere.toml"),
        ([*REPOSITORY, "--max-message-bytes", "4294967296"], {}, "max_message_bytes is 4294967"),
        ([*REPOSITORY, "--drain-delay-ms", "99999999999999"], {}, "drain_delay_ms is 99999"),
        ([*REPOSITORY, "--latency-objective-ms", "nan"], {}, "latency_objective_ms is nan"),
        (
            [*REPOSITORY, "--devices", "0,-1"],
            {},
            r"devices is '0,-1' \(expected \"all\", or numbers",
        ),
        ([*REPOSITORY, "--providers", "cuda;cpu"], {}, r"providers is 'cuda;cpu' \(expected names"),
        (
            [*REPOSITORY, "--require-gpu", "yes"],
            {},
            r"require_gpu is 'yes' \(expected true or false",
        ),
        (
            [*REPOSITORY, "--gpu-memory-bytes", "-1"],
            {},
            r"gpu_memory_bytes is -1 \(expected an",
        ),
        (
            [*REPOSITORY, "--shrink-seconds", "inf"],
            {},
            r"shrink_seconds is inf \(expected a",
        ),
        (["--config", "nowhere.toml"], {}, "cannot read nowhere.toml: No such file"),
    ],
)
def test_an_invalid_option_is_reported(arguments, environment, message):
    with pytest.raises(ConfigError, match=message):
        load(arguments, environment)


@pytest.mark.parametrize("text", ["'Cuda, cpu'", "['cuda', 'cpu']", "['cuda', 'cpu', 'cuda']"])
def test_providers_are_a_list_or_a_string(text):
    Path("neurona.toml").write_text(f"providers = {text}\nrequire_gpu = true")
    config = load(REPOSITORY, {})
    assert config.providers == ("cuda", "cpu")
    assert config.require_gpu is True


SHAPES = "x:1x3x224x224,mask:1x8"


@pytest.mark.parametrize(
    "text",
    [
        f"'cuda.use_tf32=0, TensorRT.trt_profile_min_shapes={SHAPES},cuda.prefer_nhwc = 1'",
        f"""{{cuda = {{use_tf32 = 0, prefer_nhwc = 1}},
        tensorrt = {{trt_profile_min_shapes = '{SHAPES}'}}}}""".replace("\n", " "),
    ],
)
def test_provider_options_are_tables_or_a_string_in_which_values_may_have_commas(text):
    Path("neurona.toml").write_text(f"provider_options = {text}")
    assert load(REPOSITORY, {}).provider_options.by_provider() == {
        "cuda": {"use_tf32": "0", "prefer_nhwc": "1"},
        "tensorrt": {"trt_profile_min_shapes": SHAPES},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch_row = 1",
            "'max_batch_row' in neurona.toml; did you mean 'max_batch_rows'",
        ),
        ("colour = 1", "unknown option 'colour' in neurona.toml$"),
        ("= 1", "invalid TOML in neurona.toml"),
        ("instances = -1", r"instances is -1 \(expected an integer from 1 to 64"),
        ("instances = 1.0", r"instances is '1.0' \(expected an integer from 1 to 64"),
        ("strict = 1", r"strict is 1 \(expected true or false"),
        ("address = 8001", r"address is '8001' \(expected HOST:PORT"),
        ("providers = []", r"providers is '' \(expected names"),
        ("[provider_options]\ncuda = 1", r"provider_options is .* \(expected PROVIDER.KEY=VALUE"),
        (
            "[provider_options.cuda]\nuse_tf32 = [0]",
            r"provider_options.cuda.use_tf32 is \[0\] \(expected a string",
        ),
    ],
)
def test_an_invalid_file_is_reported(text, message):
    Path("neurona.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(REPOSITORY, {})


@pytest.mark.parametrize("value", ["1_000", "+1000", "01000", " 1000 "])
def test_numbers_are_written_as_in_python(value):
    config = load([*REPOSITORY, f"--poll-ms={value}"], {"NEURONA_MAX_DELAY_MS": value})
    assert (config.poll_ms, config.max_delay_ms) == (1000, 1000.0)
    assert load([*REPOSITORY, "--traces-ratio=.5"], {}).traces_ratio == 0.5


@pytest.mark.parametrize(
    ("option", "value"),
    [("poll-ms", "1.0"), ("poll-ms", "1e3"), ("strict", "1"), ("strict", "0"), ("strict", "on")],
)
def test_other_spellings_of_integers_and_booleans_are_invalid(option, value):
    with pytest.raises(ConfigError, match=rf"is '{value}' \(expected (an integer|true or false)"):
        load([*REPOSITORY, f"--{option}={value}"], {})


def test_values_of_a_file_are_parsed_as_their_text():
    Path("neurona.toml").write_text('repository = 7\nload_model = [1, "m"]\npoll_ms = "20"')
    config = load([], {})
    assert (config.repository, config.load_model) == ((Path("7"),), ("1", "m"))
    assert config.poll_ms == 20


def test_variables_of_a_kubernetes_service_called_neurona_are_ignored():
    environment = {
        "NEURONA_PORT": "tcp://10.0.0.1:8001",
        "NEURONA_SERVICE_HOST": "10.0.0.1",
        "NEURONA_PORT_8001_TCP_ADDR": "10.0.0.1",
    }
    assert load(REPOSITORY, environment) == load(REPOSITORY, {})


def test_an_empty_option_in_the_environment_is_not_set():
    assert load(REPOSITORY, {"NEURONA_REPOSITORY": "", "NEURONA_ADDRESS": ""}) == load(
        REPOSITORY, {}
    )


def test_an_unknown_variable_that_resembles_no_option_is_a_warning(caplog):
    load(REPOSITORY, {"NEURONA_COLOUR": "red", "NEURONA_SHARED": "/data", "NEURONA_PORT": "1"})
    assert [record.getMessage() for record in caplog.records] == [
        "ignoring NEURONA_COLOUR in the environment: no such option"
    ]


@pytest.mark.parametrize("address", ["h:0", "[::1]:0", "[::]:8001", "unix:/tmp/x", "h:1,unix:x"])
def test_every_form_of_address(address):
    assert load([*REPOSITORY, "--address", address], {}).address == address


def test_an_unknown_flag_is_rejected(capsys):
    with pytest.raises(SystemExit) as caught:
        load([*REPOSITORY, "--max-batch", "1"], {})
    assert caught.value.code == 2
    assert "--max-batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "127.0.0.1:1,unix:/s"}, "expected an address HOST:PORT"),
        ({"model_control": "explicit"}, "expected model_control poll or none"),
        ({"shared_memory": True}, "expected shared_memory false"),
    ],
)
def test_options_that_several_processes_cannot_have_are_rejected(options, message):
    with pytest.raises(ConfigError, match=rf"processes is 2 \({message}\)"):
        check_processes(Config(processes=2, **options))
    check_processes(Config(processes=2))


def test_every_option_has_a_help_text():
    assert all(option.help.endswith(".") for option in list_options())
