"""Opens a page in the browser once a server answers there: `make serve` runs it beside the server.

    python deploy/open_page.py http://127.0.0.1:8000/

It does nothing where nobody would see the page: without a display, or if standard output is not a
terminal.
"""

import os
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Mapping

WAIT_SECONDS = 120.0  # models load meanwhile


def has_screen(platform: str, environment: Mapping[str, str]) -> bool:
    """Returns whether a browser of this machine can show something."""
    if "SSH_CONNECTION" in environment:  # the browser would open elsewhere than the person is
        return False
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    return platform in ("darwin", "win32") or any(environment.get(one) for one in displays)


def wait_until_answered(url: str, seconds: float) -> bool:
    """Returns whether a server answers there within a time."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with opener.open(url, timeout=2):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def main(url: str) -> int:
    if not (sys.stdout.isatty() and has_screen(sys.platform, os.environ)):
        return 0
    if wait_until_answered(url, WAIT_SECONDS):
        webbrowser.open(url)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
