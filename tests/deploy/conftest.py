"""Fixtures: a Docker engine and the images that the deployment tests start."""

import os
import shutil

import pytest
from support.docker_engine import Engine, pip_options, prepare_images


@pytest.fixture(scope="session")
def engine():
    """Skips unless NEURONA_COMPOSE is 1: building images takes minutes and some gigabytes."""
    if os.environ.get("NEURONA_COMPOSE") != "1":
        pytest.skip("needs a Docker engine: make test-compose")
    if shutil.which("docker") is None:
        pytest.fail("docker is not installed (NEURONA_COMPOSE is 1)")
    engine = Engine()
    engine.docker("version")  # fails with the reason if no engine responds
    return engine


@pytest.fixture(scope="session")
def pip(engine):
    with pip_options() as options:
        yield options


@pytest.fixture(scope="session")
def images(engine, pip):
    return prepare_images(engine, pip)
