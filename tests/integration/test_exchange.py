"""The exchange with WeChat, played in full: the real service asks the real simulator over real HTTP."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from authsvc.errors import WeChatBadReply, WeChatTimeout
from authsvc.sandbox.faults import FAULTS
from authsvc.wechat import App, WeChatClient, new_session
from tests.support.service import Running, Service, free_port, service

# Fault → status and code of the reply, and the calls that WeChat sees.
OK = (200, "", 1)
BAD = (502, "wechat_bad_reply", 1)
CONFIG = (502, "wechat_config", 1)
SILENT = (504, "wechat_timeout", 1)
EXPECTED: dict[str, tuple[int, str, int]] = {
    "system_busy": (503, "wechat_busy", 2),
    "invalid_code": (401, "code_invalid", 1),
    "errcode_as_text": (401, "code_invalid", 1),
    "code_used": (401, "code_used", 1),
    "code_blocked": (403, "user_blocked", 1),
    "rate_limited": (429, "rate_limited", 1),
    "quota_exceeded": (503, "wechat_quota", 1),
    **dict.fromkeys(("invalid_appid", "invalid_appsecret", "ip_not_allowed", "appsecret_frozen"), CONFIG),
    **dict.fromkeys(("appid_missing", "appsecret_missing", "code_missing"), CONFIG),
    "unknown_errcode": (502, "wechat_error", 1),
    **dict.fromkeys(("bad_gateway_page", "html_200", "http_500", "redirect", "empty", "not_json", "deep_json"), BAD),
    **dict.fromkeys(("json_null", "json_list", "json_string", "duplicate_members", "not_utf8", "utf16", "bom"), BAD),
    **dict.fromkeys(("huge", "gzip_bomb", "truncated"), BAD),
    **dict.fromkeys(("no_openid", "empty_openid", "number_openid", "openid_with_slash", "long_openid"), BAD),
    **dict.fromkeys(("no_session_key", "empty_session_key", "short_session_key", "unpadded_session_key"), BAD),
    "bad_session_key": BAD,
    **dict.fromkeys(("gzip", "set_cookie", "control_characters", "extra_members"), OK),
    **dict.fromkeys(("reset", "close", "hang", "drip_body", "drip_headers", "endless_continue", "delay"), SILENT),
}

WECHAT_TIMEOUT_S = 1


def _calls(wechat: Running) -> int:
    count: int = requests.get(f"{wechat.url}/sandbox/calls", timeout=10).json()["jscode2session"]
    return count


def test_every_fault_of_the_simulator_is_expected_below() -> None:
    assert EXPECTED.keys() == {name for name, fault in FAULTS.items() if "jscode2session" in fault.endpoints}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fault_ends_in_its_code_in_time_and_without_a_token(
    shared_service: Service, wechat: Running, name: str
) -> None:
    status, code, calls = EXPECTED[name]
    options = {"times": 2 if name == "system_busy" else 1} | ({"delay_s": 2} if name == "delay" else {})
    before = _calls(wechat)
    login_code = shared_service.mint(f"user-{name}")
    shared_service.fault(name, **options)
    started_at = time.monotonic()
    reply = shared_service.log_in(login_code)
    took_s = time.monotonic() - started_at
    assert (reply.status_code, reply.json().get("code", "")) == (status, code)
    assert ("token" in reply.json()) is (status == 200)
    assert _calls(wechat) - before == calls
    assert took_s < 3 * WECHAT_TIMEOUT_S + 2
    if status in (429, 503):
        assert int(reply.headers["Retry-After"]) > 0
    requests.post(f"{wechat.url}/sandbox/fault", json={"name": None}, timeout=10)
    assert shared_service.log_in().status_code == 200, "the next login goes on as if nothing was"


def test_busy_once_is_not_noticed(shared_service: Service, wechat: Running) -> None:
    before = _calls(wechat)
    shared_service.fault("system_busy", times=1)
    assert shared_service.log_in().status_code == 200
    assert _calls(wechat) - before == 2


def test_a_used_code_and_an_unknown_one_are_told_apart(shared_service: Service) -> None:
    code = shared_service.mint()
    assert shared_service.log_in(code).status_code == 200
    assert shared_service.log_in(code).json()["code"] == "code_used"
    assert shared_service.log_in("never-minted").json()["code"] == "code_invalid"


def test_a_wrong_secret_is_the_operators_and_is_said_so(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, SECRET="wrong") as it:
        reply = it.log_in()
        assert (reply.status_code, reply.json()["code"], reply.json()["wechat_errcode"]) == (
            502,
            "wechat_config",
            40125,
        )
        assert it.session.get(f"{it.url}/readyz", timeout=10).json()["wechat"] == "wechat_config"
        assert "does not accept the app secret" in it.output()


def test_with_nobody_listening_it_is_a_timeout_at_once(tmp_path: Path) -> None:
    with service(tmp_path, wechat_url=f"http://127.0.0.1:{free_port()}") as it:
        started_at = time.monotonic()
        reply = it.log_in("any-code")
        assert (reply.status_code, reply.json()["code"]) == (504, "wechat_timeout")
        assert time.monotonic() - started_at < 5


def test_the_fallback_host_answers_when_the_first_cannot_be_reached(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=f"http://127.0.0.1:{free_port()}", WECHAT_FALLBACK_URL=wechat.url) as it:
        it.sandbox_url = wechat.url
        assert it.log_in().status_code == 200


def test_logins_beyond_their_places_are_refused_at_once_and_checklogin_goes_on(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, THREADS="8", WECHAT_IN_FLIGHT="4", WECHAT_TIMEOUT="3") as it:
        token = it.token()
        codes = [it.mint(fault="hang") for _ in range(4)]
        before = _calls(wechat)
        replies: list[requests.Response] = []
        threads = [
            threading.Thread(
                target=lambda c=code: replies.append(requests.post(f"{it.url}/login", json={"code": c}, timeout=30))
            )
            for code in codes
        ]
        for thread in threads:
            thread.start()
        give_up_at = time.monotonic() + 10
        while _calls(wechat) < before + 4:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        refused = it.log_in("one-too-many")
        assert refused.json()["code"] == "overloaded"
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert it.check(token)["is_login"] is True
        for thread in threads:
            thread.join()
        assert {reply.json()["code"] for reply in replies} == {"wechat_timeout"}
        assert it.log_in().status_code == 200


def test_of_200_logins_that_hang_48_wait_the_rest_are_told_at_once_and_others_notice_nothing(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, WECHAT_TIMEOUT="3") as it:
        token = it.token()
        codes = [it.mint(f"hanging-{n}", fault="hang") for n in range(200)]
        before = _calls(wechat)
        with ThreadPoolExecutor(200) as pool:
            logins = [pool.submit(_log_in_from, "127.0.0.1", it, code) for code in codes]
            give_up_at = time.monotonic() + 20
            while _calls(wechat) < before + 48:
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            answers = 0
            while not all(login.done() for login in logins):
                assert it.check(token)["is_login"] is True
                assert it.session.get(f"{it.url}/healthz", timeout=10).status_code == 200
                answers += 1
            outcomes = [login.result() for login in logins]
        assert answers > 5, "they were answered while the others hung"
        assert _calls(wechat) - before == 48
        assert outcomes.count((504, "wechat_timeout")) == 48
        assert outcomes.count((503, "overloaded")) == 152
        assert it.log_in().status_code == 200, "it recovers by itself"


def test_when_wechat_has_been_down_for_a_while_nobody_waits_and_it_comes_back_by_itself(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, WECHAT_TIMEOUT="1") as it:
        it.fault("hang", times=1_000)
        give_up_at = time.monotonic() + 30
        while (reply := it.log_in()).json()["code"] != "wechat_busy":
            assert reply.json()["code"] == "wechat_timeout"
            assert time.monotonic() < give_up_at
        asked = _calls(wechat)
        codes = [it.log_in().json()["code"] for _ in range(5)]
        assert codes == ["wechat_busy"] * 5
        assert _calls(wechat) == asked
        assert reply.status_code == 503
        assert int(reply.headers["Retry-After"]) > 0
        it.fault(None)
        while it.log_in().status_code != 200:
            assert time.monotonic() < give_up_at
            time.sleep(0.1)


# ---- the same code twice ----


def _log_in_from(address: str, it: Service, code: str, **headers: str) -> tuple[int, str]:
    """Status, and the token or the error's code, of a login from an address of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", int(it.url.rsplit(":", 1)[1]), 30, source_address=(address, 0))
    body = json.dumps({"code": code})
    connection.request("POST", "/login", body, {"Content-Type": "application/json", **headers})
    reply = connection.getresponse()
    answer = json.loads(reply.read())
    connection.close()
    return reply.status, answer.get("token") or answer["code"]


