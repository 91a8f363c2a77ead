"""WeChat itself: what it knows and answers. No HTTP here; time and randomness are handed in.

Sources: the page of each call, below https://developers.weixin.qq.com/miniprogram/dev/server/API/.
"""

from __future__ import annotations

import hmac
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from authsvc.clock import Clock
from authsvc.errors import BadRequest
from authsvc.sandbox import open_data
from authsvc.sandbox.access_tokens import AccessTokens, GivenToken
from authsvc.sandbox.apps import Apps
from authsvc.sandbox.codes import Codes, LoginCode, PhoneCode, new_login_code, new_phone_code
from authsvc.sandbox.errcodes import ERRCODES, Refusal
from authsvc.sandbox.faults import JSCODE2SESSION, ArmedFault, FaultPlan
from authsvc.sandbox.phone_numbers import check_phone_number, phone_info, phone_number_of
from authsvc.sandbox.strangers import OK, Strangers
from authsvc.sandbox.users import User, Users, check_name, derived_id

DEFAULT_DEVICE: Final = "phone"
MAX_AGE_S: Final = 1_000_000_000  # of open data, either way

_SIG_METHOD: Final = "hmac_sha256"

Answer = dict[str, object]


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user who has logged in here, as the sandbox's page shows them."""

    name: str
    appid: str
    openid: str
    device: str
    keys_replaced: int


