"""WeChat itself: apps, users, codes and session keys. No HTTP here; time and randomness are handed in.

Sources: auth.code2Session, https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_code2session, and
on the life of a session_key https://developers.weixin.qq.com/miniprogram/dev/framework/open-ability/signature.html.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import string
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from authsvc.clock import Clock
from authsvc.errors import BadRequest, SettingsError
from authsvc.sandbox.faults import ArmedFault, FaultPlan

CODE_LIFETIME_S: Final = 300  # five minutes, used or not
KEY_KEPT_S: Final = 60  # WeChat names a minimum refresh period, but no figure
EXCHANGES_PER_MINUTE: Final = 100  # of one user (45011)

# Codes end after five minutes, so these bound only what one burst or a long life can pile up.
KEPT_CODES: Final = 500_000
KEPT_USERS: Final = 100_000

_MAX_USER: Final = 128
_APPID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_SECRET: Final = re.compile(r"[!-~]{1,128}")
_CODE_ALPHABET: Final = string.digits + string.ascii_letters
_CODE_LENGTH: Final = 32
_ID_HASHED: Final = 27  # an openid or unionid is "o" and this many characters

_ERRMSG: Final[Mapping[int, str]] = {
    -1: "system error",
    40002: "invalid grant_type",
    40013: "invalid appid",
    40029: "invalid code",
    40125: "invalid appsecret",
    40163: "code been used",
    40164: "invalid ip 127.0.0.1 ipv6 ::ffff:127.0.0.1, not in whitelist",
    40226: "code blocked",
    40243: "appsecret is frozen",
    41002: "appid missing",
    41004: "appsecret missing",
    41008: "missing code",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    50002: "user limited",
}


class SandboxWeChat:
    """What WeChat knows and answers. Every method may be called from any thread.

    Raises: SettingsError for no app, or an appid or a secret that WeChat would not give out.
    """

    def __init__(self, apps: Mapping[str, str], *, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        problems = [] if apps else ["the sandbox needs an app"]
        for number, (appid, secret) in enumerate(apps.items(), start=1):
            if not _APPID.fullmatch(appid):
                problems.append(f"app {number}: an appid is 1 to 64 of 0-9A-Za-z_-")
            if not _SECRET.fullmatch(secret):
                problems.append(f"app {number}: a secret is 1 to 128 visible ASCII characters")
        if problems:
            raise SettingsError(problems)
        self._apps = dict(apps)
        self._clock = clock
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._codes: OrderedDict[str, _Code] = OrderedDict()  # the oldest first
        # By appid and openid; the longest unseen first.
        self._users: OrderedDict[tuple[str, str], _User] = OrderedDict()

    @property
    def appids(self) -> tuple[str, ...]:
        return tuple(self._apps)

    def openid(self, appid: str, user: str) -> str:
        """The same for this app and user always, after a restart too; another one in another app."""
        return _derived_id("openid", appid, user)

    def unionid(self, user: str) -> str:
        """The same for this user in every app."""
        return _derived_id("unionid", user)

    def mint_code(
        self,
        appid: str,
        user: str,
        fault: str | None = None,
        *,
        times: int | None = None,
        delay_s: float | None = None,
        unionid: str | None = None,
        new_session_key: bool = False,
    ) -> str:
        """Do what wx.login does on the user's phone: a fresh code, and, after a while, a fresh session_key.

        The code is tied to the session_key of its login, so of two logins the one that started last has
        the key that is valid at WeChat, in whatever order their codes are exchanged. `new_session_key`
        replaces the key even within KEY_KEPT_S. The exchange of this code meets `fault`, the first
        `times` times or, if None, every time.
        Raises: BadRequest for an unknown app or fault, or a user that is no name.
        """
        if appid not in self._apps:
            raise BadRequest("this sandbox has no such app")
        if not 1 <= len(user) <= _MAX_USER or any("\ud800" <= c <= "\udfff" for c in user):
            raise BadRequest(f"a user is a name of 1 to {_MAX_USER} characters")
        plan = None
        if fault is not None:
            plan = FaultPlan()
            plan.set(fault, times=times, delay_s=delay_s)
        openid = self.openid(appid, user)
        now = self._clock.now()
        with self._lock:
            self._forget_ended_codes(now)
            known = self._user(appid, openid)
            if not known.session_keys or new_session_key or now - known.refreshed_at >= KEY_KEPT_S:
                # The one before it stays known: what was encrypted under it may be on its way.
                fresh = base64.b64encode(self._random_bytes(16)).decode()
                known.session_keys = (fresh, *known.session_keys[:1])
                known.refreshed_at = now
            code = self._new_code()
            self._codes[code] = _Code(appid, openid, unionid, known.session_keys[0], plan, minted_at=now)
            if len(self._codes) > KEPT_CODES:
                self._codes.popitem(last=False)
            return code

    def code2session(
        self, appid: str | None, secret: str | None, js_code: str | None, grant_type: str | None
    ) -> dict[str, object]:
        """What `GET /sns/jscode2session` answers: a login, or an errcode with its errmsg."""
        try:
            return self._exchange(appid, secret, js_code, grant_type)
        except _Refusal as refusal:
            return self.refusal(refusal.errcode)

    def refusal(self, errcode: int) -> dict[str, object]:
        """This errcode with WeChat's errmsg and a fresh request id."""
        rid = self._random_bytes(12).hex()
        comma = "" if errcode == 40164 else ","  # WeChat leaves it out there
        return {"errcode": errcode, "errmsg": f"{_ERRMSG[errcode]}{comma} rid: {rid[:8]}-{rid[8:16]}-{rid[16:]}"}

    def stranger(self) -> dict[str, object]:
        """What looks like a login; its openid is nobody's."""
        key = base64.b64encode(self._random_bytes(16)).decode()
        return {"session_key": key, "openid": _derived_id("stranger")}

    def code_fault(self, js_code: str | None) -> ArmedFault | None:
        """The fault that this exchange of the code meets, counted."""
        now = self._clock.now()
        with self._lock:
            self._forget_ended_codes(now)
            code = self._codes.get(js_code or "")
        return code.plan.take() if code and code.plan else None

    def session_keys(self, appid: str, openid: str) -> tuple[str, ...]:
        """The user's session_key that is valid now and, if there was one, the one before it."""
        with self._lock:
            user = self._users.get((appid, openid))
            return user.session_keys if user else ()

    def _exchange(
        self, appid: str | None, secret: str | None, js_code: str | None, grant_type: str | None
    ) -> dict[str, object]:
        if not appid:
            raise _Refusal(41002)
        if not secret:
            raise _Refusal(41004)
        if not js_code:
            raise _Refusal(41008)
        if grant_type != "authorization_code":
            raise _Refusal(40002)
        expected = self._apps.get(appid)
        if expected is None:
            raise _Refusal(40013)
        if not hmac.compare_digest(secret.encode("utf-8", "replace"), expected.encode()):
            raise _Refusal(40125)
        now = self._clock.now()
        with self._lock:
            self._forget_ended_codes(now)
            code = self._codes.get(js_code)
            if code is None or code.appid != appid or code.ended(now):
                raise _Refusal(40029)
            if code.used:
                raise _Refusal(40163)
            self._user(appid, code.openid).count_exchange(now)
            code.used = True
        answer: dict[str, object] = {"session_key": code.session_key, "openid": code.openid}
        if code.unionid is not None:
            answer["unionid"] = code.unionid
        return answer

    def _new_code(self) -> str:
        number = int.from_bytes(self._random_bytes(_CODE_LENGTH))
        characters = []
        for _ in range(_CODE_LENGTH):
            number, index = divmod(number, len(_CODE_ALPHABET))
            characters.append(_CODE_ALPHABET[index])
        return "".join(characters)

    def _user(self, appid: str, openid: str) -> _User:
        user = self._users.setdefault((appid, openid), _User())
        self._users.move_to_end((appid, openid))
        if len(self._users) > KEPT_USERS:
            self._users.popitem(last=False)
        return user

    def _forget_ended_codes(self, now: int) -> None:
        while self._codes and next(iter(self._codes.values())).ended(now):
            self._codes.popitem(last=False)


