"""A headless Chromium, driven over a pipe by the protocol of its developer tools."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # the tests run as root, and open pages of their own only
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_PATIENCE = 30.0  # seconds for an answer or a condition: a loaded machine is slow
_HIGH = 64  # descriptors of the pipes stand above those that the program takes them by
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}


def program() -> str | None:
    """The browser of this machine, None where there is none."""
    return next((name for name in _PROGRAMS if shutil.which(name)), None)


MISSING = "needs a headless Chromium: apt-get install chromium-headless-shell"


class BrowserError(Exception):
    """The browser, or a script in the page, failed."""


class Browser:
    """A browser with one page. It remembers what was requested, and what went wrong (`complaints`)."""

    def __init__(self, zone: str = "Europe/Berlin") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._zone = zone
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self._answers: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        name = program()
        if name is None:
            raise BrowserError(MISSING)
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            (told, self._writer), (self._reader, tell) = _pipe(), _pipe()
            for end in (self._writer, self._reader):
                stack.callback(os.close, end)
            command = [name, *_OPTIONS, f"--user-data-dir={self._folder}", "about:blank"]
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{told} 4>&{tell}', "bash", *command],
                pass_fds=(told, tell),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os.close(told)
            os.close(tell)
            stack.callback(self._end)
            self._attach()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, url: str, until: str = "document.readyState === 'complete'") -> None:
        """Go there, and wait until the expression holds."""
        self.call("Page.navigate", url=url)
        self.wait(until)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, a promise's too."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the expression is true; BrowserError when it does not come true."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(BrowserError):  # the page changes under it
                if self.evaluate(f"Boolean({condition})"):
                    return
            time.sleep(0.05)
        raise BrowserError(f"does not come true: {condition}; complaints: {self.complaints}")

    def texts(self, selector: str) -> list[str]:
        """The text, as it is shown, of all elements that match; spaces that do not break are spaces."""
        found = self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")
        return [text.replace("\u00a0", " ") for text in found]

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that matches."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center'}})")
        middle = "({x, y, width, height}) => [x + width / 2, y + height / 2]"
        x, y = self.evaluate(f"({middle})({found}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """As if typed, where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """A key without a letter."""
        told = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "text": "\r" if key == "Enter" else ""}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **told)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window, and the colours that the viewer likes."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE
        while self._count not in self._answers:
            self._receive(method, end - time.monotonic())
        answer = self._answers.pop(self._count)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    # How it is done.

    def _attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setTimezoneOverride", timezoneId=self._zone)

    def _receive(self, method: str, within: float) -> None:
        if within <= 0 or not select.select([self._reader], [], [], within)[0]:
            raise BrowserError(f"{method}: no answer")
        part = os.read(self._reader, 1 << 20)
        if not part:
            raise BrowserError(f"{method}: the browser is gone")
        *messages, self._buffer = (self._buffer + part).split(b"\0")
        for message in messages:
            self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, told = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("warning", "error"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _HIGH) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
