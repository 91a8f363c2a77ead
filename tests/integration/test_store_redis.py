"""The side store in Redis: addresses, what ends by itself, what is refused, what is in the names of keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from redis import Redis

from authsvc.errors import SettingsError, StoreUnavailable
from authsvc.store import SharedValue, UserRow, open_store, prepare_store, store_address
from authsvc.store.redis import RedisStore
from authsvc.store.redisclient import redis_client
from authsvc.store.redisurl import redis_address
from tests.support.databases import REDIS, redis_place
from tests.support.servers import OwnServer, RedisServer, own_server
from tests.support.service import SERVICE_TOKEN, Running, service
from tests.support.users import NOW, USER, ban, forget, login, rows_of

PREFIX: Final = "authsvc:"


@pytest.fixture
def url() -> Iterator[str]:
    with redis_place(REDIS) as it:
        yield it


@pytest.fixture
def store(url: str) -> Iterator[RedisStore]:
    prepare_store(url)
    with closing(open_store(url)) as it:
        assert isinstance(it, RedisStore)
        yield it


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """Somebody else's connection."""
    with closing(redis_client(redis_address(url))) as it:
        yield it


def keys(client: Any, url: str) -> list[str]:
    return [key.decode() for key in client.scan_iter(match=f"{redis_address(url).prefix}*", count=10_000)]


# ---- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown", "hosts"),
    [
        ("redis://db", "redis://db:6379/0", [("db", 6379)]),
        ("valkey://db:7000/3", "redis://db:7000/3", [("db", 7000)]),
        ("rediss://:SECRETMARKER@db/0", "rediss://:***@db:6379/0", [("db", 6379)]),
        ("redis://me:SECRETMARKER%2F@[::1]:1/2", "redis://me:***@[::1]:1/2", [("::1", 1)]),
        ("redis://db?prefix=a.b:", "redis://db:6379/0?prefix=a.b:", [("db", 6379)]),
        (
            "redis+sentinel://me:SECRETMARKER@s1,s2:5000/main/4?sentinel_password=SECRETMARKER",
            "redis+sentinel://me:***@s1:26379,s2:5000/main/4",
            [("s1", 26379), ("s2", 5000)],
        ),
        ("rediss+sentinel://s1/main", "rediss+sentinel://s1:26379/main/0", [("s1", 26379)]),
        ("redis+cluster://a:1,[::1]", "redis+cluster://a:1,[::1]:6379", [("a", 1), ("::1", 6379)]),
        ("valkeys+cluster://a?prefix=x:", "rediss+cluster://a:6379?prefix=x:", [("a", 6379)]),
        ("rediss://db/0?ssl_ca_certs=/etc/ca.pem", "rediss://db:6379/0", [("db", 6379)]),
    ],
)
def test_an_address_is_understood_and_shown_without_what_is_secret(
    url: str, shown: str, hosts: list[tuple[str, int]]
) -> None:
    found = redis_address(url)
    assert (found.shown, list(found.hosts)) == (shown, hosts)
    assert store_address(url).shown == shown
    assert "SECRETMARKER" not in repr(found)


def test_a_password_is_taken_as_it_is_meant() -> None:
    found = redis_address("redis://me:p%40ss%3F%2F@db/1")
    assert (found.username, found.password, found.database) == ("me", "p@ss?/", 1)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://a,b/0",
        "redis://a/0/1",
        "redis://a/x",
        "redis://a/-1",
        "redis://a:port",
        "redis://a:99999",
        "redis://a/0#x",
        "redis://a/0?prefix=",
        "redis://a/0?prefix=*",
        "redis://a/0?prefix={x}",
        "redis://a/0?db=1",
        "rediss://a/0?ssl_cert_reqs=none",
        "redis://a/0?ssl_ca_certs=/etc/ca.pem",
        "redis+sentinel://a/main?ssl_ca_certs=/etc/ca.pem",
        "redis+sentinel://a",
        "redis+sentinel://a/main/x",
        "redis+cluster://a/1",
        "redis+cluster://a,,b",
        "redis+unix://a",
        "redis:a",
        "redis://me:SECRETMARKER@",
        "redis://a/\x00",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    for use in (store_address, prepare_store, open_store):
        with pytest.raises(SettingsError) as refused:
            use(url)
        assert "SECRETMARKER" not in str(refused.value) + repr(refused.getrepr(style="native"))


# ---- what ends by itself ------------------------------------------------------------------------


