"""`GET /`: what goes on in the sandbox, as one page for whoever develops against it. Never a secret on it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import Final

from authsvc.sandbox.callbook import CallRecord
from authsvc.sandbox.errcodes import ERRCODES
from authsvc.sandbox.faults import ENDPOINTS, PlannedFault
from authsvc.sandbox.routes import Site
from authsvc.sandbox.wechat import KnownUser

PATH: Final = "/"
CONTENT_TYPE: Final = "text/html; charset=utf-8"

SHOWN_CALLS: Final = 50
SHOWN_USERS: Final = 50
RELOADED_EVERY_S: Final = 5

_STYLE: Final = """
:root { color-scheme: light dark; --line: #d8dde3; --dim: #5c6670; --mark: #07a350; --bad: #c0392b; --back: #f5f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --line: #39414a; --dim: #9aa5b1; --mark: #2fd180; --bad: #ff8a7a; --back: #20262c; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; }
.dim { color: var(--dim); }
.good { color: var(--mark); }
.bad { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 24rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; unicode-bidi: isolate; }
th { font-weight: 600; color: var(--dim); white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.nowrap, td code { white-space: nowrap; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-x: auto; }
"""

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

# A script, a form, a frame, a fetch: the page has none, so whatever slips into it can do none of these either.
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    ("Content-Security-Policy", _POLICY),
    # Pages elsewhere can ask for it as an image, a script or a frame; the browser then keeps it from them.
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


def render(site: Site, url: str) -> bytes:
    """`url` is the sandbox's own, without a slash at its end."""
    model = site.model
    counts = site.calls.counts()
    calls = site.calls.last()[: -SHOWN_CALLS - 1 : -1]
    planned = [(name, fault) for name in ENDPOINTS if (fault := site.faults[name].look())]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{RELOADED_EVERY_S}">
<title>WeChat sandbox</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>WeChat sandbox</h1>
<p class="dim">Stands in for api.weixin.qq.com at <code>{escape(url)}</code> for {_apps(model.appids)}.
As of {_time(model.now)}, read anew every {RELOADED_EVERY_S} seconds.</p>
<h2>Planned faults</h2>
{_faults(planned)}
<h2>Last calls</h2>
{_calls(calls)}
<h2>Calls so far</h2>
{_table(("endpoint", "#calls"), [(_code(name), str(count)) for name, count in counts.items()])}
<h2>Users</h2>
{_users(model.users(SHOWN_USERS))}
<h2>How to</h2>
{_how_to(url, model.appids)}
</body>
</html>
""".encode()


def _apps(appids: Iterable[str]) -> str:
    return ", ".join(_code(appid) for appid in appids)


def _faults(planned: Iterable[tuple[str, PlannedFault]]) -> str:
    rows = [
        (
            _code(endpoint),
            _code(fault.name),
            "every call" if fault.left is None else str(fault.left),
            f"{fault.delay_s:g} s" if fault.delay_s else "",
        )
        for endpoint, fault in planned
    ]
    if not rows:
        return '<p class="dim">None: every call gets its right answer, unless its code was minted with a fault.</p>'
    return _table(("endpoint", "fault", "#calls left", "delay"), rows)


def _calls(calls: Iterable[CallRecord]) -> str:
    rows = [
        (
            _time(call.at),
            _code(call.endpoint),
            _code(call.appid),
            _code(call.openid),
            _code(call.fault),
            _errcode(call.errcode),
        )
        for call in calls
    ]
    if not rows:
        return '<p class="dim">None so far.</p>'
    return _table(("time", "endpoint", "appid", "openid", "fault", "answer"), rows)


def _errcode(errcode: int | None) -> str:
    if errcode is None:
        return '<span class="dim">no answer of WeChat\'s</span>'
    known = ERRCODES.get(errcode)
    if errcode == 0:
        return '<span class="good">ok</span>'
    meaning = f"{known.errmsg}: {known.meaning}" if known else ""
    return f'<span class="bad">{errcode}</span> {escape(meaning)}'


def _users(users: Iterable[KnownUser]) -> str:
    rows = [
        (escape(user.name), _code(user.openid), _code(user.appid), escape(user.device), str(user.keys_replaced))
        for user in users
    ]
    if not rows:
        return '<p class="dim">None so far: whoever a code is minted for is one.</p>'
    return _table(("user", "openid", "appid", "last device", "#session keys replaced"), rows)


def _how_to(url: str, appids: tuple[str, ...]) -> str:
    app = f'"appid": "{appids[0]}", ' if len(appids) > 1 else ""
    recipes = [
        ("A code, as wx.login gives it", "code", f'{{{app}"user": "alice"}}'),
        ("One whose exchange goes wrong", "code", f'{{{app}"user": "alice", "fault": "code_blocked"}}'),
        (
            "One from another device, which replaces the session_key",
            "code",
            f'{{{app}"user": "alice", "device": "pc"}}',
        ),
        ("A code of the phone number button", "phone_code", f'{{{app}"user": "alice", "phone": "13800138000"}}'),
        ("What wx.getUserInfo gives", "open_data", f'{{{app}"user": "alice"}}'),
        ("A fault for the next two calls", "fault", '{"name": "system_busy", "times": 2}'),
        ("One for another endpoint", "fault", '{"name": "access_token_expired", "endpoint": "checksession"}'),
        ("No fault any more", "fault", '{"name": null}'),
    ]
    lines = [f"# {what}\ncurl -d '{body}' {url}/sandbox/{route}" for what, route, body in recipes]
    lines.append("# Every fault and every route\npython -m authsvc.sandbox --help")
    text = "\n\n".join(lines)
    return f"<pre>{escape(text, quote=False)}</pre>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The cells are HTML; a head that begins with "#" is one of numbers."""
    heads = tuple(heads)
    css = [' class="number"' if head.startswith("#") else ' class="nowrap"' if head == "time" else "" for head in heads]
    head = "".join(f"<th{c}>{h.lstrip('#')}</th>" for c, h in zip(css, heads, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{c}>{cell}</td>' for c, cell in zip(css, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _code(text: str | None) -> str:
    return f"<code>{escape(text)}</code>" if text else ""


def _time(at: int) -> str:
    """Hours to seconds in UTC, the whole of it for whoever points at it."""
    when = datetime.fromtimestamp(at, UTC)
    return f'<time datetime="{when:%Y-%m-%dT%H:%M:%SZ}" title="{when:%Y-%m-%d}">{when:%H:%M:%S} UTC</time>'
