"""No secret leaves: every way the exchange can fail is played, and everything that came of it is searched."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import io
import logging
import os
import secrets
import subprocess
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from flask.testing import FlaskClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from authsvc.clock import SystemClock
from authsvc.errors import AuthsvcError
from authsvc.http.app import create_app
from authsvc.http.metrics import Metrics
from authsvc.keeper import KeyKeeper, Rotation
from authsvc.keyset import Lifecycle
from authsvc.otel import OtelSpans
from authsvc.sandbox.faults import FAULTS
from authsvc.sandbox.server import SandboxServer
from authsvc.sandbox.wechat import SandboxWeChat
from authsvc.settings import load_settings
from authsvc.store import open_store
from authsvc.telemetry import configure_logging
from authsvc.wechat import App, WeChatClient, new_session
from authsvc.wiring import build_services, init_keys, open_keys, prepare
from tests.support.commands import audit_lines
from tests.support.service import authsvc, free_port

APPID = "wx1234567890abcdef"
SECRET = "APPSECRETMARKER0123456789abcdef"
SERVICE_TOKEN = "SERVICETOKENMARKER0123456789"
OPS_TOKEN = "OPSTOKENMARKER0123456789"
PASSPHRASE = "PASSPHRASEMARKER0123456789"

# What is asked of whom behind each route.
CALLS = {
    "stable_token": "check",
    "checksession": "check",
    "resetusersessionkey": "reset",
    "getuserphonenumber": "phone",
}


@dataclass
class Everything:
    """The service in this process, with all that it says and writes."""

    client: FlaskClient
    wechat: SandboxServer
    folder: Path
    log: io.StringIO
    environment: dict[str, str]
    keeper: KeyKeeper
    spans: InMemorySpanExporter
    token: str = ""  # of the last login
    codes: list[str] = field(default_factory=list)
    session_keys: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)  # ours, and WeChat's access tokens
    numbers: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def mint(self, fault: str | None = None) -> str:
        delay_s = FAULTS[fault].default_delay_s and 0.05 if fault else None
        code = self.wechat.model.mint_code(APPID, "user-1", fault, delay_s=delay_s, new_session_key=True)
        self.codes.append(code)
        self._note_session_keys()
        return code

    def log_in(self, code: str) -> int:
        reply = self.client.post("/login", json={"code": code})
        self.said.append(str(reply.headers))
        if reply.status_code != 200:
            self.said.append(reply.text)
        else:
            self.tokens.add(reply.get_json()["token"])
            self.token = reply.get_json()["token"]
        return reply.status_code

    def ask(self, route: str, body: object = None, **headers: str) -> int:
        """A request for the user who logged in last."""
        headers = {"Authorization": f"Bearer {self.token}", "X-Service-Token": SERVICE_TOKEN} | headers
        reply = self.client.post(f"/session/{route}", json=body, headers=headers)
        # A number is what `phone` is asked for.
        self.said += [str(reply.headers), "" if route == "phone" and reply.status_code == 200 else reply.text]
        access_token = self.wechat.model.stable_token(APPID, SECRET, "client_credential").get("access_token")
        self.tokens |= {str(access_token)} if access_token else set()
        self._note_session_keys()
        return reply.status_code

    def look(self) -> dict[str, str]:
        """What operators and readers are shown."""
        headers = {"Authorization": f"Bearer {OPS_TOKEN}"}
        replies = {path: self.client.get(path, headers=headers) for path in ("/metrics", "/docs", "/openapi.json")}
        assert {reply.status_code for reply in replies.values()} == {200}
        self.said.append(self.client.get("/metrics", headers={"Authorization": f"Bearer {OPS_TOKEN}x"}).text)
        return {path: reply.text for path, reply in replies.items()}

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        settings = {name.removeprefix("AUTHSVC_"): value for name, value in self.environment.items()}
        return authsvc(*args, cwd=self.folder, **settings)

    def phone_body(self) -> dict[str, str]:
        phone = f"1{secrets.randbelow(10**10):010}"
        code = self.wechat.model.mint_phone_code(APPID, "user-1", phone)
        self.codes.append(code)
        self.numbers.add(phone)
        return {"code": code}

    def _note_session_keys(self) -> None:
        # Now: the sandbox itself forgets all but the last two.
        self.session_keys |= set(self.wechat.model.session_keys(APPID, self.wechat.model.openid(APPID, "user-1")))

    def markers(self) -> set[str]:
        openid = self.wechat.model.openid(APPID, "user-1")
        # Whoever has the signature of nothing can reset the key.
        signatures = {hmac.new(key.encode(), b"", hashlib.sha256).hexdigest() for key in self.session_keys}
        keys = {base64.b64encode(key).decode() for key in self.keeper.current().secret_keys.values()}
        found = {SECRET, SERVICE_TOKEN, OPS_TOKEN, PASSPHRASE, openid, *self.codes, *self.session_keys, *self.tokens}
        return found | self.numbers | keys | signatures


@contextlib.contextmanager
def _everything(folder: Path, wechat: SandboxServer, url: str) -> Iterator[Everything]:
    environment = {
        "AUTHSVC_APPID": APPID,
        "AUTHSVC_SECRET": SECRET,
        "AUTHSVC_ISSUER": "https://auth.example.com",
        "AUTHSVC_WECHAT_URL": url,
        "AUTHSVC_WECHAT_TIMEOUT": "1",
        "AUTHSVC_SERVICE_TOKENS": SERVICE_TOKEN,
        "AUTHSVC_OPS_TOKEN": OPS_TOKEN,
        "AUTHSVC_KEYS": str(folder / "keys"),
        "AUTHSVC_KEYS_PASSPHRASE": PASSPHRASE,
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
    key_folder = open_keys(settings.keys)
    keyring = key_folder.load(now=clock.now())
    store = open_store(settings.store_url)
    rotation = Rotation(0, None, os.urandom)
    keeper = KeyKeeper(key_folder, keyring, clock=clock, rotation=rotation, remember=store.note_revoked_keys)
    seen = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(seen))
    try:
        metrics = Metrics(None, keys=lambda: keyring, rotate_every_s=1, clock=clock)
        services = build_services(
            settings,
            clock=clock,
            keys=lambda: keyring,
            keys_are_current=lambda: True,
            store=metrics.timed(store),
            metrics=metrics,
            spans=OtelSpans(provider),
        )
        app = create_app(services)
        yield Everything(app.test_client(), wechat, folder, log, environment, keeper, seen)
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
        for name, fault in FAULTS.items():
            if "jscode2session" in fault.endpoints:
                it.log_in(it.mint(name))
                it.said += _tracebacks(it, name)
                # An answer in between, of a user who may still log in a hundred times: this is no outage.
                assert it.log_in(it.wechat.model.mint_code(APPID, "user-2")) == 200
        _play_the_other_calls(it)
        for bad in ("x&secret=1", "the code is a mock one"):
            it.log_in(it.codes[0] + bad)
        it.client.get(f"/checklogin/{it.codes[0]}")
        it.client.get(f"/{it.codes[0]}?token={it.codes[0]}")
        assert it.log_in(it.mint()) == 200
        console = capfd.readouterr()
        files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        shown = it.look()
        texts = {"log": it.log.getvalue(), "replies": "\n".join(it.said), "out": console.out, "err": console.err}
        # What is searched is really there.
        assert "code_used" in texts["log"]
        assert "jscode2session" in texts["log"], "DEBUG is on"
        assert "Traceback" in texts["replies"]
        assert any(name.endswith("-wal") for name in files)
        assert 'authsvc_logins_total{code="code_used",wechat_errcode="40163"}' in shown["/metrics"]
        texts |= shown
        texts["spans"] = "\n".join(span.to_json() for span in it.spans.get_finished_spans())
        for said in ("GET /sns/jscode2session", "POST /session/phone", "wechat_timeout", "bad_request"):
            assert f'"{said}"' in texts["spans"]
        openid = it.wechat.model.openid(APPID, "user-1")
        assert _where({openid}, files), "the store does hold the openid, so the search does find things"
        secret_markers = it.markers()
        assert len(secret_markers) > 2 * len(FAULTS), "a code and a session_key for each of them"
        assert _where(secret_markers, {name: text.encode() for name, text in texts.items()}) == []
        assert _where(secret_markers - {openid}, files) == []


def _play_the_other_calls(it: Everything) -> None:
    bodies = {"check": lambda: None, "reset": lambda: None, "phone": it.phone_body}
    assert it.log_in(it.mint()) == 200
    for endpoint, route in CALLS.items():
        for name, fault in FAULTS.items():
            if endpoint not in fault.endpoints:
                continue
            if endpoint == "stable_token":
                it.wechat.fault_plan("checksession").set("access_token_expired")  # so that another one is wanted
            it.wechat.fault_plan(endpoint).set(name, delay_s=fault.default_delay_s and 0.05)
            it.ask(route, bodies[route]())
            it.wechat.fault_plan(endpoint).clear()
            if route == "reset" and (fault.consumes_code or name == "signature_invalid"):
                # WeChat has another key by now, and a user may log in a hundred times a minute.
                assert it.log_in(it.mint()) == 200
            assert it.ask(route, bodies[route]()) == 200
    data = it.wechat.model.open_data(APPID, "user-1")
    assert it.ask("verify", {"rawData": data["rawData"], "signature": data["signature"]}) == 200
    assert it.ask("sign", {"body": "{}"}) == 200
    assert it.ask("decrypt", {"encryptedData": data["encryptedData"], "iv": "AAAA"}) == 400
    assert it.ask("check", **{"X-Service-Token": SERVICE_TOKEN + "x"}) == 403
    assert it.ask("check", Authorization=f"Bearer {it.token}x") == 401


def test_nothing_that_an_operator_is_shown_or_leaves_in_the_audit_log_is_secret(
    tmp_path: Path, wechat: SandboxServer
) -> None:
    with _everything(tmp_path, wechat, wechat.url) as it:
        assert it.log_in(it.mint()) == 200
        assert it.ask("check") == 200
        texts = _play_the_operator(it) | {"log": it.log.getvalue()}
        assert _where(it.markers(), {name: text.encode() for name, text in texts.items()}) == []


def _play_the_operator(it: Everything) -> dict[str, str]:
    """What commands show and log; of those that are given an openid, which they repeat, the log alone."""
    openid = it.wechat.model.openid(APPID, "user-1")
    old = it.keeper.current().signing_key(now=SystemClock().now()).kid
    acts = [
        *(("user", act, openid, "--reason", "spam") for act in ("ban", "unban", "export")),
        ("user", "forget", openid, "--yes"),
        *(("keys", command) for command in ("rotate", "rotate-store")),
        ("keys", "revoke", old, "--yes"),
    ]
    logs = {" ".join(act[:2]): it.command(*act).stderr for act in acts}
    assert [len(audit_lines(log)) for log in logs.values()] == [1] * len(acts)
    it.keeper.look()
    (line,) = audit_lines(it.log.getvalue())
    assert (line["event"], f"revoked {old}: compromised" in line["steps"]) == ("keys_changed", True)
    shows = [("user", "audit"), ("user", "audit", "--json"), ("user", "audit", openid)]
    shows += [(*command, *more) for command in (("doctor",), ("keys", "status")) for more in ((), ("--json",))]
    shows += [("store", "status"), ("config",)]
    shown = {}
    for command in shows:
        done = it.command(*command)
        shown[" ".join(command).replace(openid, "OPENID")] = done.stdout + done.stderr
    assert "forget" in shown["user audit OPENID"]
    assert '"check": "wechat"' in shown["doctor --json"].lower()
    access_token = it.wechat.model.stable_token(APPID, SECRET, "client_credential")["access_token"]
    it.tokens.add(str(access_token))  # which doctor was given
    return logs | shown


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

        monkeypatch.setattr("authsvc.sessionkeys.seal", broken)
        assert it.log_in(it.mint()) == 500
        assert "RuntimeError" in it.log.getvalue()
        assert "sessionkeys.py" in it.log.getvalue()
        assert SECRET not in it.log.getvalue() + "".join(it.said)
