"""Answers that look good but are nobody's: whoever believes one has taken a stranger for its user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from authsvc.sandbox.access_tokens import TOKEN_LIFETIME_S, new_token
from authsvc.sandbox.phone_numbers import phone_info, phone_number_of
from authsvc.sandbox.users import derived_id, new_session_key

OK: Final = {"errcode": 0, "errmsg": "ok"}

_NOBODY: Final = "\0stranger"


class Strangers:
    """One for each kind of answer; only what tells the stranger from the user asked about is wrong in it."""

    def __init__(self, *, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes

    def login(self) -> dict[str, object]:
        return {"openid": derived_id("stranger"), "session_key": new_session_key(self._random_bytes)}

    def access_token(self) -> dict[str, object]:
        return {"access_token": new_token(self._random_bytes), "expires_in": TOKEN_LIFETIME_S}

    def session_key(self, openid: str | None) -> dict[str, object]:
        """Seemingly this user's, or, if None, a stranger's altogether."""
        key = new_session_key(self._random_bytes)
        return {**OK, "openid": openid or derived_id("stranger"), "session_key": key}

    def phone(self, appid: str, now: int) -> dict[str, object]:
        """Seemingly given to this app at this Unix second."""
        return {**OK, "phone_info": phone_info(phone_number_of(_NOBODY), appid, now)}

    def nothing(self) -> dict[str, object]:
        """The whole of a good answer that says nothing but that."""
        return dict(OK)
