"""The limit of logins over real workers: each by itself, and all of them in one Redis."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import requests

from tests.support.processes import until
from tests.support.servers import RedisServer, own_server
from tests.support.service import Running, Service, service

SOON_S: Final = 30


def statuses(it: Service, times: int) -> list[int]:
    """Of logins of as many users, each on a connection of its own, so that all workers get some."""
    return [
        requests.post(f"{it.url}/login", json={"code": it.mint(f"user-{number}")}, timeout=30).status_code
        for number in range(times)
    ]


def test_in_memory_all_workers_together_let_no_more_in_than_the_rate(tmp_path: Path, wechat: Running) -> None:
    with service(tmp_path, wechat_url=wechat.url, WORKERS="2", LOGIN_RATE="10/day") as it:
        found = statuses(it, 40)
        assert set(found) == {200, 429}
        assert 5 < found.count(200) <= 10


def test_in_redis_the_rate_is_exact_over_all_workers_and_without_it_each_counts_by_itself(
    tmp_path: Path, wechat: Running
) -> None:
    with (
        own_server(RedisServer) as redis,
        service(tmp_path, wechat_url=wechat.url, WORKERS="2", LOGIN_RATE="10/day", LIMITS_URL=redis.url) as it,
    ):
        assert statuses(it, 16) == [200] * 10 + [429] * 6
        redis.kill()
        started = time.monotonic()
        assert set(statuses(it, 30)) == {200, 429}
        assert time.monotonic() - started < 3 * 30 * 0.5 + 2
        redis.start()
        until(lambda: set(statuses(it, 10)) == {429}, within_s=SOON_S)  # what it had counted, it has still: its log
        assert "Traceback" not in it.output()
