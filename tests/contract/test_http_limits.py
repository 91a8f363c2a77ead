"""How often one client may log in, and what is said of a proxy that nobody told of."""

from __future__ import annotations

import ipaddress
import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import limits
import pytest
import structlog.testing
from flask.testing import FlaskClient
from limits.strategies import SlidingWindowCounterRateLimiter
from werkzeug.test import TestResponse

from authsvc.errors import SettingsError, StoreUnavailable
from authsvc.http.limits import IN_MEMORY, LoginLimit, MemoryCounters, login_limit
from authsvc.store import FORWARDING_HEADER_SEEN
from authsvc.store.memory import MemoryStore
from tests.support.app import FakeService
from tests.support.clock import NOW

CODES = itertools.count()
TWO_A_DAY = LoginLimit("2 per 1 day", IN_MEMORY)


def log_in(client: FlaskClient, address: str = "203.0.113.1", **headers: str) -> TestResponse:
    return client.post(
        "/login", json={"code": f"code{next(CODES)}"}, environ_base={"REMOTE_ADDR": address}, headers=headers
    )


# ---- the limit ----------------------------------------------------------------------------------


def test_who_logs_in_too_often_is_told_to_wait_and_wechat_is_not_asked() -> None:
    it = FakeService(login_limit=TWO_A_DAY)
    client = it.client()
    for number in range(2):
        assert client.post("/login", json={"code": f"code{number}"}).status_code == 200
    reply = client.post("/login", json={"code": "code2"})
    assert (reply.status_code, reply.mimetype) == (429, "application/problem+json")
    assert reply.get_json()["code"] == "rate_limited"
    assert reply.headers["Retry-After"] == "60"
    assert len(it.wechat.asked) == 2


def test_failed_logins_count_too() -> None:
    client = FakeService(login_limit=TWO_A_DAY).client()
    assert [client.post("/login", data=b"?").status_code for _ in range(3)] == [415, 415, 429]


def test_other_clients_and_other_routes_are_not_limited() -> None:
    client = FakeService(login_limit=TWO_A_DAY).client()
    assert [log_in(client).status_code for _ in range(3)] == [200, 200, 429]
    assert log_in(client, "203.0.113.2").status_code == 200
    for path in ("/checklogin", "/.well-known/jwks.json", "/healthz", "/docs", "/openapi.json"):
        for _ in range(4):
            assert client.get(path).status_code == 200


def test_the_addresses_of_one_ipv6_network_are_one_client() -> None:
    client = FakeService(login_limit=TWO_A_DAY).client()
    addresses = ("2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1:ffff::")
    assert [log_in(client, address).status_code for address in addresses] == [200, 200, 429]
    assert log_in(client, "2001:db8:0:2::1").status_code == 200


def test_an_ipv4_address_is_the_same_client_whichever_way_it_is_written() -> None:
    client = FakeService(login_limit=TWO_A_DAY).client()
    mapped = [f"::ffff:{address}" for address in ("203.0.113.1", "203.0.113.2")]
    assert ipaddress.ip_network(f"{mapped[0]}/64", strict=False) == ipaddress.ip_network(
        f"{mapped[1]}/64", strict=False
    )
    assert [log_in(client, address).status_code for address in (mapped[0], "203.0.113.1", mapped[0])] == [200, 200, 429]
    assert log_in(client, mapped[1]).status_code == 200


def test_behind_a_trusted_proxy_its_clients_are_told_apart() -> None:
    client = FakeService(login_limit=TWO_A_DAY, trusted_proxies=1).client()
    for _ in range(2):
        assert log_in(client, "127.0.0.1", **{"X-Forwarded-For": "203.0.113.1"}).status_code == 200
    assert log_in(client, "127.0.0.1", **{"X-Forwarded-For": "203.0.113.1"}).status_code == 429
    assert log_in(client, "127.0.0.1", **{"X-Forwarded-For": "203.0.113.2"}).status_code == 200


@pytest.mark.parametrize(
    "forms",
    [("203.0.113.1:4444", "203.0.113.1:5555", "203.0.113.1"), ("[2001:db8::1]:1", "[2001:db8::2]", "2001:db8::3")],
)
def test_the_port_that_some_proxies_write_is_no_part_of_the_address(forms: tuple[str, ...]) -> None:
    client = FakeService(login_limit=TWO_A_DAY, trusted_proxies=1).client()
    statuses = [log_in(client, "127.0.0.1", **{"X-Forwarded-For": form}).status_code for form in forms]
    assert statuses == [200, 200, 429]
    assert log_in(client, "127.0.0.1", **{"X-Forwarded-For": "203.0.113.2:4444"}).status_code == 200


