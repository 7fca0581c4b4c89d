"""Headless Chromium over its debugging pipe: a page as a reader sees it, with everything it logs and asks for.

As a script it takes a picture: `python tests/molecule/browser.py PAGE.html OUT.png [JAVASCRIPT]`.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--hide-scrollbars", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page. `logged` holds errors and exceptions; `requested` every address that was asked for."""

    def __init__(self, page: Path, width: int = 1400, height: int = 900, limit: float = 120) -> None:
        assert CHROMIUM is not None
        self.limit = limit
        self.logged: list[str] = []
        self.requested: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="perrin-chromium-")
        read_in, self._to = os.pipe()
        self._from, write_out = os.pipe()

        def wire() -> None:  # the pipe is at file descriptors 3 and 4
            a, b = os.dup(read_in), os.dup(write_out)
            os.dup2(a, 3)
            os.dup2(b, 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self._profile}"]
        self._process = subprocess.Popen(
            command, preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read_in)
        os.close(write_out)
        self._buffer, self._count, self._session = b"", 0, ""
        self._loaded = False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self.begin = time.perf_counter()
        self._call("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._receive()
        self.seconds = time.perf_counter() - self.begin

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self) -> bytes:
        """A PNG of the window."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], self.limit)
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError(f"Chromium said nothing for {self.limit} s, or ended")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, about = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.logged.append(json.dumps(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.logged.append(json.dumps(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.logged.append(about["entry"]["text"])
        return message

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)


if __name__ == "__main__":
    with Browser(Path(sys.argv[1])) as browser:
        time.sleep(1)
        for script in sys.argv[3:]:
            browser.evaluate(script)
            time.sleep(1)
        Path(sys.argv[2]).write_bytes(browser.picture())
        print(
            f"loaded in {browser.seconds:.2f} s; logged {browser.logged}; requests {len(browser.requested)}"
        )
