"""The mini-program's login library: each test of Node's runner against the real service, with the sandbox behind it.

The tests themselves are `miniprogram/*.test.js`. What they want done to the service they ask of this process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from authsvc.encoding import base64url_decode
from tests.support.servers import until
from tests.support.service import APPID, ISSUER, SECRET, Running, Service, authsvc, free_port, service

HERE: Final = Path(__file__).parent / "miniprogram"
TESTS: Final = [
    (path.name, name)
    for path in sorted(HERE.glob("*.test.js"))
    for name in re.findall(r"^test\('((?:[^'\\]|\\.)+)'", path.read_text("utf-8"), flags=re.MULTILINE)
]


class World:
    """The service, at one address and with one key folder, however often it is started anew."""

    def __init__(self, folder: Path, wechat_url: str) -> None:
        self._folder = folder
        self._wechat_url = wechat_url
        self._port = free_port()
        self._running = ExitStack()
        self.service: Service | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        if self.service is None:
            it = service(self._folder, wechat_url=self._wechat_url, port=self._port, WECHAT_TIMEOUT="2")
            self.service = self._running.enter_context(it)

    def stop(self) -> None:
        self._running.close()
        self.service = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def revoke(self) -> None:
        """The key that signs."""
        assert self.service is not None
        it, token = self.service, self.service.token("somebody")
        self._command("keys", "revoke", json.loads(base64url_decode(token.split(".")[0]))["kid"], "--yes")
        until(lambda: it.check(token).get("reason") == "revoked", within_s=10, what="the service sees the revocation")

    def ban(self, openid: str) -> None:
        self._command("user", "ban", openid, "--reason", "a test")

    def unban(self, openid: str) -> None:
        self._command("user", "unban", openid)

    def _command(self, *args: str) -> None:
        done = authsvc(*args, cwd=self._folder, APPID=APPID, SECRET=SECRET, ISSUER=ISSUER)
        assert done.returncode == 0, done.stderr


class _Control(BaseHTTPRequestHandler):
    """`POST /stop`, `/ban` …: the methods of World, with the members of the body."""

    world: World

    def do_POST(self) -> None:
        members: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        try:
            getattr(self.world, self.path.strip("/"))(**members)
            status, said = 200, b"{}"
        except (AssertionError, OSError) as error:
            status, said = 500, json.dumps({"error": repr(error)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, wechat: Running) -> Iterator[World]:
    it = World(tmp_path_factory.mktemp("miniprogram"), wechat.url)
    try:
        yield it
    finally:
        it.stop()


@pytest.fixture(scope="module")
def control(world: World) -> Iterator[str]:
    handler = type("Control", (_Control,), {"world": world})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("file", "name"), TESTS, ids=[name.replace(" ", "_") for _, name in TESTS])
def test_on_a_phone(node: str, world: World, wechat: Running, control: str, file: str, name: str) -> None:
    world.start()
    environment = {**os.environ, "SERVICE": world.url, "SANDBOX": wechat.url, "CONTROL": control, "APPID": APPID}
    # Node's runner marks its children by it: inside of one there is no other.
    environment.pop("NODE_TEST_CONTEXT", None)
    pattern = "^" + re.sub(r"([\\^$.*+?()[\]{}|/])", r"\\\1", name.replace("\\'", "'")) + "$"
    command = [node, "--test", "--test-reporter=spec", f"--test-name-pattern={pattern}", str(HERE / file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ℹ pass 1$", done.stdout, flags=re.MULTILINE), done.stdout


def test_no_test_on_a_phone_is_left_out() -> None:
    text = "\n".join(path.read_text("utf-8") for path in HERE.glob("*.test.js"))
    written = len(re.findall(r"^\s*test\(", text, flags=re.MULTILINE))
    assert written == len(TESTS) == len(set(TESTS)) > 0
