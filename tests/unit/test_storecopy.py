"""The move of a store: what comes meanwhile is fetched, and what is not there is not said to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from authsvc.errors import StoreUnavailable
from authsvc.store.memory import MemoryStore
from authsvc.store.rows import STATE_BANNED, LoginRow, RevokedKey, Row, UserRow
from authsvc.storecopy import MOVES_FOR_S, StoreCopy, check_not_moving
from authsvc.users import Users
from tests.support.keys import keyring
from tests.support.users import NOW, TTL_S, ban, forget, login, rows_of, unban

RING = keyring()
USERS = Users(keys=lambda: RING, hashed=False)


def filled() -> MemoryStore:
    store = MemoryStore()
    for n in range(5):
        put(store, f"oUser{n}", "s1")
    ban(store, USERS.user("wx-a", "oUser0"), at=NOW + 5)
    store.note_revoked_keys({"kid": NOW})
    return store


def put(store: MemoryStore, openid: str, sid: str, *, at: int = NOW) -> None:
    store.put_login(replace(login(sid, at=at), user=USERS.user("wx-a", openid)), unionid=None)


def copied(
    source: MemoryStore, target: MemoryStore, told: Callable[[str, int], object] = lambda kind, rows: None
) -> dict[str, tuple[int, int]]:
    copy = StoreCopy(
        source,
        target,
        users=USERS,
        source_name="source",
        now=lambda: NOW,
        told=lambda kind, rows: (told(kind, rows), None)[1],
    )
    return {one.kind: (one.rows, one.found) for one in copy.run()}


def test_everything_is_there_and_said_to_be() -> None:
    source, target = filled(), MemoryStore()
    assert copied(source, target) == {
        "revoked keys": (1, 1),
        "bans": (0, 0),
        "audit lines": (1, 1),
        "users": (5, 5),
        "logins": (5, 5),
    }
    for kind in (UserRow, LoginRow, RevokedKey):
        assert rows_of(target, kind, identify=USERS.stored) == rows_of(source, kind, identify=USERS.stored)


def test_a_login_that_comes_after_its_page_was_copied_is_fetched_while_it_is_proved() -> None:
    source, target = filled(), MemoryStore()

    def told(kind: str, _rows: int) -> None:
        if kind == "logins" and target.user(USERS.user("wx-a", "oLate")) is None:
            put(source, "oLate", "s1", at=NOW + 9)
            put(source, "oUser1", "s2", at=NOW + 9)

    found = copied(source, target, told)
    assert (found["users"], found["logins"]) == ((6, 6), (7, 7))
    assert [row.sid for row in target.logins(USERS.user("wx-a", "oUser1"), now=NOW)] == ["s2", "s1"]


class Lossy(MemoryStore):
    """A store that takes rows over and does not keep all of them as they were."""

    def __init__(self, spoil: Callable[[Row], Row | None]) -> None:
        super().__init__()
        self._spoil = spoil

    def merge(self, rows: Sequence[Row]) -> None:
        super().merge([spoilt for row in rows if (spoilt := self._spoil(row)) is not None])


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("users", lambda row: None if isinstance(row, UserRow) and row.user.openid == "oUser3" else row),
        ("logins", lambda row: None if isinstance(row, LoginRow) and row.user.openid == "oUser3" else row),
        ("revoked keys", lambda row: None if isinstance(row, RevokedKey) else row),
        ("users", lambda row: replace(row, state=1) if isinstance(row, UserRow) and row.state == STATE_BANNED else row),
        (
            "users",
            lambda row: (
                replace(row, last_login_at=1) if isinstance(row, UserRow) and row.user.openid == "oUser3" else row
            ),
        ),
    ],
)
def test_what_the_target_does_not_have_is_not_counted_as_there(kind: str, spoil: Callable[[Row], Row | None]) -> None:
    counts = copied(filled(), Lossy(spoil))
    assert {name for name, (rows, found) in counts.items() if rows != found} == {kind}
    rows, found = counts[kind]
    assert found == rows - 1


def test_what_has_become_of_a_row_at_the_target_since_is_as_good() -> None:
    source, target = filled(), MemoryStore()
    copied(source, target)
    for n in range(3):
        put(target, "oUser1", f"there-{n}", at=NOW + 10 + n)
    ban(target, USERS.user("wx-a", "oUser2"), at=NOW + 20)
    counts = copied(source, target)
    assert all(rows == found for rows, found in counts.values())
    assert [row.sid for row in target.logins(USERS.user("wx-a", "oUser1"), now=NOW)][:3] == [
        "there-2",
        "there-1",
        "there-0",
    ]
    banned = target.user(USERS.user("wx-a", "oUser2"))
    assert banned is not None
    assert banned.state == STATE_BANNED


def test_a_target_with_users_from_elsewhere_is_refused() -> None:
    source, target = filled(), filled()
    with pytest.raises(StoreUnavailable, match="not from here"):
        copied(source, target)
    check_not_moving(source, now=NOW)


def test_what_is_older_than_the_first_run_and_gone_at_the_target_does_not_come_back() -> None:
    source, target = MemoryStore(), MemoryStore()
    for n in range(3):
        put(source, f"oUser{n}", "s1", at=NOW - 1000)
    copied(source, target)
    user = USERS.user("wx-a", "oUser1")
    target.replace_logins(user, target.logins(user, now=NOW), by=None)
    forget(target, USERS.user("wx-a", "oUser2"), at=NOW + 20)
    put(source, "oUser0", "s2", at=NOW + 5)
    counts = copied(source, target)
    assert (counts["users"], counts["logins"]) == ((1, 1), (1, 1))
    assert target.logins(user, now=NOW) == ()
    assert target.user(USERS.user("wx-a", "oUser2")) is None
    assert [row.sid for row in target.logins(USERS.user("wx-a", "oUser0"), now=NOW)] == ["s2", "s1"]


def test_a_ban_given_at_the_source_outlives_a_forgetting_at_the_target() -> None:
    source, target = filled(), MemoryStore()
    copied(source, target)
    user = USERS.user("wx-a", "oUser3")
    ban(source, user, at=NOW + 10)
    forget(target, user, at=NOW + 20)
    copied(source, target)
    found = target.user(user)
    assert found is not None
    assert (found.state, found.first_login_at) == (STATE_BANNED, 0)
    assert target.logins(user, now=NOW) == ()


def test_somebody_who_never_came_and_is_forgotten_at_the_target_stays_forgotten_and_banned() -> None:
    source, target = filled(), MemoryStore()
    user = USERS.user("wx-a", "oNever")
    ban(source, user, at=NOW + 1)
    copied(source, target)
    forget(target, user, at=NOW + 20)
    copied(source, target)
    assert user.openid not in str(rows_of(target, UserRow, identify=USERS.stored))
    found = target.user(user)
    assert found is not None
    assert found.state == STATE_BANNED


def test_lines_that_came_from_the_source_undo_nothing_there() -> None:
    source, target = filled(), MemoryStore()
    user = USERS.user("wx-a", "oUser4")
    ban(source, user, at=NOW + 5)
    unban(source, user, at=NOW + 55)  # by a clock that was ahead
    ban(source, user, at=NOW + 10)
    for _ in range(2):
        copied(source, target)
        found = target.user(user)
        assert found is not None
        assert found.state == STATE_BANNED


def test_a_login_that_ends_while_it_is_looked_at_is_not_missing() -> None:
    source = filled()
    times = [NOW] * 12 + [NOW + TTL_S] * 10_000
    copy = StoreCopy(
        source,
        MemoryStore(),
        users=USERS,
        source_name="source",
        now=lambda: times.pop(0),
        told=lambda _kind, _rows: None,
    )
    assert all(one.rows == one.found for one in copy.run())


def test_while_a_store_is_copied_to_nobody_is_forgotten_there() -> None:
    source, target = filled(), MemoryStore()
    seen: list[bool] = []

    def told(_kind: str, _rows: int) -> None:
        try:
            check_not_moving(target, now=NOW)
        except StoreUnavailable:
            seen.append(True)
        else:
            seen.append(False)

    copied(source, target, told)
    assert set(seen) == {True}
    check_not_moving(target, now=NOW)


def test_a_store_that_was_copied_says_so_for_a_day() -> None:
    source = filled()
    check_not_moving(source, now=NOW)
    copied(source, MemoryStore())
    for now in (NOW, NOW + MOVES_FOR_S - 1):
        with pytest.raises(StoreUnavailable, match="being copied"):
            check_not_moving(source, now=now)
    check_not_moving(source, now=NOW + MOVES_FOR_S)
