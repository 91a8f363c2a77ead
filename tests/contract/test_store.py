"""What every side store must do: logins, and what processes share. One suite for all backends (see conftest)."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import pytest

from authsvc.errors import StoreUnavailable, UserBanned
from authsvc.store.protocol import Store
from authsvc.store.rows import KEPT_LOGINS, STATE_ACTIVE, LoginRow, SharedValue, UserRow
from tests.support.users import NOW, TTL_S, USER, ban, forget, login, unban, user_id

THREADS: Final = 16


def sids(store: Store, appid: str = "wx-a", openid: str = "oUser", *, now: int = NOW) -> list[str]:
    return [row.sid for row in store.logins(user_id(appid, openid), now=now)]


# ---- put_login: the login -----------------------------------------------------------------------


def test_a_login_comes_back_as_it_was_put(store: Store) -> None:
    row = replace(login("s1"), sealed_session_key=bytes(range(256)), started_at_us=NOW * 1_000_000 + 1)
    store.put_login(row, unionid=None)
    assert store.logins(USER, now=NOW) == (row,)


def test_the_longest_names_fit(store: Store) -> None:
    row = login("s" * 64, appid="a" * 64, openid="o" * 128)
    store.put_login(row, unionid="u" * 128)
    assert store.logins(row.user, now=NOW) == (row,)
    user = store.user(row.user)
    assert user is not None
    assert user.unionid == "u" * 128


def test_of_a_users_logins_the_three_that_started_last_stay(store: Store) -> None:
    assert KEPT_LOGINS == 3
    for second, sid in enumerate(["a", "b", "c", "d", "e"]):
        store.put_login(login(sid, at=NOW + second), unionid=None)
    assert sids(store) == ["e", "d", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_logins_that_finish_out_of_order_are_kept_by_their_starts(store: Store, seed: int) -> None:
    rows = [replace(login(f"s{n}"), started_at_us=NOW * 1_000_000 + n) for n in range(6)]
    random.Random(seed).shuffle(rows)
    for row in rows:
        store.put_login(row, unionid=None)
    assert sids(store) == ["s5", "s4", "s3"]


def test_a_login_that_started_before_the_three_that_stay_is_not_kept(store: Store) -> None:
    for second in (1, 2, 3):
        store.put_login(login(f"s{second}", at=NOW + second), unionid=None)
    store.put_login(replace(login("late", at=NOW + 9), started_at_us=NOW * 1_000_000), unionid=None)
    assert sids(store) == ["s3", "s2", "s1"]


def test_logins_that_started_in_the_same_microsecond_are_ordered_by_sid(store: Store) -> None:
    for sid in ["b", "C", "a", "D"]:
        store.put_login(login(sid), unionid=None)
    assert sids(store) == ["b", "a", "D"]


def test_a_user_of_two_apps_keeps_three_logins_in_each(store: Store) -> None:
    for n in range(4):
        store.put_login(login(f"a{n}", appid="wx-a", at=NOW + n), unionid=None)
        store.put_login(login(f"b{n}", appid="wx-b", at=NOW + n), unionid=None)
    assert sids(store, "wx-a") == ["a3", "a2", "a1"]
    assert sids(store, "wx-b") == ["b3", "b2", "b1"]


def test_two_users_never_share_a_login_or_a_state(store: Store) -> None:
    store.put_login(login("s1", openid="oOne"), unionid="u1")
    store.put_login(login("s1", openid="oTwo"), unionid="u2")
    ban(store, user_id("wx-a", "oOne"))
    assert sids(store, openid="oOne") == sids(store, openid="oTwo") == ["s1"]
    assert store.user(user_id("wx-a", "oTwo")) == UserRow(user_id("wx-a", "oTwo"), STATE_ACTIVE, 0, "u2", NOW, NOW)


@pytest.mark.parametrize("other", ["ouser", "OUSER", "oUseR"])
def test_openids_that_differ_only_in_case_are_two_users(store: Store, other: str) -> None:
    store.put_login(login("s1"), unionid=None)
    assert store.logins(user_id("wx-a", other), now=NOW) == ()
    assert store.user(user_id("wx-a", other)) is None
    assert forget(store, user_id("wx-a", other)) is None
    store.put_login(login("s1", openid=other), unionid=None)
    assert sids(store) == sids(store, openid=other) == ["s1"]


def test_appids_and_sids_that_differ_only_in_case_are_different(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    store.put_login(login("S1"), unionid=None)
    store.put_login(login("s1", appid="WX-A"), unionid=None)
    assert sids(store) == ["s1", "S1"]
    assert sids(store, "WX-A") == ["s1"]


def test_a_sid_that_is_taken_is_refused_and_nothing_is_written(store: Store) -> None:
    first = login("s1")
    store.put_login(first, unionid=None)
    with pytest.raises(StoreUnavailable):
        store.put_login(login("s1", at=NOW + 5), unionid="u1")
    assert store.logins(USER, now=NOW) == (first,)
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, 0, None, NOW, NOW)


# ---- put_login: expiry --------------------------------------------------------------------------


@pytest.mark.parametrize(("after_s", "there"), [(0, True), (TTL_S - 1, True), (TTL_S, False), (TTL_S + 1, False)])
def test_a_login_is_gone_on_its_expiry_second(store: Store, after_s: int, there: bool) -> None:
    store.put_login(login("s1"), unionid=None)
    assert bool(store.logins(USER, now=NOW + after_s)) is there


def test_a_put_removes_the_users_expired_logins(store: Store) -> None:
    store.put_login(login("old", ttl_s=10), unionid=None)
    store.put_login(login("new", at=NOW + 10), unionid=None)
    assert sids(store, now=NOW) == ["new"]


def test_a_put_leaves_a_login_that_has_a_second_to_live(store: Store) -> None:
    store.put_login(login("old", ttl_s=11), unionid=None)
    store.put_login(login("new", at=NOW + 10), unionid=None)
    assert sids(store, now=NOW + 10) == ["new", "old"]


def test_expired_logins_do_not_take_the_place_of_living_ones(store: Store) -> None:
    store.put_login(login("long", at=NOW), unionid=None)
    for n in (1, 2):
        store.put_login(login(f"short{n}", at=NOW + n, ttl_s=5), unionid=None)
    store.put_login(login("new", at=NOW + 10), unionid=None)
    assert sids(store, now=NOW + 10) == ["new", "long"]


def test_another_users_expired_logins_are_nobodys_business(store: Store) -> None:
    store.put_login(login("old", openid="oOther", ttl_s=10), unionid=None)
    store.put_login(login("new", at=NOW + 10), unionid=None)
    assert sids(store, openid="oOther", now=NOW) == ["old"]


# ---- put_login: the user ------------------------------------------------------------------------


def test_the_first_login_makes_an_active_user(store: Store) -> None:
    assert store.user(USER) is None
    store.put_login(login("s1"), unionid=None)
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, 0, None, NOW, NOW)


def test_a_later_login_moves_last_login_and_not_first_login(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    store.put_login(login("s2", at=NOW + 60), unionid=None)
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, 0, None, NOW, NOW + 60)


def test_last_login_never_goes_back(store: Store) -> None:
    store.put_login(login("s1", at=NOW + 60), unionid=None)
    store.put_login(login("s2", at=NOW), unionid=None)
    user = store.user(USER)
    assert user is not None
    assert user.last_login_at == NOW + 60


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ([None], None),
        (["u1"], "u1"),
        ([None, "u1"], "u1"),
        (["u1", None], "u1"),
        (["u1", "u2"], "u2"),
        (["u1", None, "u2", None], "u2"),
    ],
)
def test_a_unionid_is_kept_until_another_one_comes(store: Store, given: list[str | None], known: str | None) -> None:
    for n, unionid in enumerate(given):
        store.put_login(login(f"s{n}", at=NOW + n), unionid=unionid)
    user = store.user(USER)
    assert user is not None
    assert user.unionid == known


def test_a_banned_user_is_refused_and_nothing_is_written(store: Store) -> None:
    row = login("s1")
    store.put_login(row, unionid="u1")
    assert ban(store, USER)
    before = store.user(USER)
    with pytest.raises(UserBanned):
        store.put_login(login("s2", at=NOW + TTL_S), unionid="u2")
    assert store.user(USER) == before
    assert store.logins(USER, now=NOW) == (row,)


def test_a_ban_ends_when_the_state_is_set_back(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    ban(store, USER)
    unban(store, USER)
    store.put_login(login("s2", at=NOW + 1), unionid=None)
    assert sids(store) == ["s2", "s1"]


def test_a_ban_in_one_app_is_none_in_another(store: Store) -> None:
    for appid in ("wx-a", "wx-b"):
        store.put_login(login("s1", appid=appid), unionid="u1")
    ban(store, USER)
    store.put_login(login("s2", appid="wx-b", at=NOW + 1), unionid="u1")
    assert sids(store, "wx-b") == ["s2", "s1"]


def test_a_refused_login_leaves_the_store_at_work(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    ban(store, USER)
    for n in range(5):
        with pytest.raises(UserBanned):
            store.put_login(login(f"x{n}"), unionid=None)
    store.put_login(login("s1", openid="oOther"), unionid=None)
    assert sids(store, openid="oOther") == ["s1"]


# ---- the other methods --------------------------------------------------------------------------


def test_a_user_who_never_came_has_no_logins(store: Store) -> None:
    assert store.logins(USER, now=NOW) == ()


# ---- keys that are burnt ------------------------------------------------------------------------


def test_logins_under_a_burnt_key_are_dropped_and_no_others(store: Store) -> None:
    burnt, good = b"\x01\x00%_\xff", b"\x01\x00%_\xfe"
    for number, start in enumerate((burnt, good, burnt, good)):
        row = replace(login(f"s{number}", openid=f"o{number % 3}"), sealed_session_key=start + b"rest")
        store.put_login(row, unionid=None)
    assert store.drop_sealed(burnt) == 2
    assert [sids(store, openid=f"o{user}") for user in range(3)] == [["s3"], ["s1"], []]
    assert store.drop_sealed(burnt) == 0
    assert store.user(user_id("wx-a", "o2")) is not None


def test_all_logins_under_a_burnt_key_are_dropped_however_many(store: Store) -> None:
    for number in range(1_001):
        store.put_login(replace(login("s", openid=f"o{number}"), sealed_session_key=b"burnt"), unionid=None)
    assert store.drop_sealed(b"burnt") == 1_001
    assert sids(store, openid="o1000") == []


def test_revoked_keys_are_remembered_with_their_first_time(store: Store) -> None:
    assert store.revoked_keys() == {}
    store.note_revoked_keys({"a" * 43: NOW, "A" * 43: NOW + 1})
    store.note_revoked_keys({"a" * 43: NOW + 9, "00000001": NOW + 2})
    assert store.revoked_keys() == {"a" * 43: NOW, "A" * 43: NOW + 1, "00000001": NOW + 2}


def test_sixteen_threads_note_the_same_keys_and_all_succeed(store: Store) -> None:
    revoked = {f"{number:08x}": NOW for number in range(5)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: store.note_revoked_keys(revoked), range(16)))
    assert store.revoked_keys() == revoked


# ---- a session_key that was renewed -----------------------------------------------------------------


def _three_logins(store: Store) -> list[LoginRow]:
    rows = [login(f"s{n}", at=NOW + n) for n in range(3)]
    for row in rows:
        store.put_login(row, unionid=None)
    return rows


def test_a_renewed_login_stands_alone_and_other_users_logins_stay(store: Store) -> None:
    rows = _three_logins(store)
    store.put_login(login("s2", openid="oOther"), unionid=None)
    store.put_login(login("s2", appid="wx-b"), unionid=None)
    renewed = replace(rows[2], sealed_session_key=b"renewed")
    store.replace_logins(USER, rows, by=renewed)
    assert store.logins(USER, now=NOW) == (renewed,)
    assert sids(store, openid="oOther") == sids(store, "wx-b") == ["s2"]


def test_a_login_that_is_not_among_those_that_go_survives_a_renewal(store: Store) -> None:
    rows = _three_logins(store)
    renewed = replace(rows[1], sealed_session_key=b"renewed")
    store.replace_logins(USER, rows[:2], by=renewed)
    assert store.logins(USER, now=NOW) == (rows[2], renewed)


def test_a_login_that_was_renewed_meanwhile_does_not_go(store: Store) -> None:
    rows = _three_logins(store)
    renewed = replace(rows[2], sealed_session_key=b"renewed")
    store.replace_logins(USER, rows, by=renewed)
    store.replace_logins(USER, rows, by=None)
    assert store.logins(USER, now=NOW) == (renewed,)


def test_logins_that_are_replaced_by_nothing_are_gone_and_the_user_stays(store: Store) -> None:
    rows = _three_logins(store)
    store.replace_logins(USER, rows[:2], by=None)
    assert sids(store) == ["s2"]
    assert store.user(USER) is not None


def test_nothing_is_written_for_a_user_that_there_is_not(store: Store) -> None:
    store.replace_logins(USER, [login("s1")], by=login("s1"))
    assert sids(store) == []
    assert store.user(USER) is None


def test_nothing_is_written_for_a_user_that_is_banned(store: Store) -> None:
    rows = _three_logins(store)
    ban(store, USER)
    store.replace_logins(USER, rows, by=rows[2])
    assert sids(store) == []


def test_logins_and_renewals_at_once_leave_three_at_most(store: Store) -> None:
    def visit(n: int) -> None:
        row = login(f"s{n:03}", at=NOW + n)
        store.put_login(row, unionid=None)
        if n % 3 == 0 and (found := store.logins(USER, now=NOW)):
            store.replace_logins(USER, found, by=replace(found[0], sid=f"r{n:03}"))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(visit, range(100)))
    # A renewal does not count them: the next login does.
    store.put_login(login("last", at=NOW + 200), unionid=None)
    assert 1 <= len(sids(store)) <= KEPT_LOGINS


# ---- values that processes share ----------------------------------------------------------------------

SHARED: Final = SharedValue("name", bytes(range(256)), NOW + 10)


def test_a_shared_value_comes_back_until_the_second_of_its_end(store: Store) -> None:
    assert store.shared("name", now=NOW) is None
    store.share(SHARED)
    assert store.shared("name", now=NOW + 9) == SHARED
    assert store.shared("name", now=NOW + 10) is None
    assert store.shared("NAME", now=NOW) is None


def test_a_shared_value_takes_the_place_of_the_one_before(store: Store) -> None:
    store.share(SHARED)
    another = replace(SHARED, value=b"another", expires_at=NOW + 5)
    for _ in range(2):
        store.share(another)
    assert store.shared("name", now=NOW) == another


def test_the_first_value_is_kept_while_it_lives_and_replaced_when_it_has_ended(store: Store) -> None:
    later = replace(SHARED, value=b"later", expires_at=NOW + 20)
    assert store.share_first(SHARED, now=NOW) is True
    assert store.share_first(later, now=NOW + 9) is False
    assert store.shared("name", now=NOW) == SHARED
    assert store.share_first(later, now=NOW + 10) is True
    assert store.shared("name", now=NOW + 10) == later


def test_of_sixteen_threads_that_want_to_be_the_first_one_is(store: Store) -> None:
    for round_ in range(10):
        values = [SharedValue(f"name{round_}", bytes([n]), NOW + 10) for n in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as threads:
            took = list(threads.map(lambda value: store.share_first(value, now=NOW), values))
        assert took.count(True) == 1
        assert store.shared(f"name{round_}", now=NOW) == values[took.index(True)]


def test_sixteen_threads_share_a_value_and_all_succeed(store: Store) -> None:
    values = [replace(SHARED, value=bytes([n])) for n in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(store.share, values))
    assert store.shared("name", now=NOW) in values


@pytest.mark.parametrize("change", [{"value": b"another"}, {"expires_at": NOW + 11}, {"name": "other"}])
def test_only_the_very_value_is_taken_away(store: Store, change: dict[str, object]) -> None:
    store.share(SHARED)
    store.unshare(replace(SHARED, **change))  # type: ignore[arg-type]
    assert store.shared("name", now=NOW) == SHARED
    store.unshare(SHARED)
    assert store.shared("name", now=NOW) is None


def test_shared_values_under_a_burnt_key_are_dropped_and_are_no_logins(store: Store) -> None:
    store.share(replace(SHARED, value=b"burnt rest"))
    store.share(replace(SHARED, name="good", value=b"good rest"))
    assert store.drop_sealed(b"burnt") == 0
    assert store.shared("name", now=NOW) is None
    assert store.shared("good", now=NOW) is not None


# ---- the rest -----------------------------------------------------------------------------------


def test_a_ping_to_a_working_store_returns(store: Store) -> None:
    store.ping()


def test_a_repr_of_a_login_does_not_show_what_is_sealed() -> None:
    assert "sealed s1" not in repr(login("s1"))


# ---- threads ------------------------------------------------------------------------------------

PUTS: Final = 40


def test_sixteen_threads_put_logins_of_different_users_and_none_is_lost(store: Store) -> None:
    def visit(user: int) -> None:
        for n in range(PUTS):
            store.put_login(login(f"s{n}", openid=f"oUser{user}", at=NOW + n), unionid=None)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(visit, range(THREADS)))
    for user in range(THREADS):
        assert sids(store, openid=f"oUser{user}") == [f"s{PUTS - 1}", f"s{PUTS - 2}", f"s{PUTS - 3}"]


def test_sixteen_threads_put_logins_of_one_user_and_the_three_that_started_last_stay(store: Store) -> None:
    def visit(thread: int) -> None:
        for n in range(PUTS):
            at = NOW + n * THREADS + thread
            store.put_login(login(f"s{at - NOW}", at=at), unionid=None)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(visit, range(THREADS)))
    last = PUTS * THREADS - 1
    assert sids(store) == [f"s{last}", f"s{last - 1}", f"s{last - 2}"]
    user = store.user(USER)
    assert user is not None
    assert user.last_login_at == NOW + last


def test_sixteen_first_logins_of_one_user_at_once_all_succeed(store: Store) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        for round_ in range(5):
            openid = f"oRound{round_}"
            rows = [login(f"s{n:02}", openid=openid) for n in range(THREADS)]
            list(threads.map(lambda row: store.put_login(row, unionid=None), rows))
            assert sids(store, openid=openid) == ["s15", "s14", "s13"]


def test_after_a_ban_no_login_is_written_by_any_thread(store: Store) -> None:
    store.put_login(login("first"), unionid=None)

    def visit(thread: int) -> None:
        for n in range(PUTS):
            at = NOW + 1 + n * THREADS + thread
            if thread == 0 and n == PUTS // 2:
                ban(store, USER)
                banned_logins.append(store.logins(USER, now=NOW))
            try:
                store.put_login(login(f"s{at}", at=at), unionid=None)
            except UserBanned:
                return

    banned_logins: list[tuple[LoginRow, ...]] = []
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(visit, range(THREADS)))
    assert banned_logins == [store.logins(USER, now=NOW)]
