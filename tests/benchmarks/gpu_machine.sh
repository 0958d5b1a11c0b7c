#!/bin/bash
# Tests and measures on a GPU machine without a network, in one call of at most ten minutes.
#
#     bash tests/benchmarks/gpu_machine.sh OUT [SECONDS]
#
# Run it in the root of a copy of the working tree that has bench/gpu, as `make bench-gpu-bundle`
# writes it. It needs Python 3.12 with torch, onnx, pytest, and CUDA's libraries in the packages
# nvidia-*. Everything it finds out is in OUT, which is of use also if it is stopped in between:
# environment.txt, tests.log, bench.log, results.json, results.md and logs.tar.gz, of the servers.
set -u
out=${1:?usage: gpu_machine.sh OUT [SECONDS]}
budget=${2:-570}
started=$SECONDS
bundle=${BUNDLE:-bench/gpu}
python=${PYTHON:-python3}
environment=${ENVIRONMENT:-/tmp/neurona-gpu}
device=${DEVICE:-cuda}
logs=$(mktemp -d)
mkdir -p "$out"
left() { echo $((budget - (SECONDS - started))); }

# An environment on top of the machine's packages: what was brought comes first.
"$python" -m venv --without-pip "$environment" || exit 1
site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
[ -f $bundle/runtime.tar.xz ] && tar -C "$site" -xf $bundle/runtime.tar.xz
for wheel in $bundle/wheels/*.whl; do
    [ -f "$wheel" ] && "$python" -m zipfile -e "$wheel" "$site"
done
"$python" - >"$site/neurona.pth" <<'PTH'
import os, sysconfig
for folder in ("protos", "server", "client", "training"):
    print(os.path.abspath(folder))
print(sysconfig.get_path("purelib"))
PTH
# ONNX Runtime looks for CUDA and cuDNN beside itself.
nvidia=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null)
[ -n "$nvidia" ] && [ ! -e "$site/nvidia" ] && ln -s "$nvidia" "$site/nvidia"
for command in neurona:neurona_client.cli.main neurona-serve:neurona_server.cli \
    neurona-train:neurona_training.cli.main; do
    file=$environment/bin/${command%%:*}
    printf '#!%s\nimport sys\nfrom %s import main\nsys.exit(main())\n' \
        "$environment/bin/python" "${command#*:}" >"$file"
    chmod +x "$file"
done
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

{
    nvidia-smi
    nproc
    free -g
    "$environment/bin/python" - <<'VERSIONS'
import importlib.metadata, sys
print(sys.version)
for name in ("grpcio", "protobuf", "numpy", "onnx", "torch", "nvidia-cudnn-cu13", "nvidia-cublas"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "missing")
import onnxruntime
onnxruntime.preload_dlls()
print(onnxruntime.__version__, onnxruntime.__file__, onnxruntime.get_available_providers())
from neurona_server.models.onnx import gpu_installation, runtime
print("the GPU:", runtime.missing_gpu_reason() or gpu_installation.describe_gpus())
VERSIONS
} >"$out/environment.txt" 2>&1
tail -n 3 "$out/environment.txt"

# The tests first: figures of wrong answers are worth nothing. They get two fifths of the time.
variables=(NEURONA_GPU_REQUIRED=1)
[ "$device" = cpu ] && variables=(NEURONA_GPU_REHEARSAL=1)
variables+=("NEURONA_GPU_MODELS=$bundle/models")
env "${variables[@]}" timeout -s INT -k 20 $(($(left) * 2 / 5)) "$environment/bin/python" \
    -m pytest tests/gpu -m gpu -W default -p no:cacheprovider --timeout 180 --timeout-method signal --durations 10 -v \
    --continue-on-collection-errors >"$out/tests.log" 2>&1
echo "tests: status $? (124: stopped by the limit)"
grep -E '^(FAILED|ERROR)|passed|failed' "$out/tests.log" | tail -n 40

# Few files come back from such a machine, and only those that are there when time is over.
pack_logs() {
    tar -C "$logs" -czf "$logs.tar.gz" . && mv "$logs.tar.gz" "$out/logs.tar.gz"
}
(while sleep 20; do pack_logs; done) &
packing=$!

limit=$(($(left) - 15))
timeout -s INT -k 10 $((limit + 5)) "$environment/bin/python" tests/benchmarks/gpu.py \
    --device "$device" --models "$bundle/models" \
    --budget $((limit > 420 ? 420 : limit)) --out "$out" --logs "$logs" ${BENCH_FLAGS:-} >"$out/bench.log" 2>&1
echo "benchmark: status $?"
kill $packing
pack_logs
cat "$out/results.md"
echo "$((SECONDS - started)) s"