@pytest.mark.parametrize("trusted", [1, 2])
@pytest.mark.parametrize(
    "written",
    [
        *("198.51.100.%d", "198.51.100.%d, 198.51.100.%d", "unknown%d", ",,%d,", "[2001:db8:%d::1]", "2001:db8:%d::1"),
        *('"198.51.100.%d', '"198.51.100.%d\\', '[2001:db8:%d::1]"', '198.51.100.%d, "[2001:db8::1]", "'),
    ],
)
def test_whatever_a_client_writes_before_what_proxies_add_does_not_count(written: str, trusted: int) -> None:
    client = FakeService(login_limit=TWO_A_DAY, trusted_proxies=trusted).client()

    def status(address: str, number: int) -> int:
        forwarded = [written.replace("%d", str(number)), address, *["10.0.0.1"] * (trusted - 1)]
        return log_in(client, "127.0.0.1", **{"X-Forwarded-For": ", ".join(forwarded)}).status_code

    assert [status("203.0.113.1", number) for number in range(3)] == [200, 200, 429]
    assert status("203.0.113.2", 3) == 200
    assert log_in(client, "127.0.0.1").status_code == 200  # and it is not taken for the proxy


@pytest.mark.parametrize("trusted", [1, 2])
def test_where_a_line_could_not_be_read_the_one_before_it_names_nobody(trusted: int) -> None:
    client = FakeService(login_limit=TWO_A_DAY, trusted_proxies=trusted).client()
    forms = [f"198.51.100.{number}, " for number in range(3)]
    statuses = [log_in(client, "127.0.0.1", **{"X-Forwarded-For": form}).status_code for form in forms]
    assert statuses == [200, 200, 429]


def test_an_address_with_more_behind_it_than_a_port_is_none() -> None:
    client = FakeService(login_limit=TWO_A_DAY, trusted_proxies=1).client()
    forms = [f"[2001:db8:{number}::1]x" for number in range(3)]
    statuses = [log_in(client, "127.0.0.1", **{"X-Forwarded-For": form}).status_code for form in forms]
    assert statuses == [200, 200, 429]


def test_without_a_trusted_proxy_nobody_is_another_client_by_saying_so() -> None:
    client = FakeService(login_limit=TWO_A_DAY).client()
    statuses = [log_in(client, **{"X-Forwarded-For": f"198.51.100.{number}"}).status_code for number in range(3)]
    assert statuses == [200, 200, 429]


# ---- the counters in memory ---------------------------------------------------------------------

MINUTE = limits.parse("2 per 1 minute")
START = NOW - NOW % 60  # of a window


@dataclass
class WallClock:
    """`limits` takes no clock: this one stands in for its `time`."""

    at: float = START

    def time(self) -> float:
        return self.at


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock()
    monkeypatch.setattr("limits.storage.memory.time", clock)
    return clock


@pytest.fixture
def room_for_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authsvc.http.limits._MAX_COUNTERS", 4)


def test_a_window_ends_in_its_time_although_nobody_came_in_between(wall: WallClock) -> None:
    limiter = SlidingWindowCounterRateLimiter(MemoryCounters())
    allowed = []
    for after_s in (0, 1, 2, 59, 60, 61, 62, 180, 181, 182):
        wall.at = START + after_s
        allowed.append(limiter.hit(MINUTE, "a client"))
    # The window before counts for the part of it that is less than a minute ago, rounded down.
    assert allowed == [True, True, False, False, False, True, False, True, True, False]


def test_counters_that_are_over_are_forgotten_when_others_log_in(wall: WallClock) -> None:
    counters = MemoryCounters()
    limiter = SlidingWindowCounterRateLimiter(counters)
    for number in range(100):
        assert limiter.hit(MINUTE, f"client {number}")
    wall.at += 120
    for number in range(60):
        assert limiter.hit(MINUTE, f"another {number}")
    for held in (counters.storage, counters.expirations, counters.locks):
        assert len(held) == 60


@pytest.mark.usefixtures("wall", "room_for_four")
def test_however_many_addresses_there_are_so_many_counters_are_kept_and_no_more() -> None:
    counters = MemoryCounters()
    limiter = SlidingWindowCounterRateLimiter(counters)
    for number in range(1_000):
        assert limiter.hit(MINUTE, f"client {number}")
    for held in (counters.storage, counters.expirations, counters.locks):
        assert len(held) == 4
    assert [limiter.hit(MINUTE, "client 999") for _ in range(2)] == [True, False]


@pytest.mark.usefixtures("room_for_four")
@pytest.mark.parametrize("url", [IN_MEMORY, "redis://127.0.0.1"])
def test_the_app_counts_in_bounded_memory_also_while_its_redis_is_down(url: str) -> None:
    with socket.socket() as nobody_answers:
        nobody_answers.bind(("127.0.0.1", 0))
        if url != IN_MEMORY:
            url += f":{nobody_answers.getsockname()[1]}"
        client = FakeService(login_limit=LoginLimit("2 per 1 day", url)).client()
        assert [log_in(client).status_code for _ in range(3)] == [200, 200, 429]
        for number in range(4):
            assert log_in(client, f"198.51.100.{number}").status_code == 200
        assert log_in(client).status_code == 200


