"""A headless Chromium that a test drives with clicks and keys, by its debugging protocol, without further packages."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60
"""Seconds that a page has for what a test waits for."""
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
KEYS = {
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowUp": ("ArrowUp", 38),
    "ArrowRight": ("ArrowRight", 39),
    "ArrowDown": ("ArrowDown", 40),
    " ": ("Space", 32),
}
"""{key: (code, number)} of keys that are no letters."""


def find_browser() -> str:
    """The path of a Chromium; without one the test is skipped."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None) or pytest.skip("no Chromium here")


class Browser:
    """One page of a Chromium whose profile and downloads lie in a folder."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._unread = send, receive, b""
        self._n_calls, self._session = 0, None
        self.errors: list[str] = []
        """What the page says of errors in its scripts."""
        end = time.monotonic() + PATIENCE
        while not (pages := [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]):
            assert time.monotonic() < end, "the browser has opened no page"
            time.sleep(0.05)
        (page,) = pages
        self._session = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._n_calls += 1
        message = {"id": self._n_calls, "method": method, "params": parameters}
        os.write(
            self._send, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._next()
            if answer.get("id") == self._n_calls:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(answer["params"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._receive], [], [], PATIENCE)
            assert readable, f"the browser has said nothing for {PATIENCE} s"
            more = os.read(self._receive, 2**16)
            assert more, "the browser has ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, *, width: int = 1280, height: int = 900) -> None:
        """Show a file, and wait until it is loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def reload(self) -> None:
        """Load the page again."""
        self.run("window.isOld = true")
        self._call("Page.reload")
        self.wait_for("!window.isOld && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of an element, scrolled into view."""
        place = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center'}); const r = found.getBoundingClientRect();"
            "return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        code, number = KEYS.get(key, (f"Key{key.upper()}", ord(key.upper()[0])))
        given = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self._call("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": key} if len(key) == 1 else {}))
        self._call("Input.dispatchKeyEvent", type="keyUp", **given)

    def save_downloads_to(self, folder: Path) -> None:
        """Where files go that the page offers."""
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def close(self) -> None:
        """Ask the browser to end as a user does, so that it first writes what pages have stored."""
        self._session = None
        self._call("Browser.close")

    def screenshot(self, path: Path) -> None:
        """Write what the window shows, as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`, which keeps what pages store from one browser to the next."""
    line = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *QUIET]
    line += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank"]
    (to_read, send), (receive, to_write) = os.pipe(), os.pipe()
    line = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", *line]  # where the browser reads and writes
    with (folder / "browser.log").open("wb") as told:
        process = subprocess.Popen(line, stderr=told, stdout=told, pass_fds=(to_read, to_write))
    os.close(to_read)
    os.close(to_write)
    try:
        opened = Browser(send, receive)
        yield opened
        opened.close()
        process.wait(timeout=PATIENCE)
    finally:
        process.kill()  # only where the test has failed
        process.wait(timeout=PATIENCE)
        os.close(send)
        os.close(receive)
