"""What other teams verify tokens with, as the README shows it, against the running service: one contract for all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

import pytest
import requests

from authsvc import IssuerKeys, Policy, TokenError, Verifier
from authsvc.claims import Claims
from authsvc.encoding import base64url_decode, base64url_encode
from authsvc.keyfiles import KeyFolder
from authsvc.keyset import Kind, Lifecycle, Purpose
from authsvc.tokens import sign_token
from tests.support.service import Running, Service, authsvc, free_port, service
from tests.support.tls import certificate

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text("utf-8")
NODE: Final = Path(__file__).parent / "node"
PEERS: Final = ROOT / ".venv" / "peers"
DAY: Final = 86_400
README_ISSUER: Final = "https://auth.example.com"


def _block(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return str(block)


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing: tokens were not verified with it")
    pytest.skip(f"{what.upper()} IS MISSING: tokens were not verified with it")


@dataclass
class Issuer:
    """The running service, its key folder, and tokens under its own key that say what the test wants."""

    service: Service
    keys: KeyFolder

    @property
    def kid(self) -> str:
        return self.keys.keyset().active(Kind.SIGNING, now=int(time.time())).id

    def token(self, **changes: Any) -> str:
        now = int(time.time())
        claims = Claims(
            issuer=self.service.url,
            audience="api",
            openid="oPeer",
            appid="wx1234567890abcdef",
            issued_at=now,
            expires_at=now + 600,
            auth_time=now,
            jti="jti",
            sid="sid",
        )
        key = self.keys.load(now=now).signing_key(now=now)
        return sign_token(replace(claims, **changes), key, typ="at+jwt")

    def command(self, *args: str) -> None:
        done = authsvc("keys", *args, cwd=self.keys.path.parent)
        assert done.returncode == 0, done.stderr

    def revoke(self) -> None:
        self.command("revoke", self.kid, "--yes")
        time.sleep(1.5)  # until the workers have looked


@dataclass
class Peer:
    """`accepts` tells whether it takes a token; `refresh` is what is done after a change of keys, or waited for."""

    accepts: Callable[[str], bool]
    refresh: Callable[[], None] = lambda: None


@pytest.fixture
def issuer(tmp_path: Path, wechat: Running) -> Iterator[Issuer]:
    keys = KeyFolder(tmp_path / "keys")
    keys.init(
        alg="ES256",
        purpose=Purpose.PRODUCTION,
        lifecycle=Lifecycle(),
        now=int(time.time()) - DAY,
        random_bytes=os.urandom,
    )
    port = free_port()
    with service(tmp_path, wechat_url=wechat.url, port=port, ISSUER=f"http://127.0.0.1:{port}") as it:
        yield Issuer(it, keys)


# ---- the peers ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _ours(issuer: Issuer, folder: Path) -> Iterator[Peer]:
    """Without the memory of an HTTP cache between: it asks anew for each unknown kid, and else when the JWKS is old."""
    keys = IssuerKeys(issuer.service.url, cool_down_s=0)
    with Verifier(keys, Policy(issuer.service.url, "api")) as verifier:

        def accepts(token: str) -> bool:
            try:
                verifier.verify(token)
            except TokenError:
                return False
            return True

        yield Peer(accepts, refresh=keys.fetch)


@contextlib.contextmanager
def _jose(issuer: Issuer, folder: Path) -> Iterator[Peer]:
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules" / "jose").is_dir():
        _missing("Node with jose")
    # In the folder with the packages, which is where Node looks for them; with caches that a test can wait for.
    snippet = _block("mjs").replace(README_ISSUER, issuer.service.url)
    patient = snippet.replace("jwks.json`)", "jwks.json`), { cacheMaxAge: 500, cooldownDuration: 0 }")
    assert patient.count("cacheMaxAge") == 1
    module = NODE / f"verify-{os.getpid()}-{free_port()}.mjs"
    module.write_text(patient)
    command = [str(node), str(NODE / "verify.mjs"), str(module)]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

            def accepts(token: str) -> bool:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(token + "\n")
                process.stdin.flush()
                return bool(json.loads(process.stdout.readline())["accepted"])

            yield Peer(accepts, refresh=lambda: time.sleep(0.6))
            assert process.stdin is not None
            process.stdin.close()
    finally:
        module.unlink()


@dataclass
class _Proxy:
    """A server program, started anew after a change of keys. `configure` comes before every start."""

    command: list[str]
    port: int
    log: Path
    configure: Callable[[], None] = lambda: None
    process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.configure()
        libraries = ":".join(sorted({str(path.parent) for path in PEERS.glob("usr/lib/*/*.so*")}))
        with self.log.open("w") as output:
            environment = os.environ | {"LD_LIBRARY_PATH": libraries}
            self.process = subprocess.Popen(self.command, text=True, env=environment, stderr=output)
        try:
            _until_open(self.port, self.process, self.log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)

    def restart(self) -> None:
        self.stop()
        self.start()


_DEFAULTS: Final = "defaults\n    mode http\n    timeout client 5s\n    timeout server 5s\n    timeout connect 5s\n"


@contextlib.contextmanager
def _haproxy(issuer: Issuer, folder: Path) -> Iterator[Peer]:
    program = shutil.which("haproxy") or str(PEERS / "usr" / "sbin" / "haproxy")
    if not Path(program).exists():
        _missing("HAProxy")
    exported = folder / "public"
    backend, front = free_port(), free_port()

    def configure() -> None:
        issuer.command("export", str(exported))
        loop = _block("sh haproxy").replace("/etc/haproxy/keys", str(exported))
        lines = subprocess.run(["sh", "-c", loop], capture_output=True, text=True, check=True).stdout
        text = _block("haproxy")
        for shown, here in (
            (README_ISSUER, issuer.service.url),
            ("bind :8080", f"bind 127.0.0.1:{front}"),
            ("    # one line for each key\n", lines),
            ("127.0.0.1:8000", f"127.0.0.1:{backend}"),
        ):
            assert text.count(shown) == 1, shown
            text = text.replace(shown, here)
        (folder / "haproxy.cfg").write_text(_DEFAULTS + text)

    command = [program, "-f", str(folder / "haproxy.cfg"), "-db"]
    with _app_behind_a_proxy(backend), _Proxy(command, front, folder / "haproxy.log", configure) as proxy:
        yield Peer(partial(_gets_through, front), proxy.restart)


@contextlib.contextmanager
def _app_behind_a_proxy(port: int) -> Iterator[None]:
    """Says who the proxy says it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (self.headers.get("X-Openid") or "").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Handler, port):
        yield


