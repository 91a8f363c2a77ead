"""The service as its operators handle it: stopped, reloaded and killed under load, under systemd, in a terminal."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import jwt
import pytest
import requests

from tests.support.load import load
from tests.support.processes import children, until
from tests.support.service import STOP_WITHIN_S, Running, Service, clean_environment, free_port, running, service

SOON_S: Final = 30


@contextlib.contextmanager
def serving(program: str, folder: Path) -> Iterator[Running]:
    """The server alone, as a program of its own has it: see SERVER."""
    port = free_port()
    with running(
        [sys.executable, "-c", program, str(port)],
        log=folder / "log",
        cwd=Path.cwd(),
        environment=clean_environment(),
        url=f"http://127.0.0.1:{port}",
        probe="/",
    ) as it:
        yield it


def workers_of(it: Running) -> set[int]:
    return set(children(it.process.pid))


def wait_for_reload(it: Service, *, before: set[int]) -> None:
    until(lambda: len(now := workers_of(it)) == len(before) and not now & before, within_s=SOON_S)


def ask(url: str, path: str = "/healthz") -> bytes:
    """The first bytes of the answer, on a connection of its own."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SOON_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(4096)


FORK_FAILS: Final = """import errno, os, sys

forks = []
fork = os.fork

def failing():
    forks.append(1)
    if len(forks) == 3:  # two workers, and then
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    return fork()

os.fork = failing
"""

SERVER: Final = """
import os, sys
from authsvc.http.gateway import Gateway
from authsvc.http.listener import free_address
from authsvc.http.server import serve
from authsvc.telemetry import configure_logging

def gateway():
    return Gateway(app, threads=4, longest_body=lambda path: 4096)

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]

def broken():
    raise RuntimeError("no app")

def secretive():
    raise ValueError("SECRETMARKER")

def once_dead(mark):
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return gateway()
    os._exit(1)

configure_logging(sys.stderr)
serve(
    gateway,
    address=free_address("127.0.0.1", int(sys.argv[1])),
    workers=2,
    stop_within_s=5,
    on_listening=lambda: None,
    on_ready=lambda: print("READY", file=sys.stderr, flush=True),
    on_reload=lambda: broken,
    on_stopping=lambda: None,
    on_worker_end=lambda: None,
    hangup_ends=False,
)
"""


READING_APP: Final = """
import flask
from authsvc.errors import BadRequest
app = flask.Flask("reading")
app.register_error_handler(BadRequest, lambda error: (str(error), 400))

@app.post("/")
def read():
    return flask.request.get_data()

def unused(environ, start_response):
"""


@pytest.fixture(scope="module")
def serving_reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(SERVER.replace("def app(environ, start_response):", READING_APP), tmp_path_factory.mktemp("r")) as it:
        yield it


# ---- under load ---------------------------------------------------------------------------------


def test_no_request_fails_while_the_service_reloads_twice_and_stops(tmp_path: Path, wechat: Running) -> None:
    users = itertools.count()  # WeChat lets nobody log in more often than 100 times a minute
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", ACCESS_LOG="none") as it:
        with load(it.url, mint=lambda: it.mint(f"user-{next(users)}")) as found:
            for _ in range(2):
                before = workers_of(it)
                it.process.send_signal(signal.SIGHUP)
                wait_for_reload(it, before=before)
            assert not found.done["refused"]
            assert it.stop() == 0
            until(lambda: found.done["refused"], within_s=SOON_S)
        assert found.failed == []
        assert min(found.done[what] for what in ("kept", "new", "login")) > 10
        assert "refused to gracefully stop" not in it.output()
        assert "did not stop in time" not in it.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_request_fails_when_every_process_of_the_service_gets_the_signal(
    number: int, tmp_path: Path, wechat: Running
) -> None:
    users = itertools.count()
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", ACCESS_LOG="none") as it:
        with load(it.url, mint=lambda: it.mint(f"user-{next(users)}")) as found:
            until(lambda: min(found.done[what] for what in ("kept", "new", "login")) > 10, within_s=SOON_S)
            for pid in (*workers_of(it), it.process.pid):  # as a terminal does it, and some supervisors
                os.kill(pid, number)
            assert it.process.wait(STOP_WITHIN_S) == 0
        assert found.failed == []
        assert "Unexpected exit" not in it.output()


