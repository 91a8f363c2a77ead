"""What is done with a user's session_key for those who may not have it: the use-cases behind `/session/…`.

What a client has decrypted or signed and posts to a back end proves nothing. The back end asks here instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from authsvc.claims import Claims
from authsvc.clock import Clock
from authsvc.errors import (
    BadRequest,
    DecryptFailed,
    SealBroken,
    SessionKeyGone,
    SignatureInvalid,
    UserBanned,
)
from authsvc.failures import Failures
from authsvc.keyring import Keyring
from authsvc.sessionkeys import kept_session_key, sealed_login
from authsvc.store import STATE_ACTIVE, LoginRow, Store
from authsvc.users import Users
from authsvc.wechat import OTHER_KEY, App, PhoneNumber, WeChatSession, decrypt, sign, verify_signature

_Found = TypeVar("_Found")


class SessionCalls(Protocol):
    """What of WeChat is needed here. Every call raises WeChatError."""

    def check_session_key(
        self, access_token: str, openid: str, session_key: str, *, ends_at: float | None = None
    ) -> bool: ...

    def reset_user_session_key(
        self, access_token: str, openid: str, session_key: str, *, ends_at: float | None = None
    ) -> WeChatSession: ...

    def phone_number(
        self, access_token: str, code: str, *, appid: str, openid: str, ends_at: float | None = None
    ) -> PhoneNumber: ...


class UsesTokens(Protocol):
    """What lends access tokens."""

    def use(self, app: App, call: Callable[[str, float], _Found]) -> _Found: ...


class Session:
    """Works with the session keys of the user that a verified token names: of its appid and openid, and of no other.

    Every method raises UserBanned for a user who may not log in, SessionKeyGone where there is no login of the user,
    and StoreUnavailable. Thread-safe.
    """

    def __init__(
        self,
        *,
        apps: Mapping[str, App],
        wechat: SessionCalls,
        access_tokens: UsesTokens,
        store: Store,
        users: Users,
        keys: Callable[[], Keyring],
        decrypt_window_s: int,
        failures: Failures,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._apps = apps
        self._wechat = wechat
        self._access_tokens = access_tokens
        self._store = store
        self._users = users
        self._keys = keys
        self._decrypt_window_s = decrypt_window_s
        self._failures = failures
        self._clock = clock
        self._random_bytes = random_bytes

    def decrypt(self, claims: Claims, encrypted_data: str, iv: str) -> dict[str, Any]:
        """The open data of the user. Raises: DecryptFailed; TooManyFailures."""
        reason = OTHER_KEY
        now = self._clock.now()
        self._failures.check(claims.appid, claims.openid)
        for _row, session_key in self._own_first(claims):
            try:
                return decrypt(
                    encrypted_data,
                    iv,
                    session_key,
                    appid=claims.appid,
                    openid=claims.openid,
                    now=now,
                    window_s=self._decrypt_window_s,
                )
            except DecryptFailed as error:
                # What a key that fits says is worth more than that the others do not.
                reason = str(error) if reason == OTHER_KEY else reason
        self._failures.note(claims.appid, claims.openid)
        raise DecryptFailed(reason)

    def verify(self, claims: Claims, raw_data: str, signature: str) -> bool:
        """Whether WeChat gave this rawData with this signature to the user."""
        return any(_is_signed(raw_data, signature, session_key) for _row, session_key in self._own_first(claims))

    def sign(self, claims: Claims, body: str) -> str:
        """WeChat's login-state signature of a request body under the user's newest session_key.

        Raises: BadRequest for an empty body: with the signature of that, anybody could reset the key.
        """
        if not body:
            raise BadRequest("body is empty")
        _row, session_key = self._newest(claims)
        return sign(body, session_key)

    def check(self, claims: Claims) -> bool:
        """Whether the newest session_key is the one that WeChat has. Raises: WeChatError."""
        _row, session_key = self._newest(claims)
        return self._access_tokens.use(
            self._apps[claims.appid],
            lambda token, ends_at: self._wechat.check_session_key(token, claims.openid, session_key, ends_at=ends_at),
        )

    def reset(self, claims: Claims) -> None:
        """Have WeChat make a new session_key, and keep that one alone: what was made under an older one is not opened
        any more.

        Raises: SessionKeyGone if WeChat has another key by now, with the old ones forgotten; WeChatError.
        """
        known = self._logins(claims)
        row, session_key = known[0]
        gone = [login for login, _ in known]
        try:
            renewed = self._access_tokens.use(
                self._apps[claims.appid],
                lambda token, ends_at: self._wechat.reset_user_session_key(
                    token, claims.openid, session_key, ends_at=ends_at
                ),
            )
        except SessionKeyGone:
            # Also what is left of a reset whose answer got lost: whoever repeats it gets here.
            self._store.replace_logins(row.user, gone, by=None)
            raise
        by = sealed_login(
            renewed.session_key,
            self._keys(),
            user=row.user,
            sid=row.sid,
            started_at_us=row.started_at_us,
            created_at=row.created_at,
            expires_at=row.expires_at,  # inherited, at WeChat too
            now=self._clock.now(),
            random_bytes=self._random_bytes,
        )
        # Logins of the meantime too, if they have the old key: WeChat does not make a new one for each.
        gone += [login for login, key in self._opened(claims) if key == session_key and login not in gone]
        self._store.replace_logins(row.user, gone, by=by)

    def phone(self, claims: Claims, code: str) -> PhoneNumber:
        """The number behind the code of the user's phone number button. Raises: BadRequest, WeChatError."""
        self._check_user(claims)
        return self._access_tokens.use(
            self._apps[claims.appid],
            lambda token, ends_at: self._wechat.phone_number(
                token, code, appid=claims.appid, openid=claims.openid, ends_at=ends_at
            ),
        )

    def _own_first(self, claims: Claims) -> list[tuple[LoginRow, str]]:
        """The session keys that may be meant: that of the token's own login, then the others, the newest first.

        Two calls of wx.login race, on one phone or on two: data made under the older key are as good.
        """
        return sorted(self._logins(claims), key=lambda login: login[0].sid != claims.sid)

    def _newest(self, claims: Claims) -> tuple[LoginRow, str]:
        return self._logins(claims)[0]

    def _check_user(self, claims: Claims) -> None:
        user = self._store.user(self._users.user(claims.appid, claims.openid))
        if user is None:
            raise SessionKeyGone("the user is not known here any more; call wx.login again")
        if user.state != STATE_ACTIVE:
            raise UserBanned("this user is banned")

    def _logins(self, claims: Claims) -> list[tuple[LoginRow, str]]:
        """The user's logins with their session keys, the one that started last first."""
        self._check_user(claims)
        found = self._opened(claims)
        if not found:
            raise SessionKeyGone("no session_key of the user is kept here; call wx.login again")
        return found

    def _opened(self, claims: Claims) -> list[tuple[LoginRow, str]]:
        now = self._clock.now()
        keyring = self._keys()
        user = self._users.user(claims.appid, claims.openid)
        found = []
        for row in self._store.logins(user, now=now):
            try:
                found.append((row, kept_session_key(row, keyring, now=now)))
            except SealBroken:
                continue  # its sealing key was revoked, or the row is not as it was written: it opens for nobody
        return found


def _is_signed(raw_data: str, signature: str, session_key: str) -> bool:
    try:
        verify_signature(raw_data, signature, session_key)
    except SignatureInvalid:
        return False
    return True