@contextlib.contextmanager
def _tls_before(service_url: str, folder: Path) -> Iterator[str]:
    """What stands before the service in production. Gives its URL; its certificate is folder/chain.pem."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply = requests.get(service_url + self.path, timeout=10)
            self.send_response(reply.status_code)
            self.send_header("Content-Type", reply.headers["Content-Type"])
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        def log_message(self, *_: object) -> None:
            pass

    port = free_port()
    with _serving(Handler, port, tls=certificate(folder, host="127.0.0.1")[0]):
        yield f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def _serving(handler: type[BaseHTTPRequestHandler], port: int, *, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _until_open(port: int, process: subprocess.Popen[str], log: Path) -> None:
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at and process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}/", timeout=5)
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


_MODULES: Final = (
    *("mpm_event", "authn_core", "authz_core", "authz_user", "auth_openidc", "headers", "proxy", "proxy_http"),
)


@contextlib.contextmanager
def _apache(issuer: Issuer, folder: Path) -> Iterator[Peer]:
    system = Path("/usr/lib/apache2/modules/mod_auth_openidc.so").exists()
    root = Path("/") if system else PEERS
    program, modules = root / "usr" / "sbin" / "apache2", root / "usr" / "lib" / "apache2" / "modules"
    if not program.exists() or not (modules / "mod_auth_openidc.so").exists():
        _missing("Apache with mod_auth_openidc")
    backend, front = free_port(), free_port()
    folder.chmod(0o777)  # for the user that Apache becomes when root starts it
    text = _block("apache").replace(f"iss:{README_ISSUER}", f"iss:{issuer.service.url}")
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{backend}")
    assert (text.count(README_ISSUER), text.count(issuer.service.url)) == (1, 1)
    lines = [
        f"ServerRoot {folder}",
        "ServerName localhost",
        f"Listen 127.0.0.1:{front}",
        f"PidFile {folder}/apache.pid",
        f"DefaultRuntimeDir {folder}",
        f"ErrorLog {folder}/apache.log",
        *(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in _MODULES),
        *(("User nobody", "Group nogroup") if os.geteuid() == 0 else ()),
        "OIDCOAuthSSLValidateServer Off",  # the user that Apache becomes cannot read a certificate of ours
    ]
    command = [str(program), "-f", str(folder / "apache.conf"), "-DFOREGROUND"]
    with _app_behind_a_proxy(backend), _tls_before(issuer.service.url, folder) as keys_url:
        (folder / "apache.conf").write_text("\n".join((*lines, text.replace(README_ISSUER, keys_url))))
        with _Proxy(command, front, folder / "output") as proxy:
            yield Peer(partial(_gets_through, front), proxy.restart)


_MAIN_GO: Final = """
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"auth"
)

