"""WeChat's server API and its crypto, usable on their own: no Flask, no store, nothing but `requests` and cryptography.

session = new_session(connections=8)
client = WeChatClient(session, url="https://api.weixin.qq.com", timeout_s=5)
app = App("wx1234567890abcdef", (secret,))
who = client.code2session(app, code)
number = client.phone_number(token, code, appid=app.appid, openid=who.openid)  # token: client.stable_access_token(app)
data = decrypt(encrypted_data, iv, who.session_key, appid=app.appid, openid=who.openid, now=now, window_s=600)
"""

from authsvc.wechat.accesstokens import AccessTokens, LivingToken, TokenShare
from authsvc.wechat.client import App, WeChatClient, check_code
from authsvc.wechat.errcodes import KNOWN_ERRCODES
from authsvc.wechat.opendata import MAX_ENCRYPTED_BYTES, OTHER_KEY, SIG_METHOD, decrypt, sign, verify_signature
from authsvc.wechat.replies import AccessToken, PhoneNumber, WeChatSession
from authsvc.wechat.transport import new_session

__all__ = [
    "KNOWN_ERRCODES",
    "MAX_ENCRYPTED_BYTES",
    "OTHER_KEY",
    "SIG_METHOD",
    "AccessToken",
    "AccessTokens",
    "App",
    "LivingToken",
    "PhoneNumber",
    "TokenShare",
    "WeChatClient",
    "WeChatSession",
    "check_code",
    "decrypt",
    "new_session",
    "sign",
    "verify_signature",
]
