"""Docker for the tests of deployment: commands, images built here, free ports."""

import contextlib
import functools
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP_CONF = ROOT / "deploy" / "pip.conf"
DEBIAN = "neurona-test/debian:bookworm-slim"


class Engine:
    """The Docker engine that DOCKER_HOST names."""

    def __init__(self):
        self.has_buildx = self.docker("buildx", "version", check=False).returncode == 0

    def docker(self, *arguments, check=True, timeout=300, command="docker", **environment):
        """Runs a docker command; with `check`, a failure is an AssertionError with its output."""
        done = subprocess.run(
            [command, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | environment,
        )
        assert not check or done.returncode == 0, (arguments, (done.stdout + done.stderr)[-4000:])
        return done

    def build(self, name, dockerfile, target, *options, buildkit=None):
        """Builds an image, with BuildKit where it is installed unless `buildkit` says otherwise."""
        self.docker(
            *("build", "--network", "host", "--file", ROOT / dockerfile),
            *("--target", target, "--tag", name, *options, ROOT),
            timeout=1800,
            DOCKER_BUILDKIT=str(int(self.has_buildx if buildkit is None else buildkit)),
        )
        return name

    def inspect(self, container, field):
        return self.docker("inspect", "--format", "{{" + field + "}}", container).stdout.strip()

    def has(self, image):
        return self.docker("image", "inspect", image, check=False).returncode == 0


def prepare_images(engine, pip):
    """Builds the images of compose.yaml; returns its variables, and BASE_IMAGE."""
    base = base_image(engine)
    options = ("--build-arg", f"BASE_IMAGE={base}")

    def build(name, target):
        return engine.build(f"neurona-test/{name}", "deploy/Dockerfile", target, *options, *pip)

    def stand_in(name):
        return engine.build(
            f"neurona-test/{name}", "tests/deploy/stand_ins.Dockerfile", name, *options
        )

    return {
        "BASE_IMAGE": base,
        "NEURONA_IMAGE": build("neurona", "server"),
        "NEURONA_TRAINING_IMAGE": build("training", "training"),
        "PROMETHEUS_IMAGE": stand_in("prometheus"),
        "ENVOY_IMAGE": stand_in("envoy"),
    }


def base_image(engine):
    """Returns Debian's slim image, or one made of its packages where none can be pulled."""
    if name := os.environ.get("NEURONA_BASE_IMAGE"):
        return name
    if engine.has(DEBIAN):
        return DEBIAN
    if engine.docker("pull", "debian:bookworm-slim", check=False).returncode == 0:
        return "debian:bookworm-slim"
    assert shutil.which("debootstrap"), "no image can be pulled, and debootstrap is not installed"
    script = ROOT / "tests" / "deploy" / "debian_image.sh"
    engine.docker(script, DEBIAN, command="sh", timeout=900)
    return DEBIAN


@contextlib.contextmanager
def pip_options():
    """Yields build options with which pip uses the wheels of this machine's find-links folder."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    folder_of_wheels = subprocess.run(
        command, check=False, capture_output=True, text=True
    ).stdout.strip()
    if not Path(folder_of_wheels or "/nowhere").is_dir():
        yield ()
        return
    handler = functools.partial(_SilentHandler, directory=folder_of_wheels)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert not PIP_CONF.exists(), f"{PIP_CONF} exists"
    PIP_CONF.write_text(f"[global]\nfind-links = http://127.0.0.1:{server.server_port}/\n")
    has_torch = any(Path(folder_of_wheels).glob("torch-*.whl"))
    try:
        yield ("--build-arg", "TORCH_INDEX=") if has_torch else ()
    finally:
        PIP_CONF.unlink()
        server.shutdown()
        thread.join()
        server.server_close()


class _SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(condition, seconds=90.0, every=0.25):
    """Polls until `condition` returns something true, and returns it; AssertionError on timeout.

    For states of other processes that cannot be awaited."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"timeout: {condition} (expected within {seconds:g} s)"
        time.sleep(every)
    return value
