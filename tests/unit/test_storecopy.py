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
from tests.support.users import NOW, ban, login, rows_of

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
    assert counts["users"] == (5, 5)
    assert [row.sid for row in target.logins(USERS.user("wx-a", "oUser1"), now=NOW)][:3] == [
        "there-2",
        "there-1",
        "there-0",
    ]
    banned = target.user(USERS.user("wx-a", "oUser2"))
    assert banned is not None
    assert banned.state == STATE_BANNED


def test_a_store_that_was_copied_says_so_for_a_day() -> None:
    source = filled()
    check_not_moving(source, now=NOW)
    copied(source, MemoryStore())
    for now in (NOW, NOW + MOVES_FOR_S - 1):
        with pytest.raises(StoreUnavailable, match="copied to another one"):
            check_not_moving(source, now=now)
    check_not_moving(source, now=NOW + MOVES_FOR_S)
