"""A headless Chromium that tests steer over its debugging protocol, where there is one."""

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
WITHOUT = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
WAIT = 30.0  # seconds

needs_browser = pytest.mark.skipif(not PROGRAM, reason="there is no Chromium on this machine")


class Page:
    """A page of the browser. `problems` are what its console has said, and requests that left the page's own place."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT))
            self._see(message)
            if message.get("id") == number:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found

    def _see(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(told["exceptionDetails"]["exception"]["description"])
        if message.get("method") == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        if message.get("method") == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.problems.append(str(told["args"]))

    def open(self, address: str, width: int = 1200, *, dark: bool = False, height: int = 900) -> None:
        """Open an address in a window of this width, in light or dark mode, and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + WAIT
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser that keeps its files in this folder, with one empty page. It ends with the block."""
    from websockets.sync.client import connect

    process = subprocess.Popen(
        [PROGRAM, *WITHOUT, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = _written(folder / "DevToolsActivePort", process).split()[0]
        with connect(_target(port), max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait()


def _written(path: Path, process: "subprocess.Popen[bytes]") -> str:
    end = time.monotonic() + WAIT
    while not (path.exists() and path.read_text().strip()):
        assert process.poll() is None, "Chromium did not start"
        assert time.monotonic() < end, "Chromium did not say its port"
        time.sleep(0.05)
    return path.read_text()


def _target(port: str) -> str:
    """Return the address of the one page."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/json") as answer:
        [page] = [one for one in json.load(answer) if one["type"] == "page"]
    return str(page["webSocketDebuggerUrl"])
