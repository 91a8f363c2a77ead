"""`make demo`: plays the mini-program against a running service and shows every request and reply.

Codes and whole tokens are secrets even here: a demo's output ends up in tickets and screenshots.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import requests
from rich.console import Console
from rich.syntax import Syntax

from authsvc.claims import Policy
from authsvc.encoding import base64url_decode
from authsvc.errors import TokenError
from authsvc.sandbox.process import read_addresses
from authsvc.tokens import JwkSet
from authsvc.verifier import Verifier

_TIMEOUT_S: Final = 10
_SHOWN_CHARS: Final = 8
_SECRET: Final = frozenset({"code", "token", "encryptedData", "signature"})


def run(console: Console, addresses: Path, *, service_url: str | None, sandbox_url: str | None) -> int:
    """Play every step. Returns the exit status: 0 if each went as it should."""
    if service_url is None or sandbox_url is None:
        try:
            noted = read_addresses(addresses)
        except (OSError, ValueError):
            console.print(
                "No running sandbox found. Start one with [bold]make run[/] in another terminal, then try again."
            )
            return 1
        service_url, sandbox_url = service_url or noted["service"], sandbox_url or noted["sandbox"]
    try:
        return _Demo(console, service_url, sandbox_url).play()
    except (requests.RequestException, ValueError):
        console.print(f"No usable answer from {service_url} or {sandbox_url}: does [bold]make run[/] still run?")
        return 1


class _Demo:
    def __init__(self, console: Console, service_url: str, sandbox_url: str) -> None:
        self._console = console
        self._service_url = service_url
        self._sandbox_url = sandbox_url
        self._session = requests.Session()
        self._session.trust_env = False
        self._failed = False

    def play(self) -> int:
        self._step("The phone: wx.login() gives a code (here the sandbox mints one)")
        code = self._ask("POST", f"{self._sandbox_url}/sandbox/code", body={"user": "demo"})["code"]

        self._step("The mini-program sends the code, and gets a token")
        token = self._ask("POST", f"{self._service_url}/login", body={"code": code}, status=200)["token"]

        self._step("Is it logged in? The token alone decides, nothing is looked up")
        answer = self._ask("GET", f"{self._service_url}/checklogin", query={"token": token}, status=200)
        self._expect(answer.get("is_login") is True, "the token is good")

        self._step("What the token says (anyone can read it; only the service can sign it)")
        header, payload, _signature = token.split(".")
        self._show({"header": json.loads(base64url_decode(header)), "payload": json.loads(base64url_decode(payload))})

        self._step("Another service verifies it offline, with nothing but the JWKS")
        issuer = json.loads(base64url_decode(payload))["iss"]
        audience = json.loads(base64url_decode(payload))["aud"]
        jwks = self._ask("GET", f"{self._service_url}/.well-known/jwks.json", status=200)
        try:
            policy = Policy(issuer=issuer, audience=audience, typ=("at+jwt", "JWT"))
            claims = Verifier(JwkSet(jwks), policy).verify(token)
            self._expect(True, f"verified: openid {claims.openid} of app {claims.appid}")
        except TokenError as error:
            self._expect(False, f"verified, but it was refused as {error.code}")

        self._step("A token with one character changed")
        forged = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
        answer = self._ask("GET", f"{self._service_url}/checklogin", query={"token": forged}, status=200)
        self._expect(answer.get("is_login") is False, "is no token")

        self._step("The phone hands over encrypted open data (here the sandbox makes them)")
        data = self._ask("POST", f"{self._sandbox_url}/sandbox/open_data", body={"user": "demo"}, status=200)

        self._step("The service opens them for the token's own user; the session_key stays where it is")
        opened = self._ask(
            "POST",
            f"{self._service_url}/session/decrypt",
            body={"encryptedData": data["encryptedData"], "iv": data["iv"]},
            bearer=token,
            status=200,
        )
        self._expect(opened.get("openId") == json.loads(base64url_decode(payload))["openid"], "they are this user's")

        self._step("The same code again: WeChat takes each one once")
        answer = self._ask("POST", f"{self._service_url}/login", body={"code": code}, status=401)
        self._expect(answer.get("code") == "code_used", "the client calls wx.login() again")
        return 1 if self._failed else 0

    def _ask(
        self,
        method: str,
        url: str,
        *,
        body: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        bearer: str | None = None,
        status: int | None = None,
    ) -> dict[str, Any]:
        shown_query = "?" + "&".join(f"{k}={_shortened(v)}" for k, v in query.items()) if query else ""
        self._console.print(f"  [bold cyan]{method} {url}{shown_query}[/]", soft_wrap=True, highlight=False)
        if bearer is not None:
            self._console.print(f"  Authorization: Bearer {_shortened(bearer)}", highlight=False)
        if body:
            self._show({name: _shortened(value) if name in _SECRET else value for name, value in body.items()})
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        reply = self._session.request(
            method, url, json=body, params=query, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False
        )
        found: dict[str, Any] = reply.json()
        self._console.print(f"  [bold]{reply.status_code}[/] {reply.headers.get('Content-Type', '')}", highlight=False)
        # The `code` of an error is a name, that of the sandbox a secret.
        secret = _SECRET if status is None else _SECRET - {"code"}
        self._show({k: _shortened(v) if k in secret else v for k, v in found.items()})
        if status is not None:
            self._expect(reply.status_code == status, f"status {status}")
        return found

    def _step(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/]")

    def _show(self, value: dict[str, Any]) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        self._console.print(Syntax(text, "json", background_color="default", word_wrap=True, padding=(0, 2)))

    def _expect(self, good: bool, text: str) -> None:
        self._failed = self._failed or not good
        self._console.print(f"  [green]✓ {text}[/]" if good else f"  [red]✗ expected: {text}[/]", highlight=False)


def _shortened(secret: str) -> str:
    return f"{secret[:_SHOWN_CHARS]}…({len(secret)} characters)"
