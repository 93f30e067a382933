"""A headless Chromium for tests of the search page, driven by its DevTools protocol over a pipe.

    with Chromium() as browser, browser.page() as page:
        page.go("http://127.0.0.1:8000/")
        page.wait("document.querySelectorAll('.card').length > 3")
        page.click("#undo")

The pipe needs no package: messages are JSON texts that end with a zero byte.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 30.0  # seconds until a condition that does not come true fails a test


def find_browser() -> str:
    """Return the browser's path, or skip the test: no package of Python brings a browser."""
    named = os.environ.get("CMAP_CHROMIUM")
    paths = [named] if named else [shutil.which(name) for name in _NAMES]
    path = next((path for path in paths if path), None)
    if path is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    return path


class BrowserError(Exception):
    """An error of the browser, or an exception in the page."""


class Chromium:
    """A browser process with a profile of its own."""

    def __enter__(self) -> Chromium:
        self._profile = tempfile.mkdtemp(prefix="chromium_")
        to_browser, self._writing = os.pipe()
        self._reading, from_browser = os.pipe()
        # The protocol's pipes are the file descriptors 3 (to the browser) and 4 (from it).
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        command = [find_browser(), *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest, self._last = b"", 0
        self._events: collections.deque[dict[str, Any]] = collections.deque(maxlen=5000)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BrowserError, OSError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._writing)
        os.close(self._reading)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                break
            self._events.append(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._reading, 1 << 20)
            if not chunk:
                raise BrowserError("the browser has ended")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def events(self, method: str, session: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of one kind that a page has sent so far."""
        return [
            event["params"]
            for event in self._events
            if event.get("method") == method and event.get("sessionId") == session
        ]

    @contextlib.contextmanager
    def page(self, width: int = 1280, height: int = 860, phone: bool = False) -> Iterator[Page]:
        """Open a page that shares neither storage nor cache with others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        page.resize(width, height, phone)
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str):
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol on this tab."""
        return self._browser.call(method, self._session, **parameters)

    def go(self, address: str) -> None:
        """Open an address and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(BrowserError):  # a document that is being replaced
                if self.run(condition):
                    return
            time.sleep(0.05)
        raise AssertionError(f"did not come true: {condition}\n{self.faults()}")

    def text(self, selector: str) -> str:
        """Return the text that is seen of the first element that matches."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def center(self, selector: str) -> tuple[float, float]:
        """Scroll to an element and return the middle of it in the window."""
        return tuple(
            self.run(f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "center", behavior: "instant"}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()""")
        )

    def click(self, selector: str) -> None:
        """Click an element as a mouse does."""
        x, y = self.center(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector: str) -> None:
        """Move the mouse over an element."""
        x, y = self.center(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, text: str) -> None:
        """Type into the focused element."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key, such as "Tab", "Enter" or "ArrowRight"."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "Backspace": 8, " ": 32}
        arrows = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        code = (codes | arrows | {"End": 35, "Home": 36}).get(key, ord(key[0]))
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        text = {"Enter": "\r", "/": "/", " ": " "}.get(key)
        typed = {} if text is None else {"text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def upload(self, selector: str, *files: pathlib.Path) -> None:
        """Choose files in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Set the window's size; a phone has touch and two pixels a pixel."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme: str, reduced_motion: bool = False) -> None:
        """Set the user's preferences: "light" or "dark", and whether things may move."""
        motion = "reduce" if reduced_motion else "no-preference"
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def screenshot(self, path: pathlib.Path, full: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(answer["data"]))

    def faults(self) -> list[str]:
        """Return errors of the page so far: exceptions, console errors, blocked requests."""
        exceptions = self._browser.events("Runtime.exceptionThrown", self._session)
        entries = self._browser.events("Log.entryAdded", self._session)
        return [json.dumps(one["exceptionDetails"])[:500] for one in exceptions] + [
            f"{entry['entry']['text']} {entry['entry'].get('url', '')}"
            for entry in entries
            if entry["entry"]["level"] == "error"
        ]

    def requests(self) -> list[str]:
        """Return the addresses of all requests so far."""
        events = self._browser.events("Network.requestWillBeSent", self._session)
        return [event["request"]["url"] for event in events]

    def unnamed(self) -> list[dict[str, Any]]:
        """Return the accessibility nodes that people act on and that have no name."""
        roles = {"button", "link", "textbox", "searchbox", "checkbox", "slider", "spinbutton"}
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            node
            for node in nodes
            if not node["ignored"]
            and node["role"]["value"] in roles
            and not node.get("name", {}).get("value")
        ]
