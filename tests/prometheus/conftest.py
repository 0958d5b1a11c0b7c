"""A real Prometheus that scrapes real servers. `make test-prometheus` runs these tests."""

import os
import shutil
from pathlib import Path

import pytest
from support.prometheus_server import Scraper
from support.server_process import ServerProcess

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    reason = None
    if not os.environ.get("NEURONA_PROMETHEUS"):
        reason = "takes minutes: make test-prometheus"
    elif not shutil.which("prometheus"):
        reason = "needs prometheus (Debian: prometheus)"
    if reason:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def scraper(tmp_path_factory):
    scraper = Scraper(tmp_path_factory.mktemp("prometheus"))
    yield scraper
    scraper.close()


@pytest.fixture
def start(scraper):
    """Starts servers that are targets of the scraper until the end of the test."""
    replicas = []

    def start(repository, *flags):
        replica = ServerProcess(repository, *flags)
        replicas.append(replica)
        replica.start().wait_until_serving()
        scraper.add_target(replica.metrics_address)
        return replica

    yield start
    for replica in replicas:
        scraper.remove_target(replica.metrics_address)
        replica.close()
