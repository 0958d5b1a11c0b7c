"""Puts what a GPU machine without a network needs into bench/gpu, and prints its size.

    python tests/benchmarks/gpu_bundle.py [--folder bench/gpu] [--architecture 90] [--python 3.12]

runtime.tar.xz is onnxruntime-gpu from PyPI without what the tests and the benchmark do not use:
kernels of other GPU architectures, those of large language models, tools. The library keeps its
size and the places in it; the kernels left out are zeros, which compress to nothing, and a graph
that needed one would fail with an error of CUDA. wheels/ has the other packages that such a machine
may lack or have in another version: those of constraints.txt. CUDA and cuDNN are expected there.
Needs zstd (Debian: zstd), without which the kernels of language models stay: 35 MiB more.
"""

import argparse
import io
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIMIT_MIB = 64
"""What may be brought to the machine at once, the working tree included."""

RUNTIME = "onnxruntime-gpu"
PACKAGES = (
    *("grpcio", "grpcio-health-checking", "msgspec", "nvidia-ml-py", "prometheus_client"),
    "protobuf",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

_UNUSED_FILES = re.compile(
    r"providers_tensorrt\.so|libonnxruntime\.so|onnxruntime/(transformers|tools|quantization)/"
    r"|ThirdPartyNotices"
)
_CUDA_LIBRARY = "libonnxruntime_providers_cuda.so"
_UNUSED_KERNELS = re.compile(rb"cutlass|flash|fpA_intB|[Ff]used_?[Mm]oe|xqa_|masked_multih")
_KERNEL_NAME = re.compile(rb"_Z[A-Za-z0-9_]{8,}")
_ZSTANDARD = b"\x28\xb5\x2f\xfd"

# A fat binary: a header of 16 bytes, then entries with a header of their own. Its format is not
# published; these fields are known from tools that read it.
_FATBIN = struct.Struct("<IHHQ")  # magic number, version, size of the header and of the entries
_FATBIN_MAGIC = 0xBA55ED50
_ENTRY = struct.Struct("<HHIQ")  # kind, version, size of the header and of the body
_ARCHITECTURE_AT = 28  # in the entry's header
_PTX, _ELF = 1, 2


class Kernels(NamedTuple):
    """An entry of a fat binary: where its body is in the library, and for what."""

    start: int
    end: int
    kind: int
    architecture: int


def find_kernels(library: bytes) -> Iterator[Kernels]:
    """Yields the entries of all fat binaries of a library."""
    magic = struct.pack("<I", _FATBIN_MAGIC)
    at = 0
    while (at := library.find(magic, at)) >= 0:
        _, version, header, size = _FATBIN.unpack_from(library, at)
        if version != 1 or header != _FATBIN.size or at + header + size > len(library):
            at += len(magic)  # the same bytes, by chance
            continue
        entry, end = at + header, at + header + size
        while entry + _ARCHITECTURE_AT + 4 <= end:
            kind, _, entry_header, body = _ENTRY.unpack_from(library, entry)
            start = entry + entry_header
            if kind not in (_PTX, _ELF) or start + body > end:
                break
            (architecture,) = struct.unpack_from("<I", library, entry + _ARCHITECTURE_AT)
            yield Kernels(start, start + body, kind, architecture)
            entry = start + body
        at = end


def reduce_library(library: bytes, architecture: int) -> bytes:
    """Returns the library with zeros for the kernels that are not used on this architecture."""
    reduced = bytearray(library)
    for kernels in find_kernels(library):
        body = library[kernels.start : kernels.end]
        if kernels.kind != _ELF or kernels.architecture != architecture or _is_unused(body):
            reduced[kernels.start : kernels.end] = bytes(len(body))
    return bytes(reduced)


def _is_unused(body: bytes) -> bool:
    """Returns whether most kernels of an entry are those of language models."""
    if body.startswith(_ZSTANDARD):
        if (zstd := shutil.which("zstd")) is None:
            return False
        # It ends before the padding of the entry, of which zstd complains.
        command = [zstd, "-dcq"]
        body = subprocess.run(command, check=False, input=body, capture_output=True).stdout
    names = _KERNEL_NAME.findall(body)
    unused = sum(1 for name in names if _UNUSED_KERNELS.search(name))
    return 2 * unused > len(names)


def write_runtime(wheel: Path, target: Path, architecture: int) -> None:
    """Writes what is used of a wheel of onnxruntime-gpu as a compressed archive."""
    with zipfile.ZipFile(wheel) as files, tarfile.open(target, "w:xz", preset=6) as archive:
        for info in files.infolist():
            if info.is_dir() or _UNUSED_FILES.search(info.filename):
                continue
            content = files.read(info)
            if info.filename.endswith(_CUDA_LIBRARY):
                content = reduce_library(content, architecture)
            member = tarfile.TarInfo(info.filename)
            member.size, member.mode = len(content), 0o755 if ".so" in info.filename else 0o644
            archive.addfile(member, io.BytesIO(content))


def download(packages: list[str], folder: Path, python: str) -> None:
    """Downloads the wheels of packages for Linux on x86-64.

    Raises:
        subprocess.CalledProcessError: pip fails.
    """
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += ["--disable-pip-version-check"]
    subprocess.run([*command, *platforms, *packages], check=True)


def constrained(packages: tuple[str, ...]) -> list[str]:
    """Returns the packages with their versions in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    return [f"{name}=={versions[name]}" for name in packages]


def mebibytes(paths: Iterator[Path]) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "gpu")
    parser.add_argument("--architecture", type=int, default=90, help="compute capability times 10")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    download(constrained(PACKAGES), folder / "wheels", arguments.python)
    with tempfile.TemporaryDirectory() as temporary:
        download(constrained((RUNTIME,)), Path(temporary), arguments.python)
        (wheel,) = Path(temporary).glob("*.whl")
        write_runtime(wheel, folder / "runtime.tar.xz", arguments.architecture)
    command = [shutil.which("git") or "git", "-C", ROOT, "ls-files"]
    tracked = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tree = mebibytes(ROOT / name for name in tracked.splitlines())
    carried = mebibytes(folder.rglob("*"))
    print(f"{folder}: {carried:.1f} MiB, with the working tree {carried + tree:.1f} MiB")
    if carried + tree > LIMIT_MIB:
        sys.exit(f"that is too large (expected at most {LIMIT_MIB} MiB)")


if __name__ == "__main__":
    main()
