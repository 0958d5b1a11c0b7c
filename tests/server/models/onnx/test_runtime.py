import pytest

from neurona_server.errors import ConfigError
from neurona_server.models.onnx.provider_options import CUDA_DEFAULTS
from neurona_server.models.onnx.runtime import (
    CPU,
    CUDA,
    RuntimeOptions,
    check_provider_names,
    choose_providers,
    explain_degraded,
    short_name,
)

AVAILABLE = [CUDA, CPU, "OpenVINOExecutionProvider"]


def short_names(providers):
    return [short_name(one if isinstance(one, str) else one[0]) for one in providers]


@pytest.mark.parametrize(
    ("wanted", "available", "driver", "expected"),
    [
        (("cuda", "cpu"), [CUDA, CPU], True, ["cuda", "cpu"]),
        (("cuda", "cpu"), [CUDA, CPU], False, ["cpu"]),
        (("cuda", "cpu"), [CPU], True, ["cpu"]),
        (("cpu",), [CUDA, CPU], True, ["cpu"]),
        (("cpu", "cuda"), [CUDA, CPU], True, ["cpu", "cuda"]),
        (("cuda",), [CUDA, CPU], False, []),
        (("openvino", "cpu"), AVAILABLE, False, ["openvino", "cpu"]),
    ],
)
def test_usable_providers_are_chosen_in_order(wanted, available, driver, expected):
    options = RuntimeOptions(providers=wanted)
    assert short_names(choose_providers(options, available, driver)) == expected


def test_a_provider_gets_its_options():
    options = RuntimeOptions(
        providers=("openvino", "cuda", "cpu"),
        provider_options={"cuda": {"use_tf32": "0"}, "openvino": {"num_streams": "2"}},
        gpu_memory_bytes=1 << 30,
    )
    (openvino, streams), (cuda, values), cpu = choose_providers(options, AVAILABLE, True, 3)
    assert (openvino, streams) == ("OpenVINOExecutionProvider", {"num_streams": "2"})
    assert (cuda, cpu) == (CUDA, CPU)
    assert values == {
        **CUDA_DEFAULTS,
        "device_id": "3",
        "gpu_mem_limit": "1073741824",
        "use_tf32": "0",
    }


def test_unknown_provider_is_rejected():
    check_provider_names(("cuda", "cpu"), AVAILABLE)
    with pytest.raises(ConfigError, match=r"has 'gpu' \(expected some of cpu, cuda, openvino\)$"):
        check_provider_names(("gpu", "cpu"), AVAILABLE)
    with pytest.raises(ConfigError, match=r"^option provider_options has 'gpu' \(expected some"):
        check_provider_names(("gpu",), AVAILABLE, "provider_options")


@pytest.mark.parametrize(
    ("wanted", "provider", "placement", "missing", "expected", "reason"),
    [
        (("cuda", "cpu"), "cuda", {"cuda": 7}, "", True, ""),
        (("cuda", "cpu"), "cuda", {"cuda": 7, "cpu": 2}, "", False, "2 of its 9 nodes run on"),
        (("cuda", "cpu"), "cpu", {"cpu": 9}, "no driver", False, ""),
        (("cuda", "cpu"), "cpu", {"cpu": 9}, "no driver", True, "runs on the CPU: no driver"),
        (("cuda", "cpu"), "cpu", {"cpu": 9}, "", True, "cuda could not be started"),
        (("openvino", "cpu"), "cpu", {}, "", True, "openvino could not be started"),
        (("tensorrt", "cuda", "cpu"), "cuda", {}, "", True, "runs on cuda: tensorrt could not be"),
        (("tensorrt", "cuda", "cpu"), "cuda", {}, "no nvinfer", False, "runs on cuda: no nvinfer"),
        (("cpu",), "cpu", {"cpu": 9}, "no driver", True, ""),
        (("cuda", "cpu"), "cuda", {}, "", True, ""),  # onnxruntime before 1.24
    ],
)
def test_degraded_models_are_explained(wanted, provider, placement, missing, expected, reason):
    degraded = explain_degraded(wanted, provider, placement, missing, expected)
    assert reason in degraded
    assert bool(degraded) is bool(reason)


@pytest.mark.parametrize(
    ("operators", "reason"),
    [
        (["Shape", "Gather", "Concat"], ""),  # sizes, which belong on the CPU
        (
            ["Shape", "MatMulInteger", "DynamicQuantizeLinear", "MatMulInteger"],
            "4 of its 9 nodes run on the CPU (DynamicQuantizeLinear, MatMulInteger)",
        ),
        ([*"ABCDEF"], "4 of its 9 nodes run on the CPU (A, B, C, D, E, ...)"),
        ([], "4 of its 9 nodes run on the CPU"),
    ],
)
def test_only_nodes_that_compute_sizes_belong_on_the_cpu(operators, reason):
    placement = {"cuda": 5, "cpu": 4}
    names = ("cuda", "cpu")
    assert explain_degraded(names, "cuda", placement, "", True, operators) == reason
