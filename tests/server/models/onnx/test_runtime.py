import pytest

from neurona_server.errors import ConfigError
from neurona_server.models.onnx.runtime import (
    check_names,
    choose,
    degraded,
    explain_missing_gpu,
    short,
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
KNOWN = [CUDA, CPU, "OpenVINOExecutionProvider"]


def names(chosen):
    return [short(one if isinstance(one, str) else one[0]) for one in chosen]


@pytest.mark.parametrize(
    ("wanted", "available", "driver", "chosen"),
    [
        (("cuda", "cpu"), [CUDA, CPU], True, ["cuda", "cpu"]),
        (("cuda", "cpu"), [CUDA, CPU], False, ["cpu"]),
        (("cuda", "cpu"), [CPU], True, ["cpu"]),
        (("cpu",), [CUDA, CPU], True, ["cpu"]),
        (("cpu", "cuda"), [CUDA, CPU], True, ["cpu", "cuda"]),
        (("cuda",), [CUDA, CPU], False, []),
        (("openvino", "cpu"), KNOWN, False, ["openvino", "cpu"]),
    ],
)
def test_those_are_used_that_can_be(wanted, available, driver, chosen):
    assert names(choose(wanted, available, driver, 0)) == chosen


def test_cuda_neither_measures_every_shape_nor_hoards():
    (_, options), _ = choose(("cuda", "cpu"), KNOWN, True, 0)
    assert options == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    (_, options), _ = choose(("cuda", "cpu"), KNOWN, True, 1 << 30)
    assert options["gpu_mem_limit"] == "1073741824"


def test_a_name_that_onnxruntime_does_not_know_is_refused():
    check_names(("cuda", "cpu"), KNOWN)
    with pytest.raises(ConfigError, match="has 'gpu': expected some of cpu, cuda, openvino$"):
        check_names(("gpu", "cpu"), KNOWN)


def test_why_there_is_no_gpu():
    assert "without CUDA" in explain_missing_gpu([CPU], driver=True)
    assert "no NVIDIA driver" in explain_missing_gpu([CUDA, CPU], driver=False)
    assert explain_missing_gpu([CUDA, CPU], driver=True) == ""


@pytest.mark.parametrize(
    ("wanted", "provider", "placement", "missing", "expected", "reason"),
    [
        (("cuda", "cpu"), "cuda", {"cuda": 7}, "", True, ""),
        (("cuda", "cpu"), "cuda", {"cuda": 7, "cpu": 2}, "", False, "2 of its 9 nodes run on"),
        (("cuda", "cpu"), "cpu", {"cpu": 9}, "no driver", False, ""),
        (("cuda", "cpu"), "cpu", {"cpu": 9}, "no driver", True, "runs on the CPU: no driver"),
        (("cuda", "cpu"), "cpu", {"cpu": 9}, "", True, "cuda could not be started"),
        (("openvino", "cpu"), "cpu", {}, "no driver", True, "openvino could not be started"),
        (("cpu",), "cpu", {"cpu": 9}, "no driver", True, ""),
        (("cuda", "cpu"), "cuda", {}, "", True, ""),  # before onnxruntime 1.24: not known
    ],
)
def test_degraded_says_why(wanted, provider, placement, missing, expected, reason):
    told = degraded(wanted, provider, placement, missing, expected)
    assert told.startswith(reason) if not reason else reason in told
    assert bool(told) is bool(reason)