def test_no_thread_looks_after_the_counters() -> None:
    of_others = threading.enumerate()
    limiter = SlidingWindowCounterRateLimiter(MemoryCounters())
    assert limiter.hit(MINUTE, "a client")
    for thread in set(threading.enumerate()).difference(of_others):
        thread.join(1)  # one that the library starts by itself, and that was cancelled before it did anything
    assert limiter.hit(MINUTE, "another client")
    assert set(threading.enumerate()) <= set(of_others)


def test_logins_at_once_are_counted_one_after_the_other() -> None:
    inside: list[int] = []
    most_inside: list[int] = []

    class SlowCounters(MemoryCounters):
        def incr(self, key: str, expiry: float, amount: int = 1) -> int:
            inside.append(1)
            most_inside.append(len(inside))
            time.sleep(0.001)  # where another one would meet it
            inside.pop()
            return super().incr(key, expiry, amount)

    limiter = SlidingWindowCounterRateLimiter(SlowCounters())
    rate = limits.parse("10 per 1 day")
    with ThreadPoolExecutor(8) as threads:
        allowed = list(threads.map(lambda _: limiter.hit(rate, "a client"), range(40)))
    assert allowed.count(True) == 10
    assert max(most_inside) == 1


# ---- the settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "url", "workers", "expected"),
    [
        ("300/minute", IN_MEMORY, 1, "300 per 1 minute"),
        ("300/minute", IN_MEMORY, 4, "75 per 1 minute"),
        ("10/minute", IN_MEMORY, 4, "3 per 1 minute"),
        ("1 per 2 hours", IN_MEMORY, 8, "1 per 2 hour"),
        ("300/minute", "redis://db/0", 4, "300 per 1 minute"),
    ],
)
def test_each_worker_has_its_part_of_a_rate_that_it_counts_in_memory(
    rate: str, url: str, workers: int, expected: str
) -> None:
    found = login_limit(rate, url, workers=workers)
    assert found is not None
    assert found.rate == expected


def test_nothing_is_limited_that_is_limited_elsewhere() -> None:
    assert login_limit("off", IN_MEMORY, workers=1) is None


@pytest.mark.parametrize("rate", ["", "300", "0/minute", "-1/minute", "10/minute;1/second", "often", "OFF"])
def test_a_rate_that_is_none_is_refused(rate: str) -> None:
    with pytest.raises(SettingsError, match="AUTHSVC_LOGIN_RATE"):
        login_limit(rate, IN_MEMORY, workers=1)


@pytest.mark.parametrize(
    "url",
    ["", "memory", "memory://x", "redis", "redis+cluster://h", "memcached://h", "async+redis://h", "SECRETMARKER://"],
)
@pytest.mark.parametrize("rate", ["300/minute", "off"])
def test_a_place_for_counts_that_is_none_is_refused_without_being_repeated(rate: str, url: str) -> None:
    with pytest.raises(SettingsError, match="AUTHSVC_LIMITS_URL") as caught:
        login_limit(rate, url, workers=1)
    assert "SECRETMARKER" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "valkey", "valkeys", "valkey+sentinel"])
def test_counts_may_be_in_a_redis_and_its_password_is_not_shown(scheme: str) -> None:
    found = login_limit("300/minute", f"{scheme}://:SECRETMARKER@h:1/main", workers=1)
    assert found is not None
    assert found.url == f"{scheme.replace('valkey', 'redis')}://:SECRETMARKER@h:1/main"
    assert "SECRETMARKER" not in repr(found)


# ---- proxies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_a_proxy_that_nobody_told_of_is_said_once_and_noted_for_doctor(header: str) -> None:
    it = FakeService()
    workers = [it.client(), it.client()]
    with structlog.testing.capture_logs() as lines:
        for client in workers * 2:
            log_in(client, **{header: "for=203.0.113.9"})
    said = [line for line in lines if line["event"] == "forwarding_header_seen"]
    assert [(line["log_level"], line["header"]) for line in said] == [("warning", header)]
    assert "203.0.113.9" not in str(said)
    noted = it.store.shared(FORWARDING_HEADER_SEEN, now=NOW)
    assert noted is not None
    assert noted.value == header.encode()
    assert it.store.shared(FORWARDING_HEADER_SEEN, now=NOW + 86_400) is None


def test_of_a_proxy_that_is_trusted_nothing_is_said() -> None:
    it = FakeService(trusted_proxies=1)
    with structlog.testing.capture_logs() as lines:
        log_in(it.client(), **{"X-Forwarded-For": "203.0.113.9"})
    assert "forwarding_header_seen" not in [line["event"] for line in lines]
    assert it.store.shared(FORWARDING_HEADER_SEEN, now=NOW) is None


def test_a_proxy_is_said_while_the_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_self: MemoryStore, _value: object, *, now: int) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(MemoryStore, "share_first", gone)
    with structlog.testing.capture_logs() as lines:
        reply = log_in(FakeService().client(), **{"X-Forwarded-For": "203.0.113.9"})
    assert reply.status_code == 200
    assert "forwarding_header_seen" in [line["event"] for line in lines]
