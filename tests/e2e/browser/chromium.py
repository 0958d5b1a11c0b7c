"""A headless Chromium, controlled over a pipe by the DevTools protocol.

The messages are JSON, each ended by a zero byte
(https://chromedevtools.github.io/devtools-protocol/). No driver has to be installed or to match the
browser's version.
"""

import base64
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe", "--lang=en"),
)
TIMEOUT = 30.0

# Chromium reads descriptor 3 and writes 4, which may be taken by the other end until here.
START_COMMAND = """
import os, sys
for number, pipe in enumerate(sys.argv[1:3]):
    os.dup2(int(pipe), 100 + number)
os.dup2(100, 3), os.dup2(101, 4), os.close(100), os.close(101)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One browser, one page at a time."""

    def __init__(self, command, folder):
        """Starts the browser, with an empty folder for its profile."""
        commands, self._out = os.pipe()
        self._in, responses = os.pipe()
        arguments = [command, *FLAGS, f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START_COMMAND, str(commands), str(responses), *arguments],
            pass_fds=[commands, responses],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(responses)
        self._number, self._session = 0, None
        self._responses = {}
        self.errors = []
        """Exceptions, console errors and blocked requests of the page."""
        threading.Thread(target=self._listen, daemon=True).start()

    def open(self, url, *, width=1400, height=1000, dark=False, reduced=False):
        if self._session is None:
            target = self.send_command("Target.createTarget", url="about:blank")["targetId"]
            attached = self.send_command("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send_command(f"{domain}.enable")
        self.resize(width, height)
        scheme = "dark" if dark else "light"
        self.send_command(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.errors.clear()
        self.send_command("Page.navigate", url=url)
        self.wait_until("document.readyState === 'complete'")

    def resize(self, width, height, scale=1):
        self.send_command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression; waits for a promise."""
        result = self.send_command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_until(self, condition, seconds=TIMEOUT):
        """Waits until a JavaScript condition is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, (
                f"not true after {seconds} s: {condition}: {self.text()[:3000]}"
            )
            time.sleep(0.05)

    def text(self, selector="body"):
        """Returns the visible text of an element."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def press(self, key, text=""):
        code = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
        event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.send_command("Input.dispatchKeyEvent", type="keyDown", **event)
        self.send_command("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text):
        self.send_command("Input.insertText", text=text)

    def accessibility_tree(self):
        """Returns role, name and properties of each node, as a screen reader gets them."""
        nodes = self.send_command("Accessibility.getFullAXTree")["nodes"]
        return [
            (
                node.get("role", {}).get("value"),
                node.get("name", {}).get("value", ""),
                {each["name"]: each["value"].get("value") for each in node.get("properties", [])},
            )
            for node in nodes
            if not node.get("ignored")
        ]

    def save_screenshot(self, path, *, whole=False):
        data = self.send_command(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole
        )
        path.write_bytes(base64.b64decode(data["data"]))

    def send_command(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        response_queue = self._responses[self._number] = queue.SimpleQueue()
        os.write(self._out, json.dumps(message).encode() + b"\0")
        response = response_queue.get(timeout=TIMEOUT)
        assert "error" not in response, response
        return response["result"]

    def close(self):
        with contextlib.suppress(AssertionError, OSError, queue.Empty):
            self._session = None
            self.send_command("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)

    def _listen(self):
        rest = b""
        with os.fdopen(self._in, "rb", buffering=0) as stream:
            while part := stream.read(1 << 16):
                *messages, rest = (rest + part).split(b"\0")
                for message in messages:
                    self._receive(json.loads(message))

    def _receive(self, message):
        if "id" in message:
            self._responses.pop(message["id"]).put(message)
        elif message["method"] == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"])
        elif message["method"] == "Log.entryAdded":
            self.errors.append(message["params"]["entry"])
