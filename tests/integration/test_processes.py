"""Main process, workers and sandbox: who ends whom, and who takes whose place."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from authsvc.http.worker import END
from tests.support.processes import children, until, wait_until_gone
from tests.support.service import (
    Running,
    authsvc,
    clean_environment,
    free_port,
    running,
    service,
    wait_for,
)


def _keys_of(it: Running) -> str:
    keys: str = requests.get(f"{it.url}/readyz", timeout=10).json()["keys"]
    return keys


@contextlib.contextmanager
def _sandboxed(folder: Path, port: int, **settings: str) -> Iterator[Running]:
    with running(
        [sys.executable, "-m", "authsvc", "serve", "--or-sandbox"],
        log=folder / f"log-{port}",
        cwd=folder,
        environment=clean_environment(PORT=str(port), WORKERS="2", **settings),
        url=f"http://127.0.0.1:{port}",
        probe="/healthz",
    ) as it:
        yield it


def _stopped_in_time(folder: Path, *, after_s: float) -> bool:
    log = folder / f"log-{after_s}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "authsvc", "serve", "--or-sandbox"],
            cwd=folder,
            env=clean_environment(PORT=str(free_port()), WORKERS="2"),
            stdout=output,
            stderr=output,
        )
    try:
        give_up_at = time.monotonic() + 30
        while "Spawning worker-1" not in log.read_text():
            assert time.monotonic() < give_up_at
            time.sleep(0.005)
        time.sleep(after_s)
        process.terminate()
        assert process.wait(30) in (0, 1)
    finally:
        process.kill()
        process.wait()
    return "refused to gracefully stop" not in log.read_text()


def test_a_stop_in_the_first_moment_is_not_lost(tmp_path: Path) -> None:
    authsvc("keys", "init", cwd=tmp_path, SANDBOX="1")
    # granian itself loses a signal that meets the one or two milliseconds in which it sets up a worker; then the worker
    # is killed when its time is over. Without our part of it every one of these stops was lost.
    in_time = [_stopped_in_time(tmp_path, after_s=after_s) for after_s in (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)]
    assert in_time.count(True) >= 3


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_when_the_main_process_is_killed_nobody_is_left_behind(tmp_path: Path) -> None:
    port = free_port()
    with _sandboxed(tmp_path, port) as it:
        others = children(it.process.pid)
        assert len(others) == 3, "two workers and the sandbox"
        it.process.kill()
        it.process.wait()
        assert wait_until_gone(others, within_s=15) == []
    with _sandboxed(tmp_path, port):
        pass  # the port is free again


def test_a_worker_that_is_told_to_end_many_times_ends(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="1") as it:
        (worker,) = children(it.process.pid)
        with contextlib.suppress(ProcessLookupError):
            for _ in range(500):
                os.kill(worker, END)
        assert wait_until_gone([worker], within_s=15) == []
        wait_for(f"{it.url}/readyz", it.process, it.log)


def test_a_worker_that_is_killed_is_replaced_even_while_the_key_folder_cannot_be_used(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="1") as it:
        token = it.token()
        (tmp_path / "keys").chmod(0o755)
        (worker,) = children(it.process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_for(f"{it.url}/readyz", it.process, it.log)
        give_up_at = time.monotonic() + 20
        while children(it.process.pid) == [worker]:
            assert time.monotonic() < give_up_at
        wait_for(f"{it.url}/readyz", it.process, it.log)
        assert it.check(token)["is_login"] is True
        assert it.log_in().status_code == 200
        assert "chmod 700" in it.output()
        assert "Traceback" not in it.output()


def test_a_worker_that_cannot_have_the_last_keys_waits_for_them_and_the_others_go_on(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2") as it:
        # Both: one that is still on its way would wait for the keys too, and nobody be there to go on.
        until(lambda: all(f"Started worker-{number} runtime" in it.output() for number in (1, 2)), within_s=20)
        workers = children(it.process.pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # so that none has seen the new keys when one of their files goes
        assert authsvc("keys", "rotate", "--early", cwd=tmp_path).returncode == 0
        newest = max((tmp_path / "keys").glob("sign-*.pem"), key=lambda path: path.stat().st_mtime_ns)
        newest.rename(tmp_path / "away")
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: "worker_waits" in it.output(), within_s=20)
        until(lambda: _keys_of(it) == "not reloaded", within_s=3 * 1 + 2)
        assert workers[1] in children(it.process.pid)
        assert it.log_in().status_code == 200
        (tmp_path / "away").rename(newest)
        until(lambda: it.output().count('"keys_loaded"') == 2, within_s=3 * 5 + 2)
        assert _keys_of(it) == "ok"
        assert "Traceback" not in it.output()


def test_a_worker_that_waits_for_keys_stops_when_it_is_told_to(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="1") as it:
        (worker,) = children(it.process.pid)
        os.kill(worker, signal.SIGSTOP)
        assert authsvc("keys", "rotate", "--early", cwd=tmp_path).returncode == 0
        max((tmp_path / "keys").glob("sign-*.pem"), key=lambda path: path.stat().st_mtime_ns).unlink()
        os.kill(worker, signal.SIGKILL)
        until(lambda: "worker_waits" in it.output(), within_s=20)
        assert it.stop() == 0
        assert "refused to gracefully stop" not in it.output()


def test_a_second_run_that_cannot_start_leaves_the_first_ones_demo_alone(tmp_path: Path) -> None:
    port = free_port()
    with _sandboxed(tmp_path, port):
        second = authsvc("serve", "--or-sandbox", cwd=tmp_path, PORT=str(port))
        assert (second.returncode, "cannot listen" in second.stderr) == (2, True)
        assert authsvc("demo", cwd=tmp_path).returncode == 0
    assert not (tmp_path / ".sandbox" / "addresses.json").exists()


def test_a_run_that_ends_leaves_the_demo_of_a_later_one_alone(tmp_path: Path) -> None:
    with _sandboxed(tmp_path, free_port()) as earlier, _sandboxed(tmp_path, free_port()):
        assert earlier.stop() == 0
        assert authsvc("demo", cwd=tmp_path).returncode == 0


def test_the_demo_goes_through_with_the_type_for_old_libraries(tmp_path: Path) -> None:
    with _sandboxed(tmp_path, free_port(), TYP="JWT"):
        done = authsvc("demo", cwd=tmp_path)
        assert (done.returncode, "✗" in done.stdout) == (0, False)


def test_readyz_says_when_the_store_takes_nothing(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        assert requests.get(f"{it.url}/readyz", timeout=10).json()["store"] == "ok"
        database = sqlite3.connect(tmp_path / "authsvc.db", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        reply = requests.get(f"{it.url}/readyz", timeout=10)
        assert (reply.status_code, reply.json()["store"]) == (200, "unavailable")
        database.execute("ROLLBACK")
        database.close()
        assert requests.get(f"{it.url}/readyz", timeout=10).json()["store"] == "ok"
