"""Every error that leaves a module of authsvc, each with its stable `code`.

The code is a promise: it stands in replies, in logs and in the documentation, and does not change.
The message is for people, may change, and never holds a secret: no session_key, no app secret, no
token, no code of wx.login, no URL with a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class AuthsvcError(Exception):
    """Base of every error of authsvc; never raised itself."""

    code: ClassVar[str] = "internal_error"


# ---- tokens: why one is refused -----------------------------------------------------------------


class TokenError(AuthsvcError):
    """The token is not accepted. `code` is the `reason` that `GET /checklogin` answers."""

    code = "invalid"


class TokenMissing(TokenError):
    """No token, or an empty one."""

    code = "missing"


class TokenMalformed(TokenError):
    """Not one compact JWS of the expected form: size, alphabet, JSON, header members, duplicates."""

    code = "malformed"


class TokenRevoked(TokenError):
    """A genuine token under a key that was revoked."""

    code = "revoked"


class TokenInvalid(TokenError):
    """Well-formed, but not ours, not for us or not what it says: alg, typ, kid, signature, claims."""

    code = "invalid"


class TokenExpired(TokenError):
    """Genuine and for us, but its time is over (RFC 7519, 4.1.4)."""

    code = "expired"


class KeysUnavailable(AuthsvcError):
    """Whether a token is good cannot be told now, because its key cannot be had: nobody is to be logged out for that.

    Answer 503, with `retry_after_s` as Retry-After.
    """

    code = "keys_unavailable"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# ---- login: why a code is not turned into a token -----------------------------------------------


class BadRequest(AuthsvcError):
    """The request does not say what the route needs; sending it again changes nothing."""

    code = "bad_request"


class UserBanned(AuthsvcError):
    """The operator has banned this user (`state` 0)."""

    code = "user_banned"


class Overloaded(AuthsvcError):
    """As many requests are waiting as this worker allows; worth another try in a moment."""

    code = "overloaded"


class StoreUnavailable(AuthsvcError):
    """The side store did not take or give the row. Nothing was kept, no token was given."""

    code = "store_unavailable"


class WeChatError(AuthsvcError):
    """WeChat refused, or its answer cannot be used; this class itself is for an errcode we do not map.

    `errcode` is WeChat's own number, `rid` its request id (their support asks for it), `seen_address` that of this
    server, as WeChat sees it and misses it in the allow list; `call` is the last part of the path that was asked.
    """

    code = "wechat_error"

    def __init__(
        self, message: str, *, errcode: int | None = None, rid: str | None = None, seen_address: str | None = None
    ) -> None:
        super().__init__(message)
        self.errcode = errcode
        self.rid = rid
        self.seen_address = seen_address
        self.call: str | None = None


class CodeInvalid(WeChatError):
    """40029: expired, mistyped, of another appid, or used. The client calls wx.login again, once."""

    code = "code_invalid"


class CodeUsed(WeChatError):
    """40163: the code has been exchanged before. The client calls wx.login again, once."""

    code = "code_used"


class UserBlocked(WeChatError):
    """40226: WeChat holds this user for high-risk and stops the login. Trying again is no use."""

    code = "user_blocked"


class WeChatRateLimited(WeChatError):
    """45011: this user is over 100 exchanges a minute."""

    code = "rate_limited"


class WeChatMisconfigured(WeChatError):
    """40013, 40125, 40164, 40243, 41002, 41004, 41008: the operator has to mend appid, secret or allow list."""

    code = "wechat_config"


class WeChatBusy(WeChatError):
    """-1: WeChat asks to try later; the code is still good."""

    code = "wechat_busy"


class WeChatQuotaExceeded(WeChatError):
    """45009: the app's daily quota is used up."""

    code = "wechat_quota"


class AccessTokenRejected(WeChatError):
    """40001, 40014, 42001: WeChat does not take this access_token, or not any more; a fresh one may do."""


class PhoneCodeInvalid(WeChatError):
    """40029 of a phone number's code: expired, used, another user's, or a code of wx.login."""

    code = "phone_code_invalid"


class SessionKeyGone(WeChatError):
    """There is no session_key of this user that is good: none is kept here, or WeChat (87009) has another by now.

    The mini-program logs in again.
    """

    code = "session_key_gone"


class WeChatBadReply(WeChatError):
    """What came back is not an answer: status, size, JSON, openid or session_key."""

    code = "wechat_bad_reply"


class WeChatTimeout(WeChatError):
    """No answer within the deadline, or no connection. Whether the code was used is not known."""

    code = "wechat_timeout"


# ---- what a client got from WeChat and hands on ---------------------------------------------------


class DecryptFailed(AuthsvcError):
    """Open data do not open, or are not this app's, not this user's, not fresh.

    Which of these, the message says, for the log. Whoever sent the data is told the code alone: it would be an oracle.
    """

    code = "decrypt_failed"


class TooManyFailures(AuthsvcError):
    """Data of this user failed to open so often that somebody may be trying it out."""

    code = "rate_limited"


class SignatureInvalid(AuthsvcError):
    """rawData and signature do not belong together under this session_key."""

    code = "signature_invalid"


class ServiceTokenInvalid(AuthsvcError):
    """The request is not from one of our own back ends: no X-Service-Token, or none that we know."""

    code = "service_token_invalid"


# ---- keys, seals and settings: what keeps the service from starting -----------------------------


class KeysError(AuthsvcError):
    """The key folder cannot be used as it is. The message names the file, what is wrong and the mend."""

    code = "keys_unusable"


class KeysConflict(KeysError):
    """Another command is changing the key folder, or has just done so. This one changed nothing."""

    code = "keys_conflict"


class SealBroken(AuthsvcError):
    """A sealed value does not open: another row, another key, another expiry, or changed bytes."""

    code = "seal_broken"


class SettingsError(AuthsvcError):
    """The environment does not describe a service; `problems` has every problem, not just the first.

    `warnings` are those at its end that alone would keep nobody from starting.
    """

    code = "settings_invalid"

    def __init__(self, problems: Sequence[str], *, warnings: Sequence[str] = ()) -> None:
        super().__init__("; ".join([*problems, *(f"warning: {warning}" for warning in warnings)]))
        self.problems = (*problems, *warnings)
        self.warnings = tuple(warnings)


class CannotListen(AuthsvcError):
    """The address is not this machine's, or somebody else listens on it."""

    code = "cannot_listen"


class CannotCount(AuthsvcError):
    """There is no place for what /metrics tells."""

    code = "cannot_count"


class Misdirected(AuthsvcError):
    """The request is for another host than this service is."""

    code = "misdirected_request"


class OpsTokenInvalid(AuthsvcError):
    """The request is not from an operator: its Bearer token is missing, or is not AUTHSVC_OPS_TOKEN."""

    code = "ops_token_invalid"


class CannotWrite(AuthsvcError):
    """A folder is not free, or cannot be written. Nothing was."""

    code = "cannot_write"