class SandboxWeChat:
    """What WeChat knows and answers. Every method may be called from any thread.

    Raises: SettingsError for no app, or an appid or a secret that WeChat would not give out.
    """

    def __init__(self, apps: Mapping[str, str], *, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        self._apps = Apps(apps)
        self._clock = clock
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._users = Users(random_bytes=random_bytes)
        self._login_codes: Codes[LoginCode] = Codes()
        self._phone_codes: Codes[PhoneCode] = Codes()
        self._tokens = AccessTokens(apps, random_bytes=random_bytes)
        self.strangers = Strangers(random_bytes=random_bytes)

    @property
    def appids(self) -> tuple[str, ...]:
        return self._apps.appids

    @property
    def now(self) -> int:
        """What time it is at this WeChat, in Unix seconds."""
        return self._clock.now()

    # ---- what happens on the phone --------------------------------------------------------------

    def openid(self, appid: str, user: str) -> str:
        """The same for this app and user always, after a restart too; another one in another app."""
        return derived_id("openid", appid, user)

    def unionid(self, user: str) -> str:
        """The same for this user in every app."""
        return derived_id("unionid", user)

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
        device: str = DEFAULT_DEVICE,
    ) -> str:
        """Do what wx.login does on the user's phone: a fresh code, and, after a while, a fresh session_key.

        The code is tied to the session_key of its login, so of two logins the one that started last has
        the key that is valid at WeChat, in whatever order their codes are exchanged. On another `device`
        than the user's last, or with `new_session_key`, the key is replaced even within KEY_KEPT_S. The
        exchange of this code meets `fault`, the first `times` times or, if None, every time.
        Raises: BadRequest for an unknown app or fault, or a user or device that is no name.
        """
        self._check_owner(appid, user)
        check_name("device", device)
        plan = None
        if fault is not None:
            plan = FaultPlan(JSCODE2SESSION)
            plan.set(fault, times=times, delay_s=delay_s)
        openid = self.openid(appid, user)
        now = self._clock.now()
        with self._lock:
            known = self._users.seen(appid, openid, user)
            known.unionid = unionid
            key = self._users.log_in(known, device=device, new_key=new_session_key, now=now)
            code = new_login_code(self._random_bytes)
            self._login_codes.add(code, LoginCode(appid, openid, user, now, unionid, key, plan), now=now)
            return code

    def mint_phone_code(self, appid: str, user: str, phone: str | None = None) -> str:
        """Do what the phone number button does: a fresh code for this number or, if None, for the user's own.

        Raises: BadRequest for an unknown app, a user that is no name, or a phone that is not 5 to 15 digits.
        """
        self._check_owner(appid, user)
        number = phone_number_of(user) if phone is None else phone
        check_phone_number(number)
        now = self._clock.now()
        code = new_phone_code(self._random_bytes)
        with self._lock:
            self._phone_codes.add(code, PhoneCode(appid, self.openid(appid, user), user, now, number), now=now)
        return code

    def open_data(
        self,
        appid: str,
        user: str,
        data: Mapping[str, object] | None = None,
        which: str = "current",
        age_s: float = 0,
    ) -> dict[str, str]:
        """What wx.getUserInfo gives with credentials, made under the user's "current" or "previous" session_key.

        Without `data` it is about the user; else it has these members and a watermark, unless theirs is in it. It
        was made `age_s` seconds ago, or will be if that is negative. Members: rawData, signature, encryptedData, iv.
        Raises: BadRequest for an unknown app, a user without that key, another `which`, or over MAX_AGE_S.
        """
        self._check_owner(appid, user)
        if which not in ("current", "previous"):
            raise BadRequest('session_key is "current" or "previous"')
        if not -MAX_AGE_S <= age_s <= MAX_AGE_S:  # NaN as well
            raise BadRequest(f"age_s is {-MAX_AGE_S} to {MAX_AGE_S} seconds")
        openid = self.openid(appid, user)
        with self._lock:
            known = self._users.find(appid, openid)
            keys = [key.text for key in known.keys] if known else []
            unionid = known.unionid if known else None
        index = 0 if which == "current" else 1
        if index >= len(keys):
            raise BadRequest(
                "the user has no session_key yet, or only one: mint a code, with another device or new_session_key"
            )
        watermark = {"timestamp": math.floor(self._clock.now() - age_s), "appid": appid}
        members = open_data.profile(user, openid, unionid) if data is None else data
        return open_data.sealed(
            {**members, "watermark": members.get("watermark", watermark)},
            session_key=keys[index],
            iv=self._random_bytes(16),
        )

    # ---- what a server asks ---------------------------------------------------------------------

    def code2session(
        self, appid: str | None, secret: str | None, js_code: str | None, grant_type: str | None
    ) -> Answer:
        """What `GET /sns/jscode2session` answers: a login, or an errcode with its errmsg."""
        try:
            return self._exchange(appid, secret, js_code, grant_type)
        except Refusal as refusal:
            return self.refusal(refusal.errcode)

    def stable_token(
        self, appid: str | None, secret: str | None, grant_type: str | None, *, force_refresh: bool = False
    ) -> Answer:
        """What `POST /cgi-bin/stable_token` answers: access_token and expires_in (seconds left), or an errcode.

        Source: https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken
        """
        now = self._clock.now()
        try:
            known_appid = self._apps.authenticated(appid, secret, grant_type, wanted="client_credential")
            with self._lock:
                token = self._tokens.stable(known_appid, force_refresh=force_refresh, now=now)
        except Refusal as refusal:
            return self.refusal(refusal.errcode)
        return {"access_token": token.text, "expires_in": token.ends_at - now}

    def check_session_key(
        self,
        access_token: str | None,
        openid: str | None,
        signature: str | None,
        sig_method: str | None,
        body: bytes = b"",
    ) -> Answer:
        """What `GET /wxa/checksession` answers: errcode 0 if `signature` is made with the key that is valid now.

        Source: https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_checksessionkey
        """
        try:
            with self._lock:
                self._signer(access_token, openid, signature, sig_method, body)
        except Refusal as refusal:
            return self.refusal(refusal.errcode)
        return dict(OK)

    def reset_session_key(
        self,
        access_token: str | None,
        openid: str | None,
        signature: str | None,
        sig_method: str | None,
        body: bytes = b"",
    ) -> Answer:
        """What `GET /wxa/resetusersessionkey` answers: a new key. The old one, and the one before it, are dead at once.

        Source: https://developers.weixin.qq.com/miniprogram/dev/server/API/user-login/api_resetusersessionkey
        """
        try:
            with self._lock:
                user = self._signer(access_token, openid, signature, sig_method, body)
                session_key = self._users.reset_key(user)
        except Refusal as refusal:
            return self.refusal(refusal.errcode)
        return {**OK, "openid": openid, "session_key": session_key}

    def phone_number(self, access_token: str | None, code: str | None, openid: str | None = None) -> Answer:
        """What `POST /wxa/business/getuserphonenumber` answers: a phone_info, and the code is used up, or an errcode.

        Source: https://developers.weixin.qq.com/miniprogram/dev/server/API/user-info/phone-number/api_getphonenumber
        """
        now = self._clock.now()
        try:
            with self._lock:
                appid = self._checked_token(access_token).appid
                found = self._phone_codes.find(code or "", now=now)
                if found is None or found.used or found.appid != appid or openid not in (None, found.openid):
                    raise Refusal(40029)
                found.used = True
        except Refusal as refusal:
            return self.refusal(refusal.errcode)
        return {**OK, "phone_info": phone_info(found.number, appid, now)}

    def access_token_refusal(self, access_token: str | None) -> Answer | None:
        """What a call with this access_token is answered, whatever else it says; None if the token is good."""
        try:
            with self._lock:
                self._checked_token(access_token)
        except Refusal as refusal:
            return self.refusal(refusal.errcode)
        return None

    def refusal(self, errcode: int) -> Answer:
        """This errcode with WeChat's errmsg and a fresh request id."""
        rid = self._random_bytes(12).hex()
        comma = "" if errcode == 40164 else ","  # WeChat leaves it out there
        return {
            "errcode": errcode,
            "errmsg": f"{ERRCODES[errcode].errmsg}{comma} rid: {rid[:8]}-{rid[8:16]}-{rid[16:]}",
        }

    # ---- what the sandbox tells of itself -------------------------------------------------------

    def code_fault(self, js_code: str | None) -> ArmedFault | None:
        """The fault that this exchange of the code meets, counted."""
        now = self._clock.now()
        with self._lock:
            code = self._login_codes.find(js_code or "", now=now)
        return code.plan.take() if code and code.plan else None

    def session_keys(self, appid: str, openid: str) -> tuple[str, ...]:
        """The user's session_key that is valid now and, if there was one, the one before it."""
        with self._lock:
            user = self._users.find(appid, openid)
            return tuple(key.text for key in user.keys) if user else ()

    def knows(self, appid: str, openid: str) -> bool:
        """Whether a user of this openid has logged in to this app."""
        with self._lock:
            return self._users.find(appid, openid) is not None

    def login_code_openid(self, js_code: str | None) -> str | None:
        """Whose code it is, used or not."""
        now = self._clock.now()
        with self._lock:
            code = self._login_codes.find(js_code or "", now=now)
            return code.openid if code else None

    def phone_code_openid(self, code: str | None) -> str | None:
        now = self._clock.now()
        with self._lock:
            found = self._phone_codes.find(code or "", now=now)
            return found.openid if found else None

    def token_appid(self, access_token: str | None) -> str | None:
        """Whose token it is, ended or not."""
        with self._lock:
            token = self._tokens.find(access_token or "")
            return token.appid if token else None

    def users(self, count: int) -> list[KnownUser]:
        """At most that many; who logged in last comes first."""
        with self._lock:
            return [
                KnownUser(user.name, appid, openid, user.device, user.keys_replaced)
                for appid, openid, user in self._users.last_seen(count)
            ]

    # ---- how it is done -------------------------------------------------------------------------

    def _check_owner(self, appid: str, user: str) -> None:
        self._apps.check_known(appid)
        check_name("user", user)

    def _exchange(self, appid: str | None, secret: str | None, js_code: str | None, grant_type: str | None) -> Answer:
        if appid and secret and not js_code:
            raise Refusal(41008)
        appid = self._apps.authenticated(appid, secret, grant_type, wanted="authorization_code")
        now = self._clock.now()
        with self._lock:
            code = self._login_codes.find(js_code or "", now=now)
            if code is None or code.appid != appid:
                raise Refusal(40029)
            if code.used:
                raise Refusal(40163)
            self._users.seen(appid, code.openid, code.user).count_exchange(now)
            code.used = True
            answer: Answer = {"session_key": code.key.text, "openid": code.openid}
        if code.unionid is not None:
            answer["unionid"] = code.unionid
        return answer

    def _checked_token(self, access_token: str | None) -> GivenToken:
        if not access_token:
            raise Refusal(41001)
        token = self._tokens.find(access_token)
        if token is None:
            raise Refusal(40001)
        if self._clock.now() >= token.ends_at:
            raise Refusal(42001)
        return token

    def _signer(
        self, access_token: str | None, openid: str | None, signature: str | None, sig_method: str | None, body: bytes
    ) -> User:
        """The user whose valid session_key made the signature."""
        appid = self._checked_token(access_token).appid
        user = self._users.find(appid, openid or "")
        if user is None:
            raise Refusal(40003)
        if sig_method != _SIG_METHOD:
            raise Refusal(87008)
        key = user.keys[0] if user.keys else None
        if key is None or key.ended(self._clock.now()):
            raise Refusal(87009)
        expected = open_data.request_signature(body, key.text)
        if not hmac.compare_digest((signature or "").encode("utf-8", "replace"), expected.encode()):
            raise Refusal(87009)
        return user