func main() {
	verifier, err := auth.NewVerifier(context.Background())
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		_, err := verifier.Verify(context.Background(), lines.Text())
		fmt.Println(err == nil)
	}
}
"""


@contextlib.contextmanager
def _go(issuer: Issuer, folder: Path) -> Iterator[Peer]:
    unpacked = next(PEERS.glob("usr/lib/go-*"), None)
    library = next(
        (r for r in (PEERS, Path("/")) if (r / "usr/share/gocode/src/github.com/coreos/go-oidc").is_dir()), None
    )
    program = shutil.which("go") or (str(unpacked / "bin" / "go") if unpacked else None)
    if program is None or library is None:
        _missing("Go with go-oidc")
    for name, text in (("auth/auth", _block("go").replace(README_ISSUER, issuer.service.url)), ("main/main", _MAIN_GO)):
        source = folder / "go" / "src" / f"{name}.go"
        source.parent.mkdir(parents=True)
        source.write_text(text)
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": f"{folder}/go:{library}/usr/share/gocode",
        "GOCACHE": str(folder / "cache"),
        **({"GOROOT": str(unpacked)} if unpacked and not shutil.which("go") else {}),
    }
    built = folder / "verifier"
    command = [str(program), "build", "-o", str(built), str(folder / "go" / "src" / "main")]
    subprocess.run(command, env=environment, check=True, timeout=110)
    running: list[subprocess.Popen[str]] = []

    def start() -> None:
        running.append(subprocess.Popen([str(built)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def stop() -> None:
        with running.pop() as process:
            assert process.stdin is not None
            process.stdin.close()

    def accepts(token: str) -> bool:
        stdin, stdout = running[-1].stdin, running[-1].stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(token + "\n")
        stdin.flush()
        return stdout.readline() == "true\n"

    def refresh() -> None:
        """It has the keys until their max-age is over, and the revocation is seen after that, or a restart."""
        stop()
        start()

    start()
    try:
        yield Peer(accepts, refresh)
    finally:
        stop()


def _gets_through(port: int, token: str) -> bool:
    """Past a proxy, to an app that says who the proxy says it is."""
    reply = requests.get(f"http://127.0.0.1:{port}/", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert reply.status_code in (401, 200), reply.text
    if reply.status_code == 200:
        assert reply.text == json.loads(base64url_decode(token.split(".")[1]))["openid"]
    return reply.status_code == 200


PEER_KINDS = {
    "authsvc.Verifier": _ours,
    "jose (Node)": _jose,
    "go-oidc (Go)": _go,
    "HAProxy": _haproxy,
    "Apache": _apache,
}


@pytest.fixture(params=PEER_KINDS)
def peer(request: pytest.FixtureRequest, issuer: Issuer, tmp_path: Path) -> Iterator[Peer]:
    folder = tmp_path / "peer"
    folder.mkdir()
    with PEER_KINDS[request.param](issuer, folder) as it:
        yield it


# ---- the contract -------------------------------------------------------------------------------


def test_a_peer_takes_good_tokens_and_no_others_and_follows_rotation_and_revocation(issuer: Issuer, peer: Peer) -> None:
    good = issuer.service.token()
    assert peer.accepts(good)
    header, body, signature = good.split(".")
    changed = bytearray(base64url_decode(body))
    changed[len(changed) // 2] ^= 1
    now = int(time.time())
    bad = {
        "a changed byte": f"{header}.{base64url_encode(bytes(changed))}.{signature}",
        "another signature": f"{header}.{body}.{issuer.token().split('.')[2]}",
        "expired": issuer.token(issued_at=now - 700, expires_at=now - 100),
        "another audience": issuer.token(audience="other"),
        "another issuer": issuer.token(issuer="https://evil.example"),
        "no token": "undefined",
    }
    assert {name: peer.accepts(token) for name, token in bad.items()} == dict.fromkeys(bad, False)
    assert peer.accepts(issuer.token()), "and it is no accident: ours say all else as the service's do"

    before, old_kid = issuer.token(), issuer.kid
    issuer.command("rotate")
    time.sleep(1.5)
    after = issuer.service.token()
    assert json.loads(base64url_decode(after.split(".")[0]))["kid"] != old_kid
    assert peer.accepts(after), "the standby had been published, so nobody had to do anything"
    assert peer.accepts(before)

    issuer.revoke()
    peer.refresh()
    assert not peer.accepts(after)
    assert peer.accepts(issuer.service.token())
    assert peer.accepts(before), "of the key before, which was not revoked"
