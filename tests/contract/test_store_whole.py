"""What every side store must do as a whole: purge, count, hand out its rows, take over another one's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from authsvc.store.memory import MemoryStore
from authsvc.store.protocol import Store
from authsvc.store.rows import (
    STATE_ACTIVE,
    STATE_BANNED,
    AuditLine,
    Ban,
    LoginRow,
    RevokedKey,
    Row,
    SharedValue,
    UserRow,
)
from tests.support.users import NOW, TTL_S, USER, audit_line, ban, forget, login, rows_of, unban, user_id

KINDS: list[type[Row]] = [UserRow, LoginRow, Ban, AuditLine, RevokedKey]


def filled(store: Store, *, users: int = 7) -> None:
    """Users with logins, one banned, one banned and forgotten, one banned who never came; a revoked key."""
    for n in range(users):
        for m in range(3):
            store.put_login(login(f"s{m}", openid=f"oUser{n}", at=NOW + 10 * n + m), unionid=f"u{n}")
    ban(store, user_id(openid="oUser0"), at=NOW + 500)
    ban(store, user_id(openid="oUser1"), at=NOW + 501)
    forget(store, user_id(openid="oUser1"), at=NOW + 502)
    ban(store, user_id(openid="oNever"), at=NOW + 503)
    store.note_revoked_keys({"kid-1": NOW, "kid-2": NOW + 1})


def same(left: Iterable[Row], right: Iterable[Row]) -> bool:
    return sorted(map(repr, left)) == sorted(map(repr, right)) and set(left) == set(right)


# ---- purge --------------------------------------------------------------------------------------


def test_a_purge_takes_the_logins_that_have_ended_and_no_other(purging_store: Store) -> None:
    for n in range(4):
        purging_store.put_login(login("s1", openid=f"oUser{n}", ttl_s=10 + n), unionid=None)
    assert purging_store.purge(now=NOW + 11, at_most=1000) == 2
    left = [row.user.openid for row in rows_of(purging_store, LoginRow) if isinstance(row, LoginRow)]
    assert sorted(left) == ["oUser2", "oUser3"]
    assert purging_store.purge(now=NOW + 11, at_most=1000) == 0


def test_a_purge_leaves_users_bans_lines_and_revoked_keys_alone(purging_store: Store) -> None:
    filled(purging_store)
    kinds = [kind for kind in KINDS if kind is not LoginRow]
    before = [rows_of(purging_store, kind) for kind in kinds]
    assert purging_store.purge(now=NOW + 10 * TTL_S, at_most=1000) == 18
    assert [rows_of(purging_store, kind) for kind in kinds] == before
    assert rows_of(purging_store, LoginRow) == []


def test_a_purge_takes_no_more_at_once_than_it_was_asked_to(purging_store: Store) -> None:
    for n in range(5):
        purging_store.put_login(login("s1", openid=f"oUser{n}", ttl_s=10), unionid=None)
    assert [purging_store.purge(now=NOW + 10, at_most=2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_purge_takes_shared_values_that_have_ended(purging_store: Store) -> None:
    purging_store.share(SharedValue("old", b"value", NOW + 10))
    purging_store.share(SharedValue("new", b"value", NOW + 11))
    assert purging_store.purge(now=NOW + 10, at_most=1000) == 1
    assert purging_store.shared("old", now=NOW) is None
    assert purging_store.shared("new", now=NOW) is not None


# ---- census -------------------------------------------------------------------------------------


def test_an_empty_store_counts_nothing(store: Store) -> None:
    found = store.census(now=NOW, start_bytes=5)
    assert (found.users, found.banned, found.logins, found.ended_logins, found.audit_lines) == (0, 0, 0, 0, 0)
    assert dict(found.logins_by_start) == {}
    assert found.oldest_login_at is None


def test_a_census_counts_what_there_is(store: Store) -> None:
    filled(store)
    one = replace(login("s9", openid="oUser2", at=NOW - 5), sealed_session_key=b"other rest", expires_at=NOW + 100)
    store.put_login(replace(one, started_at_us=NOW * 2_000_000), unionid=None)
    found = store.census(now=NOW + 100, start_bytes=5)
    assert (found.users, found.banned, found.logins, found.ended_logins, found.audit_lines) == (7, 3, 18, 1, 4)
    assert dict(found.logins_by_start) == {b"\x00seal": 17, b"other": 1}
    assert found.oldest_login_at == NOW - 5
    assert found.engine


# ---- page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_most", [1, 2, 7, 1000])
def test_every_row_is_on_one_page(store: Store, at_most: int) -> None:
    filled(store)
    expected = MemoryStore()
    filled(expected)
    for kind in (UserRow, LoginRow, Ban, RevokedKey):
        found = rows_of(store, kind, at_most=at_most)
        assert len(found) == len(set(found))
        assert same(found, rows_of(expected, kind))
    lines = [row.what for row in rows_of(store, AuditLine, at_most=at_most) if isinstance(row, AuditLine)]
    assert sorted(lines) == ["ban", "ban", "ban", "forget"]


def test_the_pages_of_an_empty_store_are_empty(store: Store) -> None:
    for kind in KINDS:
        assert rows_of(store, kind) == []


def test_users_whose_names_share_a_beginning_are_each_on_one_page(store: Store) -> None:
    names = [("a", "o"), ("a", "oo"), ("a", "oO"), ("aa", "o"), ("A", "o"), ("a", "_"), ("a", "-"), ("b", "0")]
    for appid, openid in names:
        for sid in ("s", "S", "s-"):
            store.put_login(login(sid, appid=appid, openid=openid), unionid=None)
    for kind in (UserRow, LoginRow):
        found = [row for row in rows_of(store, kind, at_most=2) if isinstance(row, (UserRow, LoginRow))]
        assert {(row.user.appid, row.user.openid) for row in found} == set(names)
        assert len(found) == len(names) * (3 if kind is LoginRow else 1)


def test_a_page_of_a_large_store_is_about_as_large_as_was_wished(store: Store) -> None:
    lines = [audit_line("export", USER) for _ in range(2_000)]
    store.merge(lines)
    first, later = store.page(AuditLine, after="", at_most=100, identify=user_id)
    assert len(first) <= 1_000
    assert later is not None
    assert set(rows_of(store, AuditLine, at_most=100)) == set(lines)


# ---- merge --------------------------------------------------------------------------------------


def everything(store: Store) -> list[Row]:
    return [row for kind in KINDS for row in rows_of(store, kind)]


def test_a_store_takes_over_another_ones_rows_as_they_are_and_once(store: Store) -> None:
    other = MemoryStore()
    filled(other)
    for _ in range(2):
        store.merge(everything(other))
        assert same(everything(store), everything(other))


def test_what_was_taken_over_is_at_work(store: Store) -> None:
    other = MemoryStore()
    filled(other)
    store.merge(everything(other))
    user = user_id(openid="oUser3")
    assert store.logins(user, now=NOW) == other.logins(user, now=NOW)
    for openid in ("oUser0", "oUser1", "oNever"):
        found = store.user(user_id(openid=openid))
        assert found is not None
        assert found.state == STATE_BANNED
    assert store.revoked_keys() == {"kid-1": NOW, "kid-2": NOW + 1}
    store.put_login(login("new", openid="oUser3", at=NOW + 1000), unionid=None)
    assert [row.sid for row in store.logins(user, now=NOW)] == ["new", "s2", "s1"]
    assert forget(store, user) == 3


def test_of_many_logins_of_a_user_that_are_taken_over_the_three_that_started_last_stay(store: Store) -> None:
    for n in range(3):
        store.put_login(login(f"here-{n}", at=NOW + 2 * n), unionid=None)
    store.merge([login(f"there-{n}", at=NOW + 1 + 2 * n) for n in range(3)])
    assert [row.sid for row in store.logins(USER, now=NOW)] == ["there-2", "here-2", "there-1"]


def test_a_login_that_is_here_already_stays_as_it_is(store: Store) -> None:
    here = login("s1")
    store.put_login(here, unionid=None)
    store.merge([replace(here, sealed_session_key=b"another"), login("s2")])
    assert store.logins(USER, now=NOW) == (login("s2"), here)


def test_of_two_rows_of_a_user_every_visit_counts_and_of_what_was_set_the_later(store: Store) -> None:
    store.put_login(login("s1", at=NOW + 100), unionid="newer")
    ban(store, USER, at=NOW + 300)
    store.merge([UserRow(USER, STATE_ACTIVE, NOW + 200, "older", NOW, NOW + 50)])
    assert store.user(USER) == UserRow(USER, STATE_BANNED, NOW + 300, "newer", NOW, NOW + 100)
    store.merge([UserRow(USER, STATE_ACTIVE, NOW + 400, None, NOW + 10, NOW + 600)])
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, NOW + 400, "newer", NOW, NOW + 600)
    store.merge([UserRow(USER, STATE_ACTIVE, 0, "newest", NOW + 10, NOW + 700)])
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, NOW + 400, "newest", NOW, NOW + 700)


@pytest.mark.parametrize("here", [STATE_ACTIVE, STATE_BANNED])
@pytest.mark.parametrize("there", [STATE_ACTIVE, STATE_BANNED])
def test_of_two_states_of_the_same_time_the_ban_stays(store: Store, here: int, there: int) -> None:
    for state in (here, there):
        store.merge([UserRow(USER, state, NOW, None, NOW, NOW)])
    found = store.user(USER)
    assert found is not None
    assert found.state == min(here, there)


def test_a_user_who_never_came_there_keeps_the_first_login_of_here(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    store.merge([UserRow(USER, STATE_BANNED, NOW + 1, None, 0, 0)])
    assert store.user(USER) == UserRow(USER, STATE_BANNED, NOW + 1, None, NOW, NOW)


def test_bans_lines_and_revoked_keys_that_are_here_already_stay_as_they_are(store: Store) -> None:
    line = audit_line("ban", USER)
    store.note(line)
    store.note_revoked_keys({"kid": NOW})
    store.merge([Ban("d" * 32, NOW), replace(line, reason="another"), RevokedKey("kid", NOW + 1)])
    store.merge([Ban("d" * 32, NOW + 1)])
    assert everything(store) == [Ban("d" * 32, NOW), line, RevokedKey("kid", NOW)]
    assert unban(store, USER) is False


def test_nothing_is_taken_over_of_nothing(store: Store) -> None:
    store.merge([])
    assert everything(store) == []
