"""A real Chromium without a screen, told what to do over a pipe.

It is the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/): messages of JSON,
each ended by a zero byte. So no driver has to be installed or to fit the browser's version.
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
PATIENCE = 30.0

# It reads descriptor 3 and writes 4; they may be in use for one another until then.
BECOME = """
import os, sys
for number, own in enumerate(sys.argv[1:3]):
    os.dup2(int(own), 100 + number)
os.dup2(100, 3), os.dup2(101, 4), os.close(100), os.close(101)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One browser, one page at a time."""

    def __init__(self, command, folder):
        """`folder` is empty: the browser's own."""
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        arguments = [command, *FLAGS, f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", BECOME, str(commands), str(answers), *arguments],
            pass_fds=[commands, answers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._number, self._session = 0, None
        self._answers = {}
        self.faults = []
        """What a page has complained of: exceptions, errors on the console, what is blocked."""
        threading.Thread(target=self._listen, daemon=True).start()

    def open(self, url, *, width=1400, height=1000, dark=False, reduced=False):
        if self._session is None:
            target = self.tell("Target.createTarget", url="about:blank")["targetId"]
            attached = self.tell("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.tell(f"{domain}.enable")
        self.resize(width, height)
        scheme = "dark" if dark else "light"
        self.tell(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.faults.clear()
        self.tell("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def resize(self, width, height, scale=1):
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip

    def do(self, expression):
        """What a JavaScript expression comes to; a promise is waited for."""
        result = self.tell(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while not self.do(condition):
            assert time.monotonic() < end, f"waited in vain for {condition}: {self.text()[:3000]}"
            time.sleep(0.05)

    def text(self, selector="body"):
        """As it is seen: what is hidden is not in it."""
        return self.do(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def press(self, key, text=""):
        code = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
        event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.tell("Input.dispatchKeyEvent", type="keyDown", **event)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text):
        self.tell("Input.insertText", text=text)

    def tree(self):
        """What a screen reader is given: role, name and properties of each node."""
        nodes = self.tell("Accessibility.getFullAXTree")["nodes"]
        return [
            (
                node.get("role", {}).get("value"),
                node.get("name", {}).get("value", ""),
                {each["name"]: each["value"].get("value") for each in node.get("properties", [])},
            )
            for node in nodes
            if not node.get("ignored")
        ]

    def picture(self, path, *, whole=False):
        data = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(data["data"]))

    def tell(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        answer = self._answers[self._number] = queue.SimpleQueue()
        os.write(self._out, json.dumps(message).encode() + b"\0")
        told = answer.get(timeout=PATIENCE)
        assert "error" not in told, told
        return told["result"]

    def close(self):
        with contextlib.suppress(AssertionError, OSError, queue.Empty):
            self._session = None
            self.tell("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)

    def _listen(self):
        left = b""
        with os.fdopen(self._in, "rb", buffering=0) as stream:
            while part := stream.read(1 << 16):
                *messages, left = (left + part).split(b"\0")
                for message in messages:
                    self._take(json.loads(message))

    def _take(self, message):
        if "id" in message:
            self._answers.pop(message["id"]).put(message)
        elif message["method"] == "Runtime.exceptionThrown":
            self.faults.append(message["params"]["exceptionDetails"])
        elif message["method"] == "Log.entryAdded":
            self.faults.append(message["params"]["entry"])