class _Refusal(Exception):
    """WeChat says no; never leaves this module."""

    def __init__(self, errcode: int) -> None:
        super().__init__(errcode)
        self.errcode = errcode


@dataclass(slots=True)
class _Code:
    appid: str
    openid: str
    unionid: str | None
    session_key: str = field(repr=False)
    plan: FaultPlan | None
    minted_at: int  # Unix seconds
    used: bool = False

    def ended(self, now: int) -> bool:
        return now - self.minted_at >= CODE_LIFETIME_S


@dataclass(slots=True)
class _User:
    session_keys: tuple[str, ...] = field(default=(), repr=False)  # the valid one first, then the one before it
    refreshed_at: int = 0  # Unix seconds
    minute: int = 0
    exchanges: int = 0  # within `minute`

    def count_exchange(self, now: int) -> None:
        """Raises: _Refusal beyond the quota; that exchange does not count and its code stays good."""
        minute = now // 60
        if minute != self.minute:
            self.minute, self.exchanges = minute, 0
        if self.exchanges == EXCHANGES_PER_MINUTE:
            raise _Refusal(45011)
        self.exchanges += 1


def _derived_id(*parts: str) -> str:
    # Only the last part, the user's name, may hold any character, so a NUL between them is unambiguous.
    digest = hashlib.sha256(b"\0".join(part.encode() for part in ("authsvc sandbox", *parts))).digest()
    return "o" + base64.urlsafe_b64encode(digest).decode()[:_ID_HASHED]
