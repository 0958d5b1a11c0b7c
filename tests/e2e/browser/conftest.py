"""Tests of the status page in a browser, which all of them share (`make test-browser`)."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chromium import Chromium

COMMANDS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def command():
    if not os.environ.get("NEURONA_BROWSER"):
        pytest.skip("takes minutes: make test-browser, or NEURONA_BROWSER=1")
    for name in COMMANDS:
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    return None


@pytest.fixture(scope="session")
def browser(command, tmp_path_factory):
    browser = Chromium(command, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def screenshot(browser, request):
    """Saves a screenshot in the folder that NEURONA_SHOTS names, if it is set."""

    def screenshot(name):
        if folder := os.environ.get("NEURONA_SHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            browser.save_screenshot(Path(folder) / f"{name}.png")

    return screenshot
