"""The whole way, with everybody on it real: a phone (Node), the service, WeChat's simulator, another service."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from authsvc.encoding import base64url_decode
from tests.support.base_install import base_packages, make_base_install, run_in
from tests.support.service import ISSUER, Running, Service, clean_environment, free_port, sandbox, service, wait_for

HERE = Path(__file__).parent / "miniprogram"

# What the README tells authors of other services to write.
WITH_AUTHSVC = """
import json, sys
from authsvc import JwkSet, Policy, TokenError, Verifier
jwks, issuer, token = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
verifier = Verifier(JwkSet(jwks), Policy(issuer=issuer, audience="api"))
try:
    print(verifier.verify(token).openid)
except TokenError as error:
    print("refused:", error.code)
"""
WITH_PYJWT = """
import json, sys, jwt
jwks, issuer, token = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
keys = {key["kid"]: jwt.PyJWK(key) for key in jwks["keys"]}
try:
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=[key.algorithm_name], issuer=issuer, audience="api",
                        options={"require": ["exp", "iat", "sub", "client_id"]})
    print(claims["openid"])
except (KeyError, jwt.PyJWTError):
    print("refused:", "invalid")
"""


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base_install(tmp_path_factory.mktemp("base") / "site")


def _launch(node: str, it: Service, storage: Path) -> dict[str, Any]:
    command = [node, str(HERE / "phone.js"), str(HERE / "app.js"), it.url, it.sandbox_url, str(storage)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "RS256"])
def test_the_tutorials_client_logs_in_and_stays_so_over_a_restart_and_others_verify_offline(
    tmp_path: Path, wechat: Running, node: str, base_install: Path, alg: str
) -> None:
    storage, port = tmp_path / "storage.json", free_port()
    with service(tmp_path, wechat_url=wechat.url, port=port, ALG=alg) as it:
        first = _launch(node, it, storage)
        assert {"wx": "login"} in first["events"]
        assert {"request": "POST /login", "status": 200} in first["events"]
        assert first["token"]
        jwks = requests.get(f"{it.url}/.well-known/jwks.json", timeout=10).text
    with service(tmp_path, wechat_url=wechat.url, port=port, ALG=alg) as it:
        second = _launch(node, it, storage)
        assert second["events"] == [{"request": "GET /checklogin", "status": 200}, {"log": "is_login: true"}]
    # The service is down by now: the JWKS is all that a verifier needs.
    token = json.loads(storage.read_text())["token"]
    for program in (WITH_AUTHSVC, WITH_PYJWT):
        for given, said in ((token, _openid(token)), (token[:-5] + "AAAAA", "refused: invalid")):
            done = run_in(base_install, program, jwks, ISSUER, given)
            assert (done.stdout.strip(), done.stderr) == (said, "")


def _openid(token: str) -> str:
    openid: str = json.loads(base64url_decode(token.split(".")[1]))["openid"]
    return openid


def test_the_base_install_is_pyjwt_and_cryptography_with_what_they_need() -> None:
    assert (
        {"pyjwt", "cryptography"}
        <= base_packages()
        <= {"pyjwt", "cryptography", "cffi", "pycparser", "typing-extensions"}
    )


def test_the_base_install_verifies_without_loading_anything_of_the_server(base_install: Path) -> None:
    done = run_in(
        base_install,
        "from authsvc import Verifier, Policy, JwkSet, TokenError, Claims\n"
        "loaded = sorted(set(sys.modules) & {'flask', 'requests', 'sqlalchemy', 'pydantic', 'structlog', 'click'})\n"
        "print(loaded)",
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_command_says_what_it_misses_in_the_base_install(base_install: Path) -> None:
    done = run_in(
        base_install, "import runpy; sys.argv = ['authsvc', 'serve']; runpy.run_module('authsvc', run_name='__main__')"
    )
    assert done.returncode == 1
    assert "pip install 'authsvc[server]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("production")
    with sandbox(folder) as wechat, service(folder, wechat_url=wechat.url, WORKERS="2") as it:
        yield it


def test_checklogin_goes_on_when_the_store_is_deleted_under_the_service_and_login_says_so(production: Service) -> None:
    token = production.token()
    folder = production.log.parent
    kept = {path.name: path.read_bytes() for path in folder.glob("authsvc.db*")}
    assert kept
    for name in kept:
        (folder / name).unlink()
    for _ in range(20):
        assert production.check(token)["is_login"] is True
    for _ in range(8):
        reply = production.log_in()
        assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
        assert "token" not in reply.json()
    ready = requests.get(f"{production.url}/readyz", timeout=10)
    assert (ready.status_code, ready.json()["store"]) == (200, "unavailable")
    assert not list(folder.glob("authsvc.db")), "a store that was deleted must not come back empty by itself"
    for name, data in kept.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    assert production.log_in().status_code == 200


def test_the_answers_of_the_real_server_are_those_of_the_contract(production: Service) -> None:
    token = production.token()
    base = production.url
    ok: dict[str, object] = {"is_login": True}
    cases: list[tuple[str, dict[str, str], dict[str, object]]] = [
        (f"/checklogin?token={token}", {}, ok),
        ("/checklogin", {"Authorization": f"bearer {token}"}, ok),
        ("/checklogin?token=constructor", {}, {"is_login": False, "reason": "malformed"}),
        ("/checklogin?token=__proto__", {}, {"is_login": False, "reason": "malformed"}),
        (f"/checklogin?token={token}&token={token}", {}, {"is_login": False, "reason": "malformed"}),
        ("/checklogin", {}, {"is_login": False, "reason": "missing"}),
    ]
    for path, headers, expected in cases:
        reply = requests.get(base + path, headers=headers, timeout=10)
        assert reply.status_code == 200
        assert expected.items() <= reply.json().items()
    twice = [("Authorization", f"Bearer {token}")] * 2
    assert _raw(production, "GET", "/checklogin", twice)["reason"] == "malformed"
    too_long = requests.get(f"{base}/checklogin?token={'A' * 9000}", timeout=10)
    assert too_long.json() == {"is_login": False, "reason": "malformed"}
    chunked = requests.post(
        f"{base}/login", data=iter([b" " * 4000, b" " * 4000]), headers={"Content-Type": "application/json"}, timeout=10
    )
    assert (chunked.status_code, chunked.json()["code"]) == (413, "payload_too_large")


def test_what_the_real_server_refuses_is_a_problem_with_its_code(production: Service) -> None:
    login, json_type = f"{production.url}/login", {"Content-Type": "application/json"}
    refused = [
        (400, "bad_request", requests.post(login, data=b"{}", headers=json_type, timeout=10)),
        (400, "bad_request", requests.post(login, json={"code": "the code is a mock one"}, timeout=10)),
        (401, "code_invalid", requests.post(login, json={"code": "never-minted"}, timeout=10)),
        (404, "not_found", requests.get(f"{production.url}/logout", timeout=10)),
        (405, "method_not_allowed", requests.get(login, timeout=10)),
        (413, "payload_too_large", requests.post(login, data=b" " * 5000, headers=json_type, timeout=10)),
        (415, "unsupported_media_type", requests.post(login, data=b"x", headers={"Content-Type": "a/b"}, timeout=10)),
    ]
    for status, code, reply in refused:
        assert (reply.status_code, reply.json()["code"]) == (status, code)
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.json()["request_id"] == reply.headers["X-Request-ID"]
        assert ("WWW-Authenticate" in reply.headers) is (status == 401)


def _raw(it: Service, method: str, path: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """A request with the same header twice, which requests cannot send."""
    host = it.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest(method, path)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    body: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return body


def test_one_line_in_the_log_for_each_request_and_nothing_secret_in_it(production: Service) -> None:
    code = production.mint("somebody")
    reply = production.log_in(code)
    token = reply.json()["token"]
    production.check(token)
    lines = [json.loads(line) for line in production.output().splitlines() if line.startswith("{")]
    by_id = {line.get("request_id"): line for line in lines if line.get("event") == "request"}
    login = by_id[reply.headers["X-Request-ID"]]
    assert (login["method"], login["path"], login["status"], login["outcome"]) == ("POST", "/login", 200, "ok")
    assert login["duration_ms"] >= 0
    assert len(login["user"]) == 16
    assert any(line.get("path") == "/checklogin" for line in lines)
    openid = _openid(token)
    for secret in (code, token, openid, "secret-of-the-app"):
        assert secret not in production.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_service_ends_on_a_signal_with_status_0(tmp_path: Path, number: int) -> None:
    with service(tmp_path, wechat_url="http://127.0.0.1:1", WORKERS="2") as it:
        assert it.stop(number) == 0


def test_ctrl_c_in_a_terminal_ends_service_and_sandbox(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "authsvc", "serve", "--or-sandbox"],
            cwd=tmp_path,
            env=clean_environment(PORT=str(port), WORKERS="2"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", process, log)
        text = log.read_text()
        assert "SANDBOX" in text
        sandbox_url = json.loads((tmp_path / ".sandbox" / "addresses.json").read_text())["sandbox"]
        assert requests.get(f"{sandbox_url}/sandbox/calls", timeout=10).status_code == 200
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: everyone in it gets the signal
        assert process.wait(20) == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{sandbox_url}/sandbox/calls", timeout=10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