def test_a_login_and_its_index_end_on_the_second_of_its_expiry(store: RedisStore, client: Any, url: str) -> None:
    prefix = redis_address(url).prefix
    store.put_login(login("s1"), unionid=None)
    short = login("s2", at=NOW + 1, ttl_s=60)
    store.put_login(short, unionid=None)
    index, first, second = (
        f"{prefix}logins:{{{USER.digest}}}",
        f"{prefix}login:{{{USER.digest}}}:s1",
        f"{prefix}login:{{{USER.digest}}}:s2",
    )
    assert client.expiretime(first) == login("s1").expires_at
    assert client.expiretime(second) == short.expires_at
    assert client.expiretime(index) == login("s1").expires_at, "with its last login"
    store.replace_logins(USER, [login("s1")], by=None)
    assert client.expiretime(index) == short.expires_at
    renewed = replace(short, sealed_session_key=b"renewed", expires_at=short.expires_at + 5)
    store.replace_logins(USER, [short], by=renewed)
    assert client.expiretime(index) == client.expiretime(second) == renewed.expires_at


def test_a_login_whose_time_is_over_by_the_servers_clock_is_gone(store: RedisStore, client: Any, url: str) -> None:
    store.merge([replace(login("s1"), created_at=1, expires_at=2)])
    assert store.logins(USER, now=0) == ()
    assert not [key for key in keys(client, url) if "login:" in key]


def test_users_and_bans_never_end(store: RedisStore, client: Any, url: str) -> None:
    store.put_login(login("s1"), unionid=None)
    ban(store, USER)
    assert [client.ttl(key) for key in keys(client, url) if "user:" in key] == [-1]
    forget(store, USER)
    assert [client.ttl(key) for key in keys(client, url) if "ban:" in key] == [-1]


def test_a_shared_value_ends_by_itself(store: RedisStore, client: Any, url: str) -> None:
    value = SharedValue("name", b"value", NOW + 10)
    key = f"{redis_address(url).prefix}shared:name"
    for share in (lambda: store.share(value), lambda: store.share_first(value, now=NOW)):
        share()
        assert client.expiretime(key) == NOW + 10
        store.unshare(value)


# ---- what is in there ---------------------------------------------------------------------------


def test_of_a_forgotten_user_no_key_and_no_value_has_the_openid(store: RedisStore, client: Any, url: str) -> None:
    def everything() -> str:
        found = keys(client, url)
        values = [client.hgetall(key) if client.type(key) == b"hash" else key for key in found]
        return f"{found} {values}"

    store.put_login(login("s1"), unionid="u1")
    ban(store, USER)
    assert USER.openid in everything()
    assert not [key for key in keys(client, url) if USER.openid in key]
    forget(store, USER)
    assert USER.openid not in everything()
    assert USER.digest in everything()


def test_a_put_whose_answer_got_lost_may_be_said_again(store: RedisStore) -> None:
    row = login("s1")
    for _ in range(2):
        store.put_login(row, unionid=None)
    assert store.logins(USER, now=NOW) == (row,)


def test_a_renewal_whose_answer_got_lost_may_be_said_again(store: RedisStore) -> None:
    rows = [login("s1"), login("s2", at=NOW + 1)]
    for row in rows:
        store.put_login(row, unionid=None)
    renewed = replace(rows[1], sealed_session_key=b"renewed")
    for _ in range(2):
        store.replace_logins(USER, rows, by=renewed)
    assert store.logins(USER, now=NOW) == (renewed,)


def test_a_renewal_that_is_refused_takes_nothing_away(store: RedisStore) -> None:
    rows = [login("s1"), login("s2", at=NOW + 1)]
    for row in rows:
        store.put_login(row, unionid=None)
    with pytest.raises(StoreUnavailable):
        store.replace_logins(USER, rows[:1], by=replace(rows[1], sealed_session_key=b"another"))
    assert store.logins(USER, now=NOW) == (rows[1], rows[0])


def test_two_prefixes_are_two_stores(store: RedisStore, url: str) -> None:
    store.put_login(login("s1"), unionid=None)
    ban(store, USER)
    with redis_place(REDIS) as other_url:
        prepare_store(other_url)
        with closing(open_store(other_url)) as other:
            assert other.user(USER) is None
            other.put_login(login("s1"), unionid=None)
            assert other.census(now=NOW, start_bytes=5).users == 1


# ---- what is refused ----------------------------------------------------------------------------


