"""A Docker engine, and the images that the tests of deployment start there."""

import os
import shutil

import pytest
from support.docker_engine import Engine, pip_options, prepare_images


@pytest.fixture(scope="session")
def engine():
    """Skips unless NEURONA_COMPOSE says that images may be built: minutes, and some gigabytes."""
    if os.environ.get("NEURONA_COMPOSE") != "1":
        pytest.skip("builds images and starts containers: make test-compose")
    if shutil.which("docker") is None:
        pytest.fail("NEURONA_COMPOSE is 1, but there is no docker command")
    engine = Engine()
    engine.docker("version")  # fails with the reason when no engine answers
    return engine


@pytest.fixture(scope="session")
def pip(engine, tmp_path_factory):
    with pip_options(tmp_path_factory.mktemp("pip")) as options:
        yield options


@pytest.fixture(scope="session")
def images(engine, pip):
    return prepare_images(engine, pip)
