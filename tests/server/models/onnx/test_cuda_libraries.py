import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neurona_server.models.onnx.cuda_libraries import cuda_libraries

CODE = (
    "from neurona_server.models.onnx import cuda_libraries as one\n"
    "print(*[library.file for library in one.load_libraries(13)], end=' ')\n"
    "print(one.cudnn_version() or 'none', one.cudnn_cuda_major())"
)


def test_packages_of_cuda_13_have_one_folder_and_names_without_a_version():
    by_file = {library.file: library for library in cuda_libraries(13)}
    cublas, cudnn = by_file["libcublas.so.13"], by_file["libcudnn.so.9"]
    assert (cublas.package, cublas.folder) == ("nvidia-cublas", "cu13/lib")
    assert (cudnn.package, cudnn.folder) == ("nvidia-cudnn-cu13", "cudnn/lib")
    assert "libcufft.so.12" in by_file


def test_packages_of_cuda_12_have_a_folder_each():
    by_file = {library.file: library for library in cuda_libraries(12)}
    runtime = by_file["libcudart.so.12"]
    assert (runtime.package, runtime.folder) == ("nvidia-cuda-runtime-cu12", "cuda_runtime/lib")
    assert by_file["libcufft.so.11"].package == "nvidia-cufft-cu12"
    assert by_file["libcudnn.so.9"].package == "nvidia-cudnn-cu12"


def test_libraries_are_found_in_packages_anywhere_on_the_path(tmp_path: Path):
    """With stand-ins in the folders of NVIDIA's packages, in two folders of PYTHONPATH."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler, for stand-ins of the libraries")
    source = tmp_path / "stand_in.c"
    source.write_text(
        "unsigned long cudnnGetVersion(void) { return 92003; }\n"
        "unsigned long cudnnGetCudartVersion(void) { return 12090; }\n"
    )
    roots = [tmp_path / "one", tmp_path / "two"]
    for index, library in enumerate(cuda_libraries(13)):
        path = roots[index % 2] / "nvidia" / library.folder / library.file
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"-Wl,-soname,{library.file}"
        subprocess.run([compiler, "-shared", "-fPIC", name, "-o", path, source], check=True)

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path += {list(map(str, roots))!r}\n{CODE}"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert run() == "9.20.3 12"
    (roots[1] / "nvidia/cudnn/lib/libcudnn.so.9").write_bytes(b"")
    (roots[0] / "nvidia/cu13/lib/libcurand.so.10").unlink()
    assert run() == "libcurand.so.10 libcudnn.so.9 none 0"
