"""/metrics over real workers: each answer is of all of them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from authsvc.errors import CannotCount
from authsvc.http.metricsfolder import metrics_folder
from tests.support.counting import with_counting
from tests.support.processes import children, until
from tests.support.service import Running, Service, service, wait_for

OPS_TOKEN: Final = "ops-token-of-an-operator"
SOON_S: Final = 30


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process, and of the services that it starts."""
    found = tmp_path / "tmp"
    found.mkdir()
    monkeypatch.setenv("TMPDIR", str(found))
    monkeypatch.setattr("tempfile.tempdir", str(found))
    return found


def scraped(it: Service) -> dict[str, float]:
    """On a connection of its own: any worker may answer."""
    reply = requests.get(f"{it.url}/metrics", headers={"Authorization": f"Bearer {OPS_TOKEN}"}, timeout=SOON_S)
    assert reply.status_code == 200
    lines = (line.rpartition(" ") for line in reply.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_whichever_worker_answers_tells_of_all_and_what_a_dead_one_counted_is_kept(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", OPS_TOKEN=OPS_TOKEN) as it:
        for number in range(12):
            body = {"code": it.mint(f"user-{number}")}
            assert requests.post(f"{it.url}/login", json=body, timeout=SOON_S).status_code == 200
        assert {scraped(it)["authsvc_tokens_issued_total"] for _ in range(10)} == {12}
        before = set(children(it.process.pid))
        dies = min(before)
        os.kill(dies, signal.SIGKILL)
        until(lambda: len(now := set(children(it.process.pid))) == 2 and dies not in now, within_s=SOON_S)
        assert it.log_in().status_code == 200
        found = [scraped(it) for _ in range(10)]
        assert {each["authsvc_tokens_issued_total"] for each in found} == {13}
        assert found[0]['authsvc_store_seconds_count{operation="put_login"}'] == 13
        assert found[0]['authsvc_wechat_call_seconds_count{call="jscode2session"}'] == 13
        assert found[0]["authsvc_signing_key_age_seconds"] >= 0
        assert 0 < found[0]["authsvc_next_rotation_seconds"] <= 2_592_000


def test_workers_one_after_the_other_count_on_in_the_same_files(tmp_path: Path) -> None:
    with_counting(
        tmp_path,
        """
for number in range(1, 31):
    it.kill(*it.workers(2, logins=1))
    assert it.logins() == 2 * number
assert it.places() == {"0", "1"}, it.places()
assert it.told()['authsvc_wechat_call_seconds_count{call="jscode2session"}'] == 60
""",
    )


def test_workers_at_the_same_time_do_not_write_over_each_other(tmp_path: Path) -> None:
    with_counting(tmp_path, "it.workers(4, logins=200); assert it.logins() == 800, it.logins()")


@pytest.mark.parametrize("then", ["forget_ended(folder)", "it.workers(1, logins=0)"])
def test_what_was_true_of_a_worker_ends_with_it_and_what_it_counted_stays(tmp_path: Path, then: str) -> None:
    with_counting(
        tmp_path,
        f"""
IS_DOWN = 'authsvc_wechat_down{{call="jscode2session"}}'
(down,) = it.workers(1, logins=1, is_down=True)
it.workers(1, logins=1)
forget_ended(folder)  # while it lives nothing is taken from it
assert it.told()[IS_DOWN] == 1
it.kill(down)
{then}
assert (folder / "gauge_livemax_1.db").exists()
assert (folder / "gauge_livemax_0.db").exists() is {then.startswith("it.")}
assert (it.told()[IS_DOWN], it.logins()) == (0, 2)
""",
    )


TORN: Final = {
    "empty": b"",
    "a byte": b"\x10",
    "an end that is not there": b"\xff\xff\x00\x00" + bytes(60),
    "no key": (40).to_bytes(4, "little") + bytes(4) + (12).to_bytes(4, "little") + b"{}nothing{}x" + bytes(16),
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN)
def test_a_torn_file_is_left_out_and_keeps_no_worker_from_its_place(tmp_path: Path, content: bytes) -> None:
    with_counting(
        tmp_path,
        f"""
it.workers(1, logins=1)
torn = folder / "counter_9.db"
torn.write_bytes({content!r})
assert it.logins() == 1
torn.rename(folder / "counter_1.db")
it.workers(1, logins=1)
assert it.logins() == 2
""",
    )


def test_reloads_lose_no_count_and_leave_no_files(tmp_path: Path, temporary: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", OPS_TOKEN=OPS_TOKEN) as it:
        (folder,) = temporary.glob("authsvc-*")
        for number in range(1, 4):
            assert it.log_in(it.mint(f"user-{number}")).status_code == 200
            assert scraped(it)["authsvc_tokens_issued_total"] == number
            before = set(children(it.process.pid))
            it.process.send_signal(signal.SIGHUP)
            until(
                lambda before=before: len(now := set(children(it.process.pid))) == 2 and not now & before,  # type: ignore[misc]
                within_s=SOON_S,
            )
        assert {path.stem.split("_")[-1] for path in folder.glob("*.db")} == {"0", "1", "2"}
        assert scraped(it)["authsvc_tokens_issued_total"] == 3


def test_a_login_does_not_fail_because_where_the_workers_count_is_gone(
    tmp_path: Path, temporary: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, OPS_TOKEN=OPS_TOKEN) as it:
        (folder,) = temporary.glob("authsvc-*")
        shutil.rmtree(folder)
        assert it.log_in().status_code == 200
        assert it.check("x")["reason"] == "malformed"
        (worker,) = children(it.process.pid)
        os.kill(worker, signal.SIGKILL)
        until(lambda: children(it.process.pid) not in ([], [worker]), within_s=SOON_S)
        wait_for(f"{it.url}/healthz", it.process, it.log)
        it.token()
        assert scraped(it)["authsvc_tokens_issued_total"] == 1  # of the new worker, in a new folder
        with metrics_folder(is_needed=True):
            assert folder.is_dir()  # another service that starts sees that it is in use


def test_without_a_place_for_temporary_files_the_service_starts_where_no_figures_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_args: object, **_kwargs: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", none)
    with metrics_folder(is_needed=False) as folder:
        assert folder is None
    with pytest.raises(CannotCount, match="set TMPDIR"), metrics_folder(is_needed=True):
        pass


def test_a_reload_brings_the_route_and_takes_it_away(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        for settings, expected in ((f"AUTHSVC_OPS_TOKEN={OPS_TOKEN}\n", 401), ("", 404)):
            (tmp_path / ".env").write_text(settings)
            it.process.send_signal(signal.SIGHUP)
            until(
                lambda expected=expected: requests.get(f"{it.url}/metrics", timeout=SOON_S).status_code == expected,  # type: ignore[misc]
                within_s=SOON_S,
            )


def test_where_the_workers_count_is_gone_when_the_service_has_ended(
    tmp_path: Path, temporary: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url, OPS_TOKEN=OPS_TOKEN) as it:
        it.token()
        assert [path.stat().st_mode & 0o777 for path in temporary.glob("authsvc-*")] == [0o700]
        assert it.stop() == 0
    assert list(temporary.glob("authsvc-*")) == []


# ---- what a killed service leaves behind ----------------------------------------------------------


def test_what_a_killed_service_left_is_removed_by_the_next_one_and_nobody_elses(
    tmp_path: Path, temporary: Path, wechat: Running
) -> None:
    with (
        metrics_folder(is_needed=True) as of_this_process,
        service(tmp_path, wechat_url=wechat.url, OPS_TOKEN=OPS_TOKEN) as it,
    ):
        (left,) = set(temporary.glob("authsvc-*")) - {of_this_process}
        (worker,) = children(it.process.pid)
        os.kill(worker, signal.SIGSTOP)  # it would end soon: one that hangs is no service either
        try:
            it.stop(signal.SIGKILL)
            assert left.is_dir()
            with metrics_folder(is_needed=True) as of_the_next:
                assert set(temporary.glob("authsvc-*")) == {of_this_process, of_the_next}
        finally:
            os.kill(worker, signal.SIGKILL)


def test_nothing_is_removed_that_only_has_the_name(tmp_path: Path, temporary: Path) -> None:
    with metrics_folder(is_needed=True) as folder:
        assert folder is not None
        start = folder.name[: folder.name.rindex("-") + 1]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (temporary / f"{start}link").symlink_to(elsewhere)
    (temporary / f"{start}file").touch()
    of_others = temporary / f"{start}others"
    of_others.mkdir()
    is_root = os.geteuid() == 0
    if is_root:  # else everything here is of one user
        os.chown(of_others, 65_534, 65_534)
    with metrics_folder(is_needed=True):
        pass
    assert (elsewhere / "precious").exists()
    assert (temporary / f"{start}link").is_symlink()
    assert (temporary / f"{start}file").exists()
    assert of_others.exists() is is_root


def test_a_service_that_starts_removes_no_folder_that_another_one_is_about_to_have(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp
    seen = []

    def make_while_another_starts(**options: Any) -> str:
        made: str = make(**options)
        monkeypatch.setattr("tempfile.mkdtemp", make)
        with metrics_folder(is_needed=True):
            seen.append(Path(made).is_dir())
        return made

    monkeypatch.setattr("tempfile.mkdtemp", make_while_another_starts)
    with metrics_folder(is_needed=True) as folder:
        assert folder is not None
        assert folder.is_dir()
    assert seen == [True]


def test_where_nothing_can_be_locked_the_service_counts_all_the_same(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with metrics_folder(is_needed=True) as one, metrics_folder(is_needed=True) as other:
        assert {one, other} == set(temporary.glob("authsvc-*"))
    assert list(temporary.glob("authsvc-*")) == []
