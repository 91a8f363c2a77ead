"""`authsvc doctor`, as an operator runs it: against the real sandbox and service, and with what can break."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from authsvc.looks import NoAnswer, NotTrusted, ask, disk_of, ping_redis
from authsvc.store import FORWARDING_HEADER_SEEN, SharedValue
from tests.support.databases import REDIS, redis_place
from tests.support.place import Place
from tests.support.service import (
    APPID,
    SECRET,
    Running,
    authsvc,
    clean_environment,
    free_port,
    running,
    sandbox,
    service,
)
from tests.support.tls import certificate

HOUR_S = 3_600
SECRETS = {
    "OPS_TOKEN": "OPSTOKENMARKER0123456789",
    "SERVICE_TOKENS": "SERVICETOKENMARKER0123456789",
}
STATUS = {"ok": 0, "warning": 1, "broken": 2}


class Installed(Place):
    """A place whose settings are whole, with a WeChat to ask."""

    def __init__(self, path: Path, wechat_url: str, *, store: str | None = None) -> None:
        super().__init__(path, store or f"sqlite:///{path}/authsvc.db")
        self.wechat_url = wechat_url
        self.log_in()
        self.store.close()
        self.settings |= {
            "SECRET": SECRET,
            "ISSUER": f"http://127.0.0.1:{free_port()}",
            "WECHAT_URL": wechat_url,
            "WECHAT_TIMEOUT": "2",
            "PORT": str(free_port()),
            **SECRETS,
        }

    def doctor(self, **settings: str) -> dict[str, list[dict[str, str]]]:
        """What it finds, by check. The table says the same, and neither shows a secret."""
        told = self.settings | settings
        told = {name: value for name, value in told.items() if value}
        done = authsvc("doctor", "--json", cwd=self.path, **told)
        table = authsvc("doctor", cwd=self.path, **told)
        found: list[dict[str, str]] = json.loads(done.stdout)
        worst = max(STATUS[finding["verdict"]] for finding in found)
        assert (done.returncode, table.returncode) == (worst, worst), (
            done.stdout + done.stderr + table.stdout + table.stderr
        )
        assert (done.stderr, table.stderr) == ("", "")
        assert [row[0] for row in _rows(table.stdout)] == [finding["check"] for finding in found]
        assert [row[1] for row in _rows(table.stdout)] == [finding["verdict"] for finding in found]
        for marker in self.markers(told):
            assert marker not in done.stdout + table.stdout, marker
        by_check: dict[str, list[dict[str, str]]] = {}
        for finding in found:
            assert finding.keys() == {"check", "verdict", "seen", "mend"}
            assert (finding["mend"] == "") or finding["verdict"] != "ok"
            by_check.setdefault(finding["check"], []).append(finding)
        return by_check

    def markers(self, settings: Mapping[str, str]) -> set[str]:
        found = {settings.get("SECRET", SECRET), *SECRETS.values()}
        found |= {part for value in settings.values() for part in value.split('"') if "MARKER" in part}
        found |= {"PASSWORDMARKER", "tiihtNczf5v6AKRyjwEUhQ"}
        for part in [*self.path.glob("keys/sign-*"), *self.path.glob("keys/seal-*"), *self.path.glob("keys/index-*")]:
            found |= {line for line in part.read_text("utf-8").splitlines() if not line.startswith("-----")}
        if self.wechat_url:
            asked = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
            reply = requests.post(f"{self.wechat_url}/cgi-bin/stable_token", json=asked, timeout=10)
            found.add(str(reply.json()["access_token"]))
        return found


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def _verdicts(found: dict[str, list[dict[str, str]]], *but: str) -> set[str]:
    return {f["verdict"] for check, findings in found.items() for f in findings if check not in but}


def _amiss(found: dict[str, list[dict[str, str]]], check: str) -> dict[str, str]:
    (finding,) = (finding for finding in found[check] if finding["verdict"] != "ok")
    return finding


@pytest.fixture
def place(tmp_path: Path, wechat: Running) -> Installed:
    return Installed(tmp_path, wechat.url)


def _everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


# ---- where nothing is broken --------------------------------------------------------------------


def test_an_installation_that_is_in_order_is_told_so_and_not_changed(place: Installed) -> None:
    before = _everything(place.path)
    found = place.doctor()
    assert _everything(place.path) == before
    # Both are on loopback here, where nothing real is at stake, and no service runs.
    assert [f["seen"].split()[0] for f in found["configuration"] if f["verdict"] == "warning"] == [
        *("AUTHSVC_WECHAT_URL", "AUTHSVC_ISSUER"),
    ]
    assert "cannot be reached from here" in _amiss(found, "issuer")["seen"]
    assert _verdicts(found, "configuration", "issuer", "disk") == {"ok"}
    assert found["wechat"][0]["seen"] == f"{APPID}: WeChat takes it"


def test_a_store_in_redis_is_looked_at_as_a_file_is(tmp_path: Path, wechat: Running) -> None:
    with redis_place(REDIS) as url:
        place = Installed(tmp_path, wechat.url, store=url)
        found = place.doctor(LIMITS_URL=REDIS)
        looked_at = [f for check in ("store", "proxy", "limits") for f in found.get(check, [])]
        assert [f for f in looked_at if f["verdict"] != "ok"] == []
        assert {f["check"] for f in looked_at} == {"store", "proxy", "limits"}
        assert any("1 users, 1 logins" in f["seen"] for f in found["store"])
        assert len(place.doctor(STORE_OPENID="hash")["store"]) == len(found["store"]) + 1


# One thread has begun with the package, and will want its modules; another has begun with a module of it, and wants the
# package: Python refuses one of them.
UNLUCKY_IMPORTS = """
import importlib.util, sys, threading, time
from importlib.machinery import PathFinder, SourceFileLoader