def _at_once(it: Service, wechat: Running, first: Callable[[str], Any], second: Callable[[str], Any]) -> list[Any]:
    """The second request comes while WeChat is thinking about the first."""
    code = it.mint("twice", fault="delay", delay_s=0.7)
    before = _calls(wechat)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(first, code)]
        while _calls(wechat) == before:
            pass
        answers.append(pool.submit(second, code))
        found = [answer.result() for answer in answers]
    assert _calls(wechat) - before == 1
    return found


def test_a_double_tap_is_exchanged_once_and_both_have_the_one_token(shared_service: Service, wechat: Running) -> None:
    it = shared_service
    first, second = _at_once(
        it, wechat, lambda code: _log_in_from("127.0.0.1", it, code), lambda code: _log_in_from("127.0.0.1", it, code)
    )
    assert first == second
    assert first[0] == 200
    assert it.check(first[1])["is_login"] is True


def test_the_same_code_from_another_address_is_refused_at_once(shared_service: Service, wechat: Running) -> None:
    it = shared_service
    first, second = _at_once(
        it, wechat, lambda code: _log_in_from("127.0.0.1", it, code), lambda code: _log_in_from("127.0.0.2", it, code)
    )
    assert first[0] == 200
    assert second == (401, "code_used")


@pytest.mark.parametrize(
    ("forwarded", "joins"),
    [("198.51.100.7", True), ("203.0.113.9, 198.51.100.7", True), ("198.51.100.7, 203.0.113.9", False), ("", False)],
)
def test_behind_a_proxy_the_address_that_the_proxy_saw_counts(
    proxied: Service, wechat: Running, forwarded: str, joins: bool
) -> None:
    def from_proxy(address: str) -> Callable[[str], Any]:
        return lambda code: _log_in_from("127.0.0.1", proxied, code, **{"X-Forwarded-For": address})

    first, second = _at_once(proxied, wechat, from_proxy("198.51.100.7"), from_proxy(forwarded))
    assert first[0] == 200
    assert (second == first) is joins


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory, wechat: Running) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("proxied"), wechat_url=wechat.url, TRUSTED_PROXIES="1") as it:
        yield it


