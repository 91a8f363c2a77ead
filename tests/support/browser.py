"""A headless Chromium, driven over its DevTools protocol: what a page asks for, complains of and shows.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

_ROOT: Final = Path(__file__).parents[2]
_FETCHED: Final = _ROOT / ".venv" / "peers"
_PROGRAMS: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_WITHIN_S: Final = 30


def find_browser() -> str | None:
    """One of the system, or the one that support/peers.sh has fetched."""
    found = [path for name in _PROGRAMS if (path := shutil.which(name))]
    fetched = _FETCHED / "usr" / "lib" / "chromium" / "chromium-headless-shell"
    return next(iter(found), str(fetched) if fetched.exists() else None)


@dataclass
class Page:
    """A tab. What it asked for and what its console said gathers while it loads."""

    connection: ClientConnection
    session: str = ""
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    loaded: int = 0
    _number: int = 0

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.connection.send(json.dumps(message))
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        """Returns when it has loaded."""
        before = self.loaded
        self.send("Page.navigate", url=url)
        while self.loaded == before:
            self._receive()

    def look(self, *, width: int, height: int, dark: bool) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, top: int = 0) -> None:
        """From `top` pixels on."""
        self.ask(f"window.scrollTo(0, {top})")
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.connection.recv(timeout=_WITHIN_S))
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Page.loadEventFired":
                self.loaded += 1
        return message


@contextlib.contextmanager
def browser_page(program: str, folder: Path) -> Iterator[Page]:
    """A tab of a new browser, with a profile of its own in `folder`; no name can be looked up in it."""
    profile = folder / "profile"
    command = [
        program,
        "--headless",
        "--no-sandbox",  # root has none, and the page is our own
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    libraries = sorted({str(path.parent) for path in _FETCHED.glob("usr/lib/*/*.so*")})
    libraries += map(str, _FETCHED.glob("usr/lib/*/pulseaudio"))
    environment = dict(os.environ)
    if program.startswith(str(_FETCHED)):
        environment["LD_LIBRARY_PATH"] = ":".join(libraries)
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        with connect(_address(profile, process, folder / "browser.log"), max_size=None) as connection:
            page = Page(connection)
            target = page.send("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                page.send(f"{domain}.enable")
            yield page
    finally:
        # With its helpers, which are processes of their own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(profile: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    written = profile / "DevToolsActivePort"
    give_up_at = time.monotonic() + _WITHIN_S
    while time.monotonic() < give_up_at and process.poll() is None:
        if written.exists() and len(lines := written.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise AssertionError(log.read_text(errors="replace"))
