"""WeChat's server API, usable on its own: the exchange of a login code, with every way it can fail named.

session = new_session(connections=8)
client = WeChatClient(session, url="https://api.weixin.qq.com", timeout_s=5)
who = client.code2session(App("wx1234567890abcdef", (secret,)), code)
"""

from authsvc.wechat.client import App, WeChatClient, WeChatSession, check_code
from authsvc.wechat.transport import new_session

__all__ = ["App", "WeChatClient", "WeChatSession", "check_code", "new_session"]
