"""Access tokens in the side store: sealed, and of no harm when store or keys are out of order."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from authsvc.errors import StoreUnavailable
from authsvc.keyring import Keyring
from authsvc.store import SharedValue
from authsvc.store.memory import MemoryStore
from authsvc.tokenshare import StoredTokens
from authsvc.wechat import LivingToken
from tests.support.clock import NOW, FakeClock
from tests.support.keys import keyring

TOKEN = LivingToken("SECRETMARKER-of-wechat", NOW + 7200)


def _share(store: MemoryStore, clock: FakeClock | None = None, ring: Keyring | None = None) -> StoredTokens:
    used = ring or keyring()
    return StoredTokens(store, keys=lambda: used, clock=clock or FakeClock(), random_bytes=os.urandom)


def test_a_token_comes_back_in_another_process_and_only_for_its_app() -> None:
    store = MemoryStore()
    _share(store).put("wx1", TOKEN)
    assert _share(store).token("wx1") == TOKEN
    assert _share(store).token("wx2") is None


def test_a_token_is_sealed_in_the_store() -> None:
    store = MemoryStore()
    _share(store).put("wx1", TOKEN)
    row = store.shared("access_token wx1", now=NOW)
    assert row is not None
    assert b"SECRETMARKER" not in row.value


@pytest.mark.parametrize("change", [{"name": "access_token wx2"}, {"expires_at": NOW + 9000}])
def test_a_token_that_was_moved_to_another_app_or_stretched_does_not_open(change: dict[str, object]) -> None:
    store = MemoryStore()
    _share(store).put("wx1", TOKEN)
    row = store.shared("access_token wx1", now=NOW)
    assert row is not None
    moved = replace(row, **change)  # type: ignore[arg-type]
    store.share(moved)
    assert _share(store).token(moved.name.split()[1]) is None


def test_a_token_is_gone_on_the_second_of_its_end() -> None:
    store, clock = MemoryStore(), FakeClock()
    _share(store).put("wx1", TOKEN)
    clock.at = TOKEN.expires_at - 1
    assert _share(store, clock).token("wx1") == TOKEN
    clock.at += 1
    assert _share(store, clock).token("wx1") is None


def test_under_a_key_that_is_gone_there_is_none_and_another_one_can_be_put() -> None:
    store, ring = MemoryStore(), keyring()
    other = replace(ring, secret_keys={**ring.secret_keys, "5ea15ea1": b"x" * 32})
    _share(store, ring=other).put("wx1", TOKEN)
    assert _share(store).token("wx1") is None
    _share(store).put("wx1", TOKEN)
    assert _share(store).token("wx1") == TOKEN


def test_one_at_a_time_may_claim_the_fetch_of_an_app() -> None:
    store, clock = MemoryStore(), FakeClock()
    first, second = _share(store, clock), _share(store, clock)
    end = first.claim("wx1", for_s=7)
    assert end is not None
    assert second.claim("wx1", for_s=7) is None
    assert second.claim("wx2", for_s=7) is not None
    end()
    assert second.claim("wx1", for_s=7) is not None


def test_a_claim_of_a_process_that_died_ends_by_itself_and_a_late_end_takes_nobody_elses() -> None:
    store, clock = MemoryStore(), FakeClock()
    share = _share(store, clock)
    late = share.claim("wx1", for_s=7)
    clock.at += 7
    assert share.claim("wx1", for_s=7) is not None
    assert late is not None
    late()
    assert share.claim("wx1", for_s=7) is None


class _Down(MemoryStore):
    def shared(self, name: str, *, now: int) -> SharedValue | None:
        raise StoreUnavailable("gone")

    def share(self, value: SharedValue) -> None:
        raise StoreUnavailable("gone")

    def share_first(self, value: SharedValue, *, now: int) -> bool:
        raise StoreUnavailable("gone")

    def unshare(self, value: SharedValue) -> None:
        raise StoreUnavailable("gone")


def test_without_the_store_there_is_no_token_and_everybody_may_fetch() -> None:
    share = _share(_Down())
    share.put("wx1", TOKEN)
    assert share.token("wx1") is None
    end = share.claim("wx1", for_s=7)
    assert end is not None
    end()
    # Only the end of the claim fails.
    share = _share(_DownAfterClaim())
    end = share.claim("wx1", for_s=7)
    assert end is not None
    end()


class _DownAfterClaim(MemoryStore):
    def unshare(self, value: SharedValue) -> None:
        raise StoreUnavailable("gone")


def test_a_store_that_is_down_is_asked_again_after_half_a_minute() -> None:
    store, clock = _Sometimes(), FakeClock()
    share = _share(store, clock)
    for _ in range(3):
        share.put("wx1", TOKEN)
    assert store.asked == 1
    clock.at += 30
    share.put("wx1", TOKEN)
    assert share.token("wx1") == TOKEN


class _Sometimes(MemoryStore):
    """Down for the first question."""

    asked = 0

    def share(self, value: SharedValue) -> None:
        self.asked += 1
        if self.asked == 1:
            raise StoreUnavailable("gone")
        super().share(value)


def test_without_an_active_key_nothing_is_kept() -> None:
    store, clock = MemoryStore(), FakeClock(at=NOW - 10)
    _share(store, clock).put("wx1", TOKEN)
    assert store.shared("access_token wx1", now=NOW) is None
