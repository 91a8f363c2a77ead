"""What every side store must do to a user for an operator: ban, unban, forget; and the lines about it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, Literal

import pytest

from authsvc.errors import StoreUnavailable, UserBanned
from authsvc.store.protocol import Store
from authsvc.store.rows import STATE_ACTIVE, STATE_BANNED, AuditLine, Ban, UserId, UserRow
from tests.support.users import NOW, USER, audit_line, ban, forget, login, rows_of, unban, user_id

WHAT: Final[tuple[Literal["ban", "unban", "export", "forget"], ...]] = ("ban", "unban", "export", "forget")


def audit(store: Store) -> list[AuditLine]:
    return [row for row in rows_of(store, AuditLine) if isinstance(row, AuditLine)]


# ---- ban ----------------------------------------------------------------------------------------


def test_a_ban_changes_the_state_with_its_time_and_nothing_else(store: Store) -> None:
    row = login("s1")
    store.put_login(row, unionid="u1")
    assert ban(store, USER, at=NOW + 7) is True
    assert store.user(USER) == UserRow(USER, STATE_BANNED, NOW + 7, "u1", NOW, NOW)
    assert store.logins(USER, now=NOW) == (row,)


def test_banning_a_banned_user_changes_nothing_and_leaves_no_line(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    ban(store, USER, at=NOW + 1)
    assert ban(store, USER, at=NOW + 2) is False
    found = store.user(USER)
    assert found is not None
    assert found.state_since == NOW + 1
    assert len(audit(store)) == 1


def test_a_user_who_has_never_come_can_be_banned_and_is_not_let_in(store: Store) -> None:
    assert ban(store, USER, at=NOW) is True
    assert store.user(USER) == UserRow(USER, STATE_BANNED, NOW, None, 0, 0)
    with pytest.raises(UserBanned):
        store.put_login(login("s1"), unionid="u1")
    assert store.user(USER) == UserRow(USER, STATE_BANNED, NOW, None, 0, 0)


def test_a_user_whose_ban_is_lifted_before_the_first_login_is_nobody_again(store: Store) -> None:
    ban(store, USER)
    assert unban(store, USER) is True
    assert store.user(USER) is None
    store.put_login(login("s1", at=NOW + 5), unionid=None)
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, 0, None, NOW + 5, NOW + 5)


def test_lifting_a_ban_changes_the_state_with_its_time_and_nothing_else(store: Store) -> None:
    store.put_login(login("s1"), unionid="u1")
    ban(store, USER)
    assert unban(store, USER, at=NOW + 9) is True
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, NOW + 9, "u1", NOW, NOW)


def test_lifting_a_ban_that_there_is_not_changes_nothing_and_leaves_no_line(store: Store) -> None:
    assert unban(store, USER) is False
    store.put_login(login("s1"), unionid=None)
    assert unban(store, USER) is False
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, 0, None, NOW, NOW)
    assert audit(store) == []


# ---- forget -------------------------------------------------------------------------------------


def test_of_a_forgotten_user_nothing_is_left(store: Store) -> None:
    for n in range(3):
        store.put_login(login(f"s{n}", at=NOW + n), unionid="u1")
    assert forget(store, USER) == 3
    assert store.user(USER) is None
    assert store.logins(USER, now=NOW) == ()
    assert rows_of(store, Ban) == []


def test_forgetting_a_user_touches_no_other(store: Store) -> None:
    rows = [login("s1", openid="oOther"), login("s1", appid="wx-b")]
    for row in (*rows, login("s1")):
        store.put_login(row, unionid="u1")
    forget(store, USER)
    for row in rows:
        assert store.logins(row.user, now=NOW) == (row,)
        assert store.user(row.user) == UserRow(row.user, STATE_ACTIVE, 0, "u1", NOW, NOW)


def test_forgetting_a_user_that_there_is_not_changes_nothing_and_leaves_no_line(store: Store) -> None:
    assert forget(store, USER) is None
    assert audit(store) == []


def test_a_forgotten_user_who_comes_again_is_a_new_one(store: Store) -> None:
    store.put_login(login("s1"), unionid="u1")
    forget(store, USER)
    store.put_login(login("s2", at=NOW + 60), unionid=None)
    assert store.user(USER) == UserRow(USER, STATE_ACTIVE, 0, None, NOW + 60, NOW + 60)


def test_forgetting_lifts_no_ban(store: Store) -> None:
    store.put_login(login("s1"), unionid="u1")
    ban(store, USER, at=NOW + 1)
    assert forget(store, USER, at=NOW + 2) == 1
    with pytest.raises(UserBanned):
        store.put_login(login("s2", at=NOW + 3), unionid="u1")
    assert store.user(USER) == UserRow(USER, STATE_BANNED, NOW + 1, None, 0, 0)
    assert store.logins(USER, now=NOW) == ()
    assert rows_of(store, Ban) == [Ban(USER.digest, NOW + 1)]


def test_a_ban_of_a_forgotten_user_is_lifted_like_any_other(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    ban(store, USER)
    forget(store, USER)
    assert ban(store, USER) is False
    assert unban(store, USER) is True
    assert unban(store, USER) is False
    assert rows_of(store, Ban) == []
    store.put_login(login("s2"), unionid=None)


def test_a_ban_of_a_forgotten_user_is_no_ban_of_another(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    ban(store, USER)
    forget(store, USER)
    store.put_login(login("s1", openid="oOther"), unionid=None)
    store.put_login(login("s1", appid="wx-b"), unionid=None)
    assert store.user(user_id(openid="oThird")) is None


def test_a_ban_holds_also_beside_a_user_who_came_from_another_store(store: Store) -> None:
    store.put_login(login("s1"), unionid="u1")
    ban(store, USER, at=NOW + 1)
    forget(store, USER, at=NOW + 2)
    store.merge([UserRow(USER, STATE_ACTIVE, 0, "u1", NOW, NOW)])
    found = store.user(USER)
    assert found is not None
    assert (found.state, found.state_since) == (STATE_BANNED, NOW + 1)
    with pytest.raises(UserBanned):
        store.put_login(login("s2", at=NOW + 3), unionid=None)
    assert forget(store, USER, at=NOW + 4) == 0
    with pytest.raises(UserBanned):
        store.put_login(login("s3", at=NOW + 5), unionid=None)
    assert unban(store, USER, at=NOW + 6) is True
    store.put_login(login("s4", at=NOW + 7), unionid=None)


# ---- the lines ----------------------------------------------------------------------------------


def test_each_act_leaves_its_line_as_it_was_given(store: Store) -> None:
    store.put_login(login("s1"), unionid=None)
    lines = [
        AuditLine(f"{n:032}", NOW + n, "操作@host", what, "wx-a", USER.digest, f"[Grund] 原因 {n} 🎉")
        for n, what in enumerate(WHAT)
    ]
    acts: list[Callable[[UserId, AuditLine], object]] = [
        lambda user, line: store.ban(user, line=line),
        lambda user, line: store.unban(user, line=line),
        lambda _, line: store.note(line),
        lambda user, line: store.forget(user, line=line),
    ]
    for act, line in zip(acts, lines, strict=True):
        act(USER, line)
    assert sorted(audit(store), key=lambda line: line.at) == lines


def test_a_line_is_never_replaced_by_another_of_its_id(store: Store) -> None:
    line = audit_line("export", USER)
    store.note(line)
    for act in (store.note, lambda other: store.ban(USER, line=other)):
        with contextlib.suppress(StoreUnavailable):
            act(replace(line, reason="another"))
        assert audit(store) == [line]


# ---- at once ------------------------------------------------------------------------------------


def test_a_ban_and_first_logins_at_once_end_with_a_banned_user(store: Store) -> None:
    for round_ in range(10):
        user = user_id(openid=f"oRound{round_}")

        def visit(n: int, user: UserId = user) -> None:
            if n == 3:
                ban(store, user)
                return
            with contextlib.suppress(UserBanned):
                store.put_login(login(f"s{n}", openid=user.openid), unionid=None)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(visit, range(8)))
        with pytest.raises(UserBanned):
            store.put_login(login("later", openid=user.openid), unionid=None)


def test_a_banned_user_who_is_forgotten_among_logins_is_never_let_in(store: Store) -> None:
    for round_ in range(10):
        user = user_id(openid=f"oRound{round_}")
        store.put_login(login("first", openid=user.openid), unionid=None)
        ban(store, user)

        def visit(n: int, user: UserId = user) -> str:
            if n == 3:
                forget(store, user)
                return "forgotten"
            try:
                store.put_login(login(f"s{n}", openid=user.openid), unionid=None)
            except UserBanned:
                return "banned"
            return "let in"

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(visit, range(8))) == {"forgotten", "banned"}
