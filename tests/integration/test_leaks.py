"""No secret leaves: every way the exchange can fail is played, and everything that came of it is searched."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import logging
import secrets
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from flask.testing import FlaskClient

from authsvc.clock import SystemClock
from authsvc.errors import AuthsvcError
from authsvc.http.app import create_app
from authsvc.keyset import Lifecycle
from authsvc.sandbox.faults import FAULTS
from authsvc.sandbox.server import SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat
from authsvc.settings import load_settings
from authsvc.store import open_store
from authsvc.telemetry import configure_logging
from authsvc.wechat import App, WeChatClient, new_session
from authsvc.wiring import build_services, init_keys, open_keys, prepare
from tests.support.service import free_port

APPID = "wx1234567890abcdef"
SECRET = "APPSECRETMARKER0123456789abcdef"


@dataclass
class Everything:
    """The service in this process, with all that it says and writes."""

    client: FlaskClient
    wechat: SandboxServer
    folder: Path
    log: io.StringIO
    codes: list[str] = field(default_factory=list)
    session_keys: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def mint(self, fault: str | None = None) -> str:
        delay_s = FAULTS[fault].default_delay_s and 0.05 if fault else None
        code = self.wechat.model.mint_code(APPID, "user-1", fault, delay_s=delay_s, new_session_key=True)
        self.codes.append(code)
        # Now: the sandbox itself forgets all but the last two.
        self.session_keys |= set(self.wechat.model.session_keys(APPID, self.wechat.model.openid(APPID, "user-1")))
        return code

    def log_in(self, code: str) -> int:
        reply = self.client.post("/login", json={"code": code})
        self.said.append(str(reply.headers))
        if reply.status_code != 200:
            self.said.append(reply.text)
        return reply.status_code

    def markers(self) -> set[str]:
        openid = self.wechat.model.openid(APPID, "user-1")
        return {SECRET, openid, *self.codes, *self.session_keys}


@contextlib.contextmanager
def _everything(folder: Path, wechat: SandboxServer, url: str) -> Iterator[Everything]:
    environment = {
        "AUTHSVC_APPID": APPID,
        "AUTHSVC_SECRET": SECRET,
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_WECHAT_URL": url,
        "AUTHSVC_WECHAT_TIMEOUT": "1",
        "AUTHSVC_KEYS": str(folder / "keys"),
        "AUTHSVC_STORE": f"sqlite:///{folder}/authsvc.db",
    }
    settings = load_settings(environment, dotenv=None, cores=1)
    clock = SystemClock()
    log = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging(log)
    for name in (
        "",
        "urllib3",
        "urllib3.connectionpool",
        "requests",
        "sqlalchemy.engine",
        "sqlalchemy.pool",
        "alembic",
    ):
        logging.getLogger(name).setLevel(logging.DEBUG)
    init_keys(settings.keys, Lifecycle(), clock=clock)
    prepare(settings, clock=clock)
    keyring = open_keys(settings.keys).load(now=clock.now())
    store = open_store(settings.store_url)
    try:
        services = build_services(
            settings, clock=clock, keys=lambda: keyring, keys_are_current=lambda: True, store=store
        )
        app = create_app(services)
        yield Everything(app.test_client(), wechat, folder, log)
    finally:
        store.close()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        for name in (
            "urllib3",
            "urllib3.connectionpool",
            "requests",
            "sqlalchemy.engine",
            "sqlalchemy.pool",
            "alembic",
        ):
            logging.getLogger(name).setLevel(logging.NOTSET)
        structlog.reset_defaults()


@pytest.fixture
def wechat() -> Iterator[SandboxServer]:
    model = SandboxWeChat({APPID: SECRET}, clock=SystemClock(), random_bytes=secrets.token_bytes)
    with SandboxServer(model) as server:
        server.start()
        yield server


def _spellings(marker: str) -> set[bytes]:
    text = marker.encode()
    found = {text, quote(marker, safe="").encode(), base64.b64encode(text), text.hex().encode()}
    with contextlib.suppress(ValueError):
        raw = base64.b64decode(marker, validate=True)
        found |= {raw, raw.hex().encode()} if len(raw) == 16 else set()
    return found


def _where(markers: set[str], haystacks: dict[str, bytes]) -> list[str]:
    return [name for name, text in haystacks.items() for m in markers if any(s in text for s in _spellings(m))]


def test_whatever_fails_no_secret_is_in_a_log_a_reply_a_traceback_or_a_file(
    tmp_path: Path, wechat: SandboxServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a developer turns on at three in the morning.
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    with _everything(tmp_path, wechat, wechat.url) as it:
        assert it.log_in(it.mint()) == 200
        for name in FAULTS:
            it.log_in(it.mint(name))
            it.said += _tracebacks(it, name)
        for bad in ("x&secret=1", "the code is a mock one"):
            it.log_in(it.codes[0] + bad)
        it.client.get(f"/checklogin/{it.codes[0]}")
        it.client.get(f"/{it.codes[0]}?token={it.codes[0]}")
        assert it.log_in(it.mint()) == 200
        console = capfd.readouterr()
        files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        texts = {"log": it.log.getvalue(), "replies": "\n".join(it.said), "out": console.out, "err": console.err}
        # What is searched is really there.
        assert "code_used" in texts["log"]
        assert "jscode2session" in texts["log"], "DEBUG is on"
        assert "Traceback" in texts["replies"]
        assert any(name.endswith("-wal") for name in files)
        openid = it.wechat.model.openid(APPID, "user-1")
        assert _where({openid}, files), "the store does hold the openid, so the search does find things"
        secret_markers = it.markers()
        assert len(secret_markers) > 2 * len(FAULTS), "a code and a session_key for each of them"
        assert _where(secret_markers, {name: text.encode() for name, text in texts.items()}) == []
        assert _where(secret_markers - {openid}, files) == []


def _tracebacks(it: Everything, fault: str) -> list[str]:
    client = WeChatClient(new_session(connections=1), url=it.wechat.url, timeout_s=0.3)
    try:
        client.code2session(App(APPID, (SECRET,)), it.mint(fault))
    except AuthsvcError as error:
        return ["".join(traceback.format_exception(error)), repr(error), str(error.__dict__)]
    return []


def test_with_nobody_listening_no_secret_is_in_a_log_or_a_reply(tmp_path: Path, wechat: SandboxServer) -> None:
    with _everything(tmp_path, wechat, f"http://127.0.0.1:{free_port()}") as it:
        assert it.log_in(it.mint()) == 504
        assert "wechat_timeout" in it.log.getvalue()
        texts = {"log": it.log.getvalue().encode(), "replies": "\n".join(it.said).encode()}
        assert _where(it.markers(), texts) == []


def test_an_unforeseen_exception_is_logged_by_type_and_place_and_not_by_message(
    tmp_path: Path, wechat: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _everything(tmp_path, wechat, wechat.url) as it:

        def broken(*_args: object, **_kwargs: object) -> None:
            raise RuntimeError(f"could not seal with {SECRET}")

        monkeypatch.setattr("authsvc.login.seal", broken)
        assert it.log_in(it.mint()) == 500
        assert "RuntimeError" in it.log.getvalue()
        assert "login.py" in it.log.getvalue()
        assert SECRET not in it.log.getvalue() + "".join(it.said)