def test_millions_of_somebody_elses_keys_do_not_make_a_page_slow(
    store: RedisStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_login(login("s1"), unionid=None)
    scans = 0
    scan = Redis.scan

    def counted(self: Redis, cursor: int = 0, **given: Any) -> Any:
        nonlocal scans
        scans += 1
        return scan(self, cursor, **given)

    monkeypatch.setattr(Redis, "scan", counted)
    with redis_place(REDIS) as other, closing(redis_client(redis_address(other))) as client:
        prefix = redis_address(other).prefix
        others = {f"{prefix}{number}": b"" for number in range(10_000)}
        client.mset(others)
        keys_there = client.dbsize()
        rows = rows_of(store, UserRow, at_most=1)
        client.delete(*others)
    assert {row.user for row in rows if isinstance(row, UserRow)} == {USER}
    assert scans < keys_there / 20


def test_an_older_program_refuses_what_a_newer_one_made(client: Any, url: str) -> None:
    prepare_store(url)
    prepare_store(url)
    client.set(f"{redis_address(url).prefix}schema", "9")
    with pytest.raises(StoreUnavailable, match="newer authsvc"):
        prepare_store(url)


@pytest.fixture
def own() -> Iterator[OwnServer]:
    with own_server(RedisServer) as it:
        yield it


def test_a_redis_that_may_throw_bans_away_is_refused_and_one_without_a_log_is_warned_of(own: OwnServer) -> None:
    assert prepare_store(own.url) == ()
    with closing(redis_client(redis_address(own.url))) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert prepare_store(own.url) == (), "as long as there is no limit"
        client.config_set("maxmemory", "100mb")
        for policy in ("allkeys-lru", "volatile-ttl"):
            client.config_set("maxmemory-policy", policy)
            with pytest.raises(StoreUnavailable, match=f"maxmemory-policy {policy}"):
                prepare_store(own.url)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "no")
        (said,) = prepare_store(own.url)
    assert said.startswith("WARNING: this Redis writes no log")


def test_a_redis_that_takes_no_writes_is_unavailable_until_it_does(own: OwnServer) -> None:
    prepare_store(own.url)
    with closing(redis_client(redis_address(own.url))) as client, closing(open_store(own.url)) as store:
        for name, no, yes in (("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")):
            client.config_set(name, no)
            for call in (store.ping, lambda: store.put_login(login("s1"), unionid=None)):
                with pytest.raises(StoreUnavailable):
                    call()
            assert store.logins(USER, now=NOW) == (), "it still reads"
            client.config_set(name, yes)
            store.ping()
        store.put_login(login("s1"), unionid=None)


def test_with_nobody_listening_it_is_unavailable_and_no_password_is_said() -> None:
    for kind in ("redis", "redis+cluster", "redis+sentinel"):
        url = f"{kind}://user:SECRETMARKER@127.0.0.1:1" + ("/main" if "sentinel" in kind else "")
        with closing(open_store(url)) as store:
            for use in (lambda: prepare_store(url), store.ping, lambda: store.put_login(login("s"), unionid=None)):  # noqa: B023
                with pytest.raises(StoreUnavailable) as failed:
                    use()
                assert "SECRETMARKER" not in str(failed.value) + repr(failed.getrepr(style="native"))
                assert failed.value.__cause__ is None


def test_an_error_has_nothing_of_what_was_sent(store: RedisStore, client: Any, url: str) -> None:
    client.set(f"{redis_address(url).prefix}logins:{{{USER.digest}}}", "no sorted set")
    with pytest.raises(StoreUnavailable) as failed:
        store.put_login(login("s1"), unionid="SECRETMARKER")
    assert str(failed.value) == "the side store did not answer (ResponseError, WRONGTYPE)"


def test_the_service_runs_on_it_with_two_workers(tmp_path: Path, wechat: Running, url: str) -> None:
    with service(tmp_path, wechat_url=wechat.url, STORE=url, WORKERS="2", SERVICE_TOKENS=SERVICE_TOKEN) as it:
        token = it.token("on-redis")
        assert it.check(token)["is_login"] is True
        data = it.order("open_data", user="on-redis")
        assert it.ask("decrypt", token, data).status_code == 200
        assert it.ask("check", token).json() == {"valid": True}
        assert it.session.get(f"{it.url}/readyz", timeout=10).json()["store"] == "ok"
        assert f"store: {store_address(url).shown}" in it.output()
    assert not list(tmp_path.glob("authsvc.db*"))
