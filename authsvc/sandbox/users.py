"""The users of each app, and the session_key that a user has at WeChat.

Sources: on the life of a session_key https://developers.weixin.qq.com/miniprogram/dev/framework/open-ability/signature.html,
on replacing it
https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_resetusersessionkey
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from authsvc.errors import BadRequest
from authsvc.sandbox.errcodes import Refusal

KEY_KEPT_S: Final = 60  # WeChat names a minimum refresh period, but no figure
KEY_LIFETIME_S: Final = 3 * 86_400  # WeChat says "days" and no figure
EXCHANGES_PER_MINUTE: Final = 100  # of one user (45011)

KEPT_USERS: Final = 100_000  # codes end by themselves, users do not

_MAX_NAME: Final = 128
_ID_HASHED: Final = 27  # an openid or unionid is "o" and this many characters


def derived_id(*parts: str) -> str:
    """What looks like an openid; the same for the same parts always."""
    # Only the last part, the user's name, may hold any character, so a NUL between them is unambiguous.
    digest = hashlib.sha256(b"\0".join(part.encode() for part in ("authsvc sandbox", *parts))).digest()
    return "o" + base64.urlsafe_b64encode(digest).decode()[:_ID_HASHED]


def check_name(member: str, name: str) -> None:
    """Raises: BadRequest for what is no name of a user or a device."""
    if not 1 <= len(name) <= _MAX_NAME or any("\ud800" <= c <= "\udfff" for c in name):
        raise BadRequest(f"a {member} is a name of 1 to {_MAX_NAME} characters")


@dataclass(slots=True)
class SessionKey:
    """The key of one login, shared by the codes of that login: a reset gives them all the new text."""

    text: str = field(repr=False)  # base64 of 16 bytes
    made_at: int  # Unix seconds

    def ended(self, now: int) -> bool:
        return now - self.made_at >= KEY_LIFETIME_S


@dataclass(slots=True)
class User:
    name: str
    keys: tuple[SessionKey, ...] = field(default=(), repr=False)  # the valid one first, then the one before it
    keys_replaced: int = 0
    device: str = ""  # of the last login
    unionid: str | None = None  # of the last login
    minute: int = 0
    exchanges: int = 0  # within `minute`

    def count_exchange(self, now: int) -> None:
        """Raises: Refusal beyond the quota; that exchange does not count and its code stays good."""
        minute = now // 60
        if minute != self.minute:
            self.minute, self.exchanges = minute, 0
        if self.exchanges == EXCHANGES_PER_MINUTE:
            raise Refusal(45011)
        self.exchanges += 1


class Users:
    """By appid and openid. Not thread-safe by itself: SandboxWeChat holds its lock around every call."""

    def __init__(self, *, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._users: OrderedDict[tuple[str, str], User] = OrderedDict()  # the longest unseen first

    def __len__(self) -> int:
        return len(self._users)

    def find(self, appid: str, openid: str) -> User | None:
        return self._users.get((appid, openid))

    def last_seen(self, count: int) -> list[tuple[str, str, User]]:
        """Appid, openid and user of at most that many, who logged in last first."""
        newest_first = reversed(self._users.items())
        return [(appid, openid, user) for _, ((appid, openid), user) in zip(range(count), newest_first, strict=False)]

    def seen(self, appid: str, openid: str, name: str) -> User:
        """This user, a new one if need be."""
        user = self._users.setdefault((appid, openid), User(name))
        self._users.move_to_end((appid, openid))
        if len(self._users) > KEPT_USERS:
            self._users.popitem(last=False)
        return user

    def log_in(self, user: User, *, device: str, new_key: bool, now: int) -> SessionKey:
        """The key of a login that starts now.

        It is a new one on another device than the user's last, after KEY_KEPT_S, and if `new_key` asks for it.
        """
        if not user.keys or new_key or device != user.device or now - user.keys[0].made_at >= KEY_KEPT_S:
            user.keys_replaced += bool(user.keys)
            # The one before it stays known: what was encrypted under it may be on its way.
            user.keys = (SessionKey(new_session_key(self._random_bytes), now), *user.keys[:1])
        user.device = device
        return user.keys[0]

    def reset_key(self, user: User) -> str:
        """The new key; it ends when the old one would have, and no older one is left."""
        key = user.keys[0]
        key.text = new_session_key(self._random_bytes)
        user.keys = (key,)
        user.keys_replaced += 1
        return key.text


def new_session_key(random_bytes: Callable[[int], bytes]) -> str:
    """Base64 of 16 bytes."""
    return base64.b64encode(random_bytes(16)).decode()
