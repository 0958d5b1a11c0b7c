"""What a server is measured against on the same device: ONNX Runtime alone, and torch.

    python tests/benchmarks/gpu_reference.py onnxruntime|torch|compile '{"device": "cuda", ...}'

gpu.py runs it as a process of its own, so that its memory of the device is free again afterwards,
and an error in it ends only this part. It prints a line of JSON for each measurement, as soon as it
has it, until the time is over.

onnxruntime  batches that are on the device already, by IOBinding, one run after the other; and the
             same with the copies from and to pageable memory of the host that session.run makes
torch        the network in eager mode, in inference mode, batches on the device
compile      the same by torch.compile, for the largest batch
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from seeded_weights import MODEL, make_rows

MIN_RUNS = 3


def main() -> None:
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    measure = {"onnxruntime": onnxruntime_rates, "torch": torch_rates, "compile": compiled_rates}
    for result in measure[kind](options):
        print(json.dumps(result), flush=True)
        if time.time() > options["end"]:
            break


def time_runs(
    run: Callable[[], None], wait: Callable[[], None], seconds: float
) -> tuple[float, int]:
    """Returns seconds per run and the number of runs, after some that are not measured."""
    for _ in range(MIN_RUNS):
        run()
    wait()
    runs, start = 0, time.perf_counter()
    while runs < MIN_RUNS or time.perf_counter() - start < seconds:
        run()
        runs += 1
    wait()
    return (time.perf_counter() - start) / runs, runs


def _result(kind: str, network: str, rows: int, seconds: float, runs: int) -> dict[str, Any]:
    rate = rows / seconds
    return {
        "kind": kind,
        "network": network,
        "rows": rows,
        "runs": runs,
        "run_seconds": seconds,
        "rows_per_second": rate,
    }


def onnxruntime_rates(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import onnxruntime

    from neurona_server.models.onnx import runtime

    device = options["device"]
    chosen = runtime.RuntimeOptions(providers=("cuda", "cpu") if device == "cuda" else ("cpu",))
    for name, network in options["networks"].items():
        session = onnxruntime.InferenceSession(
            str(Path(network["folder"]) / MODEL), providers=runtime.usable_providers(chosen)
        )
        session.disable_fallback()
        if device == "cuda" and session.get_providers()[0] != runtime.CUDA:
            raise RuntimeError(f"ONNX Runtime runs on {session.get_providers()[0]}")
        output = session.get_outputs()[0].name
        for rows in options["rows"]:
            batch = make_rows(network["row"], rows)
            binding = session.io_binding()
            binding.bind_ortvalue_input(
                "x", onnxruntime.OrtValue.ortvalue_from_numpy(batch, device, 0)
            )
            binding.bind_output(output, device, 0)
            seconds, runs = time_runs(
                lambda s=session, b=binding: s.run_with_iobinding(b),
                binding.synchronize_outputs,
                options["seconds"],
            )
            yield _result("onnxruntime", name, rows, seconds, runs)
            seconds, runs = time_runs(
                lambda s=session, b=batch: s.run(None, {"x": b}), _nothing, options["seconds"]
            )
            yield _result("onnxruntime, with copies", name, rows, seconds, runs)


def torch_rates(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, network in options["networks"].items():
        module, dtype = _torch_network(network, options["device"])
        for rows in options["rows"]:
            seconds, runs = _time_torch(module, dtype, network, rows, options)
            yield _result("torch", name, rows, seconds, runs)


def compiled_rates(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    rows = max(options["rows"])
    for name, network in options["networks"].items():
        module, dtype = _torch_network(network, options["device"])
        started = time.perf_counter()
        compiled = torch.compile(module)
        _time_torch(compiled, dtype, network, rows, options | {"seconds": 0.0})
        compile_seconds = time.perf_counter() - started
        seconds, runs = _time_torch(compiled, dtype, network, rows, options)
        yield _result("torch.compile", name, rows, seconds, runs) | {
            "compile_seconds": compile_seconds
        }


def _torch_network(network: dict[str, Any], device: str) -> tuple[Any, Any]:
    import torch
    from exports import build_network

    torch.set_float32_matmul_precision("high")  # TF32, as ONNX Runtime has it; cuDNN has it anyway
    module, _, _ = build_network(network["architecture"])
    dtype = torch.float16 if network["variant"] == "float16" else torch.float32
    return module.to(device, dtype), dtype


def _time_torch(
    module: Any, dtype: Any, network: dict[str, Any], rows: int, options: dict[str, Any]
) -> tuple[float, int]:
    import torch

    device = options["device"]
    batch = torch.from_numpy(make_rows(network["row"], rows)).to(device, dtype)
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    with torch.inference_mode():
        outputs = module(batch)
        if not np.isfinite(outputs.float().cpu().numpy()).all():
            raise ValueError("torch's outputs are not finite")
        return time_runs(lambda: module(batch), wait, options["seconds"])


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