store_imports = threading.Event()
find_spec = importlib.util.find_spec

class Loader(SourceFileLoader):
    def create_module(self, spec):
        if threading.current_thread().name == "doctor-store":
            store_imports.set()
            time.sleep(1)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "redis":
            spec = PathFinder.find_spec(name, path)
            spec.loader = Loader(name, spec.origin)
            return spec

def find_later(name, package=None):
    if threading.current_thread().name == "doctor-limits" and "redis" not in sys.modules:
        store_imports.wait(5)
    return find_spec(name, package)

sys.meta_path.insert(0, Finder())
importlib.util.find_spec = find_later
"""


def test_checks_that_need_the_same_driver_do_not_lock_one_another_out(
    tmp_path: Path, wechat: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(UNLUCKY_IMPORTS, "utf-8")
    with redis_place(REDIS) as url:
        place = Installed(tmp_path, wechat.url, store=url)
        monkeypatch.setenv("PYTHONPATH", str(site))
        found = place.doctor(LIMITS_URL=REDIS)
        assert [f for check in ("store", "limits") for f in found[check] if f["verdict"] != "ok"] == []
        assert any("answers" in f["seen"] for f in found["limits"])


def test_a_running_service_is_looked_at_and_its_issuer_too(tmp_path: Path, wechat: Running) -> None:
    port = free_port()
    issuer = {"ISSUER": f"http://127.0.0.1:{port}"}
    with service(tmp_path, wechat_url=wechat.url, port=port, **issuer) as it:
        assert it.log_in().status_code == 200
        settings = {"APPID": APPID, "SECRET": SECRET, "WECHAT_URL": wechat.url, "PORT": str(port), **issuer}
        done = authsvc("doctor", "--json", cwd=tmp_path, **settings)
        found = {f["check"]: f for f in json.loads(done.stdout)}
        kid = requests.get(f"{it.url}/readyz", timeout=10).json()["kid"]
        assert found["listener"]["verdict"] == "ok"
        assert f"generation 1, {kid} signs" in found["listener"]["seen"]
        assert "has the key that signs" in found["issuer"]["seen"]
        # Another folder than that of the service.
        made = authsvc("keys", "init", cwd=tmp_path, KEYS="others")
        assert made.returncode == 0
        done = authsvc("doctor", "--json", cwd=tmp_path, **settings, KEYS="others")
        broken = [f["check"] for f in json.loads(done.stdout) if f["verdict"] == "broken"]
        assert (done.returncode, broken) == (2, ["store", "listener", "issuer"])


def test_the_sandbox_is_looked_over_before_during_and_after_it_runs(tmp_path: Path) -> None:
    port = free_port()
    environment = clean_environment(PORT=str(port), WORKERS="1")

    def doctor() -> tuple[int, list[dict[str, str]]]:
        done = authsvc("doctor", "--or-sandbox", "--json", cwd=tmp_path, PORT=str(port), WORKERS="1")
        assert done.stderr == ""
        found = [f for f in json.loads(done.stdout) if f["check"] != "disk" or f["verdict"] == "broken"]
        return done.returncode, found

    _, found = doctor()
    assert {f["check"] for f in found if f["verdict"] != "ok"} == {"keys", "store"}
    assert not (tmp_path / ".sandbox").exists()
    with running(
        [sys.executable, "-m", "authsvc", "serve", "--or-sandbox"],
        log=tmp_path / "log",
        cwd=tmp_path,
        environment=environment,
        url=f"http://127.0.0.1:{port}",
        probe="/healthz",
    ):
        status, found = doctor()
        assert {f["verdict"] for f in found} == {"ok"}, found
        # A disk that is nearly full is a warning, wherever this runs.
        assert status <= 1
        seen = {f["check"]: f["seen"] for f in found}
        assert "runs and is ready" in seen["listener"]
        assert "WeChat takes it" in seen["wechat"]
    status, found = doctor()
    assert {f["verdict"] for f in found} == {"ok"}, found
    assert "does not run" in {f["check"]: f["seen"] for f in found}["wechat"]


def test_a_header_of_a_proxy_that_the_service_has_noted_is_told(place: Installed) -> None:
    place.store.share(SharedValue(FORWARDING_HEADER_SEEN, b"X-Forwarded-For", place.now + HOUR_S))
    place.store.close()
    assert "X-Forwarded-For" in _amiss(place.doctor(), "proxy")["seen"]


# ---- what is broken -----------------------------------------------------------------------------


def _make_newer(place: Installed) -> None:
    with closing(sqlite3.connect(place.path / "authsvc.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")


BROKEN: dict[str, tuple[Callable[[Installed], object], dict[str, str], str, str, str]] = {
    "a wrong secret": (lambda _: None, {"SECRET": "WRONGMARKER"}, "wechat", "40125", "AUTHSVC_SECRET"),
    "an unknown appid": (lambda _: None, {"APPID": "wxnobody"}, "wechat", "40013", "AUTHSVC_APPID"),
    "an appid for the secret": (
        *(lambda _: None, {"APPID": "", "SECRET": "", "APPS": '{"MARKER": "wx1"}'}),
        *("wechat", "40013", "AUTHSVC_APPID"),
    ),
    "WeChat unreachable": (
        *(lambda _: None, {"WECHAT_URL": "http://127.0.0.1:1"}),
        *("wechat", "no connection", "firewall"),
    ),
    "loose permissions": (lambda p: (p.path / "keys").chmod(0o755), {}, "keys", "open to others", "chmod 700"),
    "another passphrase": (
        *(lambda _: None, {"KEYS_PASSPHRASE": "PASSPHRASEMARKER"}),
        *("keys", "not encrypted", "passphrase"),
    ),
    "no keys": (lambda p: (p.path / "keys").rename(p.path / "away"), {}, "keys", "no key folder", "make keys"),
    "no store": (lambda p: (p.path / "authsvc.db").unlink(), {}, "store", "no side store", "put it back"),
    "a newer store": (_make_newer, {}, "store", "of another version", "the version that made it"),
    "a store that is none": (
        *(lambda p: (p.path / "authsvc.db").write_bytes(b"no database" * 999), {}),
        *("store", "no SQLite database", "copy it"),
    ),
    "a store of others": (lambda _: None, {"STORE_OPENID": "hash"}, "store", "STORE_OPENID", ""),
    "no store server": (
        *(lambda _: None, {"STORE": "redis://:PASSWORDMARKER@127.0.0.1:1/0"}),
        *("store", "cannot be used", "AUTHSVC_STORE"),
    ),
    "no Redis for the limits": (
        *(lambda _: None, {"LIMITS_URL": "redis://:PASSWORDMARKER@127.0.0.1:1/0"}),
        *("limits", "does not answer PING", "start it"),
    ),
    "limits in nothing": (lambda _: None, {"LIMITS_URL": "PASSWORDMARKER://"}, "configuration", "neither", ""),
    "an address of others": (lambda _: None, {"HOST": "192.0.2.1"}, "listener", "cannot listen", "AUTHSVC_HOST"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_with_its_mend_and_stops_nothing_else(place: Installed, name: str) -> None:
    breaks, settings, check, seen, mend = BROKEN[name]
    breaks(place)
    found = place.doctor(**settings)
    broken = [f for f in found[check] if f["verdict"] == "broken"]
    assert any(seen in f["seen"] and mend in f["mend"] for f in broken), found
    assert found.keys() >= {"configuration", "keys", "clock", "wechat", "store", "limits", "listener", "issuer"}
    others = {f["verdict"] for other, findings in found.items() for f in findings if other not in (check, "disk")}
    assert "broken" not in others, found


def test_settings_that_cannot_be_used_leave_keys_and_store_to_be_looked_at(place: Installed) -> None:
    found = place.doctor(PORT="PORTMARKER", ISSUER="https://user:PASSWORDMARKER@a.example")
    named = {f["seen"].split()[0] for f in found["configuration"] if f["verdict"] == "broken"}
    assert named == {"AUTHSVC_PORT", "AUTHSVC_ISSUER"}
    assert {f["verdict"] for check in ("keys", "store") for f in found[check]} == {"ok"}
    assert found["wechat"][0]["verdict"] == "warning"


def test_an_address_that_wechat_does_not_allow_is_told_as_wechat_saw_it(tmp_path: Path) -> None:
    with sandbox(tmp_path) as wechat:
        place = Installed(tmp_path, wechat.url)
        fault = {"name": "ip_not_allowed", "endpoint": "stable_token", "times": 2}
        assert requests.post(f"{wechat.url}/sandbox/fault", json=fault, timeout=10).status_code == 200
        finding = _amiss(place.doctor(), "wechat")
        assert finding["verdict"] == "broken"
        address = finding["seen"].rsplit("WeChat sees ", 1)[1]
        assert address.count(".") == 3
        assert f"put {address} into the allow list" in finding["mend"]


@contextmanager
def _host(date: Callable[[], str], *, tls: Any = None, waits: threading.Event | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if waits is not None:
                waits.wait(60)
            self.send_response_only(404)
            self.send_header("Date", date())
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        finally:
            if waits is not None:
                waits.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("off_s", "said"), [(HOUR_S, "behind"), (-HOUR_S, "ahead of")])
def test_a_clock_that_is_off_by_an_hour_is_told(place: Installed, off_s: int, said: str) -> None:
    place.wechat_url = ""
    with _host(lambda: formatdate(time.time() + off_s, usegmt=True)) as url:
        finding = _amiss(place.doctor(WECHAT_URL=url), "clock")
    assert (finding["verdict"], said in finding["seen"], "set the clock" in finding["mend"]) == ("broken", True, True)


def test_a_certificate_that_is_not_trusted_is_told_as_such(place: Installed, tmp_path: Path) -> None:
    place.wechat_url = ""
    served, _ = certificate(tmp_path, host="127.0.0.1")
    with _host(lambda: formatdate(usegmt=True), tls=served) as url:
        found = place.doctor(WECHAT_URL=url)
    assert "not trusted (self-signed certificate)" in found["clock"][0]["seen"]
    assert "the certificate is not trusted" in found["wechat"][0]["seen"]
    assert {found["clock"][0]["verdict"], found["wechat"][0]["verdict"]} == {"broken"}


def test_a_wechat_that_never_answers_is_not_waited_for(place: Installed) -> None:
    place.wechat_url = ""
    with _host(lambda: "", waits=threading.Event()) as url:
        found = place.doctor(WECHAT_URL=url, WECHAT_TIMEOUT="1")
    assert "no answer" in found["wechat"][0]["seen"]
    assert "no answer within 1 s" in found["clock"][0]["seen"]


@pytest.mark.parametrize("speaks", [True, False])
def test_a_port_that_something_else_has_is_told(place: Installed, wechat: Running, speaks: bool) -> None:
    if speaks:
        found = place.doctor(PORT=wechat.url.rsplit(":", 1)[1])
    else:
        with socket.create_server(("127.0.0.1", 0)) as other:
            found = place.doctor(PORT=str(other.getsockname()[1]))
    finding = _amiss(found, "listener")
    assert (finding["verdict"], "AUTHSVC_PORT" in finding["mend"]) == ("broken", True)
    assert ("no authsvc" if speaks else "no answer within 5 s") in finding["seen"]


def test_a_store_that_others_may_read_is_told_and_left_as_it_is(place: Installed) -> None:
    (place.path / "authsvc.db").chmod(0o644)
    assert _amiss(place.doctor(), "store")["verdict"] == "warning"
    assert (place.path / "authsvc.db").stat().st_mode & 0o777 == 0o644


# ---- the looks ----------------------------------------------------------------------------------


def test_a_host_is_asked_for_any_status_with_its_time(tmp_path: Path) -> None:
    served, trusting = certificate(tmp_path, host="127.0.0.1")
    with _host(lambda: "Fri, 15 Jan 2027 08:00:00 GMT", tls=served) as url:
        answer = ask(f"{url}/x", within_s=10, tls=trusting)
        assert (answer.status, answer.date) == (404, 1_800_000_000)
        with pytest.raises(NotTrusted, match="self-signed"):
            ask(url, within_s=10)
    with _host(lambda: "yesterday") as url:
        assert ask(url, within_s=10).date is None


def test_a_cached_answer_is_as_old_as_the_cache_says() -> None:
    head = b"HTTP/1.1 200 OK\r\nDate: Fri, 15 Jan 2027 08:00:00 GMT\r\nAge: %s\r\nContent-Length: 0\r\n\r\n"
    with _speaking(head % b"60") as url:
        assert ask(url, within_s=10).date == 1_800_000_060
    with _speaking(head % b"-1") as url:
        assert ask(url, within_s=10).date is None


@contextmanager
def _speaking(said: bytes, *, again: bytes = b"") -> Iterator[str]:
    """A host that says this to each connection, and then `again` and again."""
    stop = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                try:
                    connection.recv(4096)
                    connection.sendall(said)
                    while again and not stop.wait(0.01):
                        connection.sendall(again)
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    ("said", "again", "why"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", b"", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"x", ""),
        (b"HTTP/1.1 200 OK\r\nX-", b"a", "no answer within"),
        (b"", b"", "no connection|does not speak HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 9999, "no connection|no answer within"),
    ],
)
def test_whatever_a_host_does_asking_it_ends(said: bytes, again: bytes, why: str) -> None:
    with _speaking(said, again=again) as url:
        if why:
            with pytest.raises(NoAnswer, match=why):
                ask(url, within_s=1)
        else:
            assert len(ask(url, within_s=20).body) == 99


# Port 1 is nobody's (tcpmux), and no test is given it.
@pytest.mark.parametrize("url", ["https://", "http://[::1", "http://127.0.0.1:x", "http://127.0.0.1:1"])
def test_who_cannot_be_asked_is_told_without_the_url(url: str) -> None:
    with pytest.raises(NoAnswer) as refused:
        ask(f"{url}?SECRETMARKER", within_s=2)
    assert "MARKER" not in str(refused.value)


def test_a_disk_is_that_of_the_folder_or_of_what_it_will_be_made_in(tmp_path: Path) -> None:
    found = disk_of(tmp_path)
    stat = os.statvfs(tmp_path)
    assert found.device == tmp_path.stat().st_dev
    assert found.total_bytes == stat.f_blocks * stat.f_frsize
    assert 0 <= found.free_bytes <= found.total_bytes
    # Others write here too, though not that much.
    assert abs(found.free_bytes - shutil.disk_usage(tmp_path).free) < found.total_bytes / 20
    assert disk_of(tmp_path / "not" / "there").total_bytes == found.total_bytes
    assert disk_of(Path("/proc")).total_inodes is None


def test_a_redis_that_answers_and_one_that_hangs_are_told_apart() -> None:
    with redis_place(REDIS) as url:
        ping_redis(url)
    with (
        socket.create_server(("127.0.0.1", 0)) as hanging,
        pytest.raises(NoAnswer, match="does not answer PING") as refused,
    ):
        ping_redis(f"redis://:PASSWORDMARKER@127.0.0.1:{hanging.getsockname()[1]}/0")
    with pytest.raises(NoAnswer, match="not of the form"):
        ping_redis("redis://PASSWORDMARKER@127.0.0.1/x")
    assert "MARKER" not in str(refused.value)