def test_a_login_that_waits_for_wechat_is_answered_after_the_stop_was_asked_for(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        body = f'{{"code": "{it.mint(fault="delay", delay_s=1.5)}"}}'
        head = f"POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        host, _, port = it.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=SOON_S) as connection:
            connection.sendall(f"{head}\r\n{body}".encode())
            time.sleep(0.5)
            it.process.send_signal(signal.SIGTERM)
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert it.process.wait(SOON_S) == 0


def test_a_worker_that_is_killed_again_and_again_takes_nobody_with_it(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        stays, *_ = sorted(workers_of(it))
        for _ in range(3):
            (other,) = workers_of(it) - {stays}
            os.kill(other, signal.SIGKILL)
            until(lambda other=other: len(now := workers_of(it)) == 2 and other not in now, within_s=SOON_S)  # type: ignore[misc]
        assert stays in workers_of(it)
        assert ask(it.url).startswith(b"HTTP/1.1 200")
        assert it.stop() == 0


def test_a_slow_request_at_an_old_worker_keeps_no_new_client_waiting(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", WECHAT_TIMEOUT="8") as it:
        before = workers_of(it)
        codes = [it.mint(f"user-{number}", fault="delay", delay_s=6) for number in range(6)]
        with ThreadPoolExecutor(len(codes)) as pool:
            slow = [pool.submit(requests.post, f"{it.url}/login", json={"code": code}, timeout=30) for code in codes]
            time.sleep(0.5)
            it.process.send_signal(signal.SIGHUP)
            until(lambda: workers_of(it) - before, within_s=SOON_S)
            # While the old workers have work to do. TCP tries again after one second, which is for the moment in which
            # one of them is shut, and after three: then it was still shut.
            waited = []
            while not all(one.done() for one in slow):
                began = time.monotonic()
                assert ask(it.url).startswith(b"HTTP/1.1 200")
                waited.append(time.monotonic() - began)
                time.sleep(0.02)
            assert {one.result().status_code for one in slow} == {200}
        wait_for_reload(it, before=before)
        assert max(waited) < 2.9


def test_a_signal_that_meets_another_is_not_lost(tmp_path: Path) -> None:
    with serving(SERVER.replace("lambda: broken", "lambda: None"), tmp_path) as it:
        for _ in range(2_000):
            it.process.send_signal(signal.SIGHUP)
        assert it.stop() == 0


def test_a_signal_that_another_thread_gets_wakes_the_main_process(tmp_path: Path) -> None:
    program = """
import signal, threading, time
from authsvc.http.server import _Interrupt

came = []
signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
interrupt = _Interrupt(lambda: bool(came))

def get_one():
    time.sleep(0.5)  # the main thread waits by then
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)

threading.Thread(target=get_one, daemon=True).start()
interrupt.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=clean_environment(), timeout=SOON_S, check=False
    )
    assert done.returncode == 0


def test_signals_that_mean_nothing_to_the_main_process_do_not_end_it(tmp_path: Path) -> None:
    with serving(SERVER, tmp_path) as it:
        before = workers_of(it)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            it.process.send_signal(number)
        assert ask(it.url).startswith(b"HTTP/1.1 200")
        assert workers_of(it) == before
        assert it.stop() == 0


def test_the_service_goes_on_while_no_process_can_be_made(tmp_path: Path) -> None:
    program = SERVER.replace("import os, sys", FORK_FAILS)
    with serving(program, tmp_path) as it:
        before = workers_of(it)
        os.kill(min(before), signal.SIGKILL)
        until(lambda: "no new worker could be made" in it.output(), within_s=SOON_S)
        until(lambda: len(now := workers_of(it)) == 2 and min(before) not in now, within_s=SOON_S)
        assert it.stop() == 0


def test_a_worker_that_dies_while_the_service_starts_does_not_keep_it_from_being_ready(tmp_path: Path) -> None:
    program = SERVER.replace("    gateway,", f"    lambda: once_dead({str(tmp_path / 'died')!r}),")
    with serving(program, tmp_path) as it:
        until(lambda: it.output().count("READY") == 1, within_s=SOON_S)
        assert (tmp_path / "died").exists()
        assert it.stop() == 0


def test_an_unknown_fault_at_the_start_of_a_worker_is_told_without_its_words(tmp_path: Path) -> None:
    port = free_port()
    program = SERVER.replace("    gateway,", "    lambda: secretive(),")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", program, str(port)], stdout=log, stderr=log)
    try:
        until(lambda: "a worker cannot start: ValueError" in (tmp_path / "log").read_text(), within_s=SOON_S)
    finally:
        process.terminate()
        process.wait(SOON_S)
    assert "SECRETMARKER" not in (tmp_path / "log").read_text()


# ---- SIGHUP -------------------------------------------------------------------------------------


def test_a_reload_takes_new_settings(tmp_path: Path, wechat: Running) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("AUTHSVC_AUDIENCE=before\n")
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        before = workers_of(it)
        dotenv.write_text("AUTHSVC_AUDIENCE=after\n")
        it.process.send_signal(signal.SIGHUP)
        wait_for_reload(it, before=before)
        for _ in range(4):
            assert jwt.decode(it.token(), options={"verify_signature": False})["aud"] == "after"


def test_a_reload_that_is_asked_for_during_the_start_comes_after_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "authsvc", "serve", "--or-sandbox"],
            cwd=tmp_path,
            env=clean_environment(PORT=str(free_port()), WORKERS="2"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    it = Running(process, log, "")
    try:
        until(lambda: holds(process.pid, signal.SIGHUP), within_s=SOON_S)
        process.send_signal(signal.SIGHUP)
        until(lambda: "reloading" in it.output(), within_s=SOON_S)
        assert "listens" in it.output()
    finally:
        assert it.stop() == 0
    assert "Traceback" not in it.output()


def holds(pid: int, number: int) -> bool:
    """Whether a process has blocked a signal."""
    fields = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(fields["SigBlk"], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("AUTHSVC_AUDIENCE=\x07\n", "AUTHSVC_AUDIENCE"),
        ("AUTHSVC_STORE=sqlite:////nowhere/at/all.db\n", "cannot make"),
        ("AUTHSVC_THREADS=32\n", "AUTHSVC_THREADS has changed: that takes a restart"),
        ("AUTHSVC_WECHAT_TIMEOUT=30\n", "AUTHSVC_WECHAT_TIMEOUT has changed: that takes a restart"),
    ],
)
def test_a_reload_with_settings_that_cannot_be_used_is_refused_and_changes_nothing(
    tmp_path: Path, wechat: Running, settings: str, why: str
) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        before = workers_of(it)
        (tmp_path / ".env").write_text(settings)
        it.process.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in it.output(), within_s=SOON_S)
        assert why in it.output()
        assert workers_of(it) == before
        assert it.log_in().status_code == 200


def test_workers_stay_whose_successors_cannot_start(tmp_path: Path) -> None:
    with serving(SERVER, tmp_path) as it:
        until(lambda: it.output().count("READY") == 1, within_s=SOON_S)
        before = workers_of(it)
        it.process.send_signal(signal.SIGHUP)
        until(lambda: it.output().count("READY") == 2, within_s=SOON_S)
        assert "the old one stays" in it.output()
        assert workers_of(it) == before
        os.kill(min(before), signal.SIGKILL)  # its successor is made of what was good
        until(lambda: len(now := workers_of(it)) == 2 and min(before) not in now, within_s=SOON_S)
        assert ask(it.url, "/").startswith(b"HTTP/1.1 200")
        assert it.stop() == 0


def test_in_a_terminal_a_hangup_ends_the_service(tmp_path: Path) -> None:
    port = free_port()
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "authsvc", "serve", "--or-sandbox"],
        cwd=tmp_path,
        env=clean_environment(PORT=str(port), WORKERS="1"),
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    )
    try:
        give_up_at = time.monotonic() + SOON_S
        while True:
            while select.select([leader], [], [], 0)[0]:
                os.read(leader, 65_536)
            with contextlib.suppress(OSError):
                ask(f"http://127.0.0.1:{port}")
                break
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        assert process.wait(SOON_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)


# ---- systemd ------------------------------------------------------------------------------------


@contextlib.contextmanager
def manager(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as it:
        it.bind(str(path))
        it.settimeout(SOON_S)
        yield it


def test_systemd_is_told_of_the_start_a_reload_and_the_stop(
    tmp_path: Path, wechat: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with manager(tmp_path / "notify") as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with service(tmp_path, wechat_url=wechat.url) as it:
            assert systemd.recv(4096) == b"READY=1"
            it.process.send_signal(signal.SIGHUP)
            told = systemd.recv(4096).split(b"\n")
            assert told[0] == b"RELOADING=1"
            assert told[1].startswith(b"MONOTONIC_USEC=")
            assert systemd.recv(4096) == b"READY=1"
            assert it.stop() == 0
            assert systemd.recv(4096) == b"STOPPING=1"


# ---- threads ---------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux can be told so")
def test_of_a_worker_s_threads_the_one_that_answers_checks_alone_interrupts_others(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="1") as it:
        it.check(it.token())
        (worker,) = workers_of(it)
        policies = [os.sched_getscheduler(int(thread.name)) for thread in Path(f"/proc/{worker}/task").iterdir()]
        assert policies.count(os.SCHED_OTHER) == 1
        assert policies.count(os.SCHED_BATCH) == len(policies) - 1


# ---- slow clients -------------------------------------------------------------------------------


def test_a_worker_does_not_look_for_garbage_in_what_was_there_when_it_began(tmp_path: Path) -> None:
    counts = 'f"{gc.get_freeze_count()} {len(gc.get_objects())}"'
    program = SERVER.replace("import os, sys", "import gc, os, sys").replace("str(os.getpid())", counts)
    with serving(program, tmp_path) as it:
        left_alone, looked_through = map(int, requests.get(it.url, timeout=SOON_S).text.split())
    assert left_alone > 10 * looked_through


def test_five_hundred_clients_that_send_a_byte_a_second_leave_the_rest_alone(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="1", ACCESS_LOG="none") as it:
        token = it.token()
        host, _, port = it.url.removeprefix("http://").partition(":")
        slow = [socket.create_connection((host, int(port)), timeout=SOON_S) for _ in range(500)]
        head = b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n"
        try:
            for number, connection in enumerate(slow):
                connection.sendall(head if number % 2 else head[:40])  # half of them have not even got to the body
            for _ in range(3):
                for connection in slow:
                    connection.sendall(b"x")
                until(lambda: it.check(token)["is_login"], within_s=SOON_S)
                assert it.log_in().status_code == 200
                time.sleep(1)
        finally:
            for connection in slow:
                connection.close()


def test_a_body_that_never_comes_does_not_have_a_worker_killed(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="1") as it:
        host, _, port = it.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=SOON_S) as connection:
            connection.sendall(b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
            time.sleep(0.2)
            assert it.stop() == 0
            assert connection.recv(4096).startswith(b"HTTP/1.1 ")
        assert "did not stop in time" not in it.output()


@pytest.mark.parametrize(("length", "status"), [(60_000, b"200"), (150_000, b"431")])
def test_headers_of_64_kib_are_taken_and_those_of_twice_as_many_are_refused(
    length: int, status: bytes, tmp_path: Path
) -> None:
    with serving(SERVER, tmp_path) as it:
        host, _, port = it.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=SOON_S) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * length + b"\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 " + status)


def test_who_does_not_send_the_body_in_time_is_told_so_and_let_go(tmp_path: Path) -> None:
    program = SERVER.replace("longest_body=lambda path: 4096", "longest_body=lambda path: 4096, body_within_s=0.5")
    program = program.replace("def app(environ, start_response):", READING_APP)
    program = program.replace("import os, sys", "import gc, os, sys\ngc.disable()")  # it may be long until it runs
    with serving(program, tmp_path) as it:
        host, _, port = it.url.removeprefix("http://").partition(":")
        for sent in (
            b"Content-Length: 10\r\n\r\n",
            b"Content-Length: 10\r\n\r\nsome",
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n9\r\nsome",
        ):
            with socket.create_connection((host, int(port)), timeout=SOON_S) as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + sent)
                answer = b"".join(iter(lambda open=connection: open.recv(4096), b""))  # type: ignore[misc]
                assert answer.startswith(b"HTTP/1.1 408 ")
        assert '"level": "error"' not in it.output(), "it is the client's fault, and there may be thousands of them"


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", 200),
        (b"5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n", 200),
        (b"0\r\n\r\n", 200),
        (b"", 400),
        (b"5\r\nhello\r\n", 400),
        (b"9\r\nhello", 400),
        (b"5\r\nhello\r\nZZ\r\n", 400),
        (b"5\r\nhello\r\n0\r\n", 400),
        (b"5\r\nhello\r\n0\r\nX-Trailer: a\r\n\r\n", 400),
    ],
)
def test_chunks_that_do_not_come_to_their_end_are_no_body(serving_reader: Running, chunks: bytes, status: int) -> None:
    host, _, port = serving_reader.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SOON_S) as connection:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + chunks)
        if not chunks.endswith(b"\r\n\r\n"):
            connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 %d " % status)


# ---- memory -------------------------------------------------------------------------------------


def test_requests_that_are_over_take_no_memory(serving_reader: Running) -> None:
    def send(number: int) -> None:
        with requests.Session() as session:
            for _ in range(number):
                assert session.post(serving_reader.url, data=b"x", timeout=SOON_S).status_code == 200

    send(200)
    before_kb = memory_kb(workers_of(serving_reader))
    send(4_000)
    assert memory_kb(workers_of(serving_reader)) - before_kb < 4_000, "a KB each"


def memory_kb(pids: set[int]) -> int:
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(each.partition("VmRSS:")[2].split()[0]) for each in status)