# ---- TLS, which the simulator does not speak ----


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", str(path), "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


class _Upstream:
    """Listens on loopback and plays its part to every connection, each in a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._play, args=(peer,), daemon=True).start()

    def _play(self, raw: socket.socket) -> None:
        raise AssertionError("each upstream has a part of its own")


class _TLSServer(_Upstream):
    """Plays one script to every connection."""

    def __init__(self, certificate: Path | None, script: bytes, *, drips: bytes = b"", breaks: bool = False) -> None:
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if self._tls and certificate:
            self._tls.load_cert_chain(certificate)
        self._script = script
        self._drips = drips
        self._breaks = breaks
        super().__init__()

    def _play(self, raw: socket.socket) -> None:
        wrap = functools.partial(self._tls.wrap_socket, server_side=True) if self._tls else contextlib.nullcontext
        with contextlib.suppress(OSError), raw, wrap(raw) as peer:
            while peer.recv(65_536):
                if self._breaks:
                    socket.socket.sendall(peer, b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that is none
                    continue
                peer.sendall(self._script)
                for byte in self._drips:
                    time.sleep(0.05)
                    peer.sendall(bytes([byte]))


def _client(port: int, trusted: Path | None, *, timeout_s: float = 0.5) -> WeChatClient:
    tls = ssl.create_default_context(cafile=trusted) if trusted else ssl.create_default_context()
    return WeChatClient(new_session(connections=4, tls=tls), url=f"https://localhost:{port}", timeout_s=timeout_s)


GOOD = b'{"openid": "o1", "session_key": "tiihtNczf5v6AKRyjwEUhQ=="}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
APP = App("wx1", ("SECRETMARKER",))


def test_over_tls_one_connection_serves_many_logins(certificate: Path) -> None:
    server = _TLSServer(certificate, ANSWER)
    client = _client(server.port, certificate)
    assert [client.code2session(APP, f"code{i}").openid for i in range(5)] == ["o1"] * 5
    assert server.connections == 1
    server.close()


def test_a_certificate_that_nobody_vouches_for_gets_no_secret(certificate: Path) -> None:
    server = _TLSServer(certificate, ANSWER)
    with pytest.raises(WeChatTimeout) as failed:
        _client(server.port, None).code2session(APP, "code")
    assert "SECRETMARKER" not in repr(failed.value)
    server.close()


@pytest.mark.parametrize("at_once", [0, 20, len(ANSWER) - len(GOOD)], ids=["status line", "headers", "body"])
def test_over_tls_what_drips_ends_at_the_deadline(certificate: Path, at_once: int) -> None:
    server = _TLSServer(certificate, ANSWER[:at_once], drips=ANSWER[at_once:])
    started_at = time.monotonic()
    with pytest.raises(WeChatTimeout):
        _client(server.port, certificate).code2session(APP, "code")
    assert time.monotonic() - started_at < 3 * 0.5 + 2
    server.close()


def test_a_tls_handshake_that_never_ends_ends_at_the_deadline() -> None:
    server = _TLSServer(None, b"", drips=b"\x16\x03\x03\x40\x00" + bytes(200))
    started_at = time.monotonic()
    with pytest.raises(WeChatTimeout):
        _client(server.port, None).code2session(APP, "code")
    assert time.monotonic() - started_at < 3 * 0.5 + 2
    server.close()


@pytest.fixture
def slow_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """getaddrinfo that hangs until the test ends: nothing can interrupt it."""
    over = threading.Event()
    asked: list[str] = []

    def hang(host: str, *_args: object, **_kwargs: object) -> list[object]:
        asked.append(host)
        over.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield asked
    over.set()


def test_name_resolution_that_hangs_ends_at_the_deadline_and_in_one_thread(slow_resolver: list[str]) -> None:
    client = _client(1, None)
    started_at = time.monotonic()
    for _ in range(3):
        with pytest.raises(WeChatTimeout):
            client.code2session(APP, "code")
    assert time.monotonic() - started_at < 3 * (3 * 0.5 + 2)
    assert slow_resolver == ["localhost"]


# ---- an upstream that keeps the connection and says more, or says it later ----


class _LateServer(_Upstream):
    """Answers each request with `first` and, a moment later, with the login of the code that was asked for."""

    def __init__(self, first: bytes) -> None:
        self._first = first
        super().__init__()

    def _play(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw as peer:
            while asked := peer.recv(65_536):
                code = asked.split(b"js_code=")[1].split(b"&")[0].split(b" ")[0]
                body = b'{"openid": "openid-of-%s", "session_key": "tiihtNczf5v6AKRyjwEUhQ=="}' % code
                peer.sendall(self._first)
                time.sleep(0.1)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


FIRSTS = {
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
    "processing": b"HTTP/1.1 102 Processing\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "an empty 500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    "a whole 500": b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}",
    "an empty chunked 200": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a 200 that is no answer": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "an empty 200": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("first", FIRSTS)
def test_no_login_ever_gets_the_answer_to_another_one(first: str) -> None:
    server = _LateServer(FIRSTS[first])
    client = WeChatClient(new_session(connections=1), url=server.url, timeout_s=1)
    for code in ("alice", "bob", "carol"):
        with contextlib.suppress(WeChatBadReply):
            assert client.code2session(APP, code).openid == f"openid-of-{code}"
    server.close()


def test_a_flood_of_headers_is_cut_off_and_not_believed(wechat: Running) -> None:
    cookies = (b"Set-Cookie: " + b"a=a;" * 16_000 + b"\r\n") * 90
    server = _TLSServer(None, ANSWER.replace(b"\r\n\r\n", b"\r\n" + cookies + b"\r\n", 1))
    client = WeChatClient(new_session(connections=1), url=f"http://127.0.0.1:{server.port}", timeout_s=1)
    started_at = time.monotonic()
    with pytest.raises(WeChatBadReply):
        client.code2session(APP, "code")
    assert time.monotonic() - started_at < 3 * 1 + 2
    server.close()


def test_after_a_tls_error_behind_the_request_the_code_is_not_sent_again(certificate: Path) -> None:
    server = _TLSServer(certificate, b"", breaks=True)
    with pytest.raises((WeChatBadReply, WeChatTimeout)):
        _client(server.port, certificate).code2session(APP, "code")
    assert server.connections == 1
    server.close()
