"""Virtual environments of their own for servers that want other versions than we do."""

import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime

RUNTIME = f"onnxruntime=={onnxruntime.__version__}"
"""The same for everybody, or the comparison would be of runtimes."""


def environment(folder: Path, *requirements: str) -> Path:
    """The Python of an environment with these packages; made and filled the first time.

    Raises subprocess.CalledProcessError when pip cannot.
    """
    python = folder / "bin" / "python"
    said = "\n".join(requirements)
    marker = folder / "installed.txt"
    if not marker.exists() or marker.read_text() != said:
        print(f"installing {', '.join(requirements)} into {folder}", file=sys.stderr)
        if not python.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        marker.write_text(said)
    return python


def site_packages(python: Path) -> Path:
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())
