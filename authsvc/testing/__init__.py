"""Throw-away keys and tokens, for the tests of services that verify: no server, no network, nothing on disk.

issuer = FakeIssuer()
client.get("/me", headers=issuer.authorization(openid="oAlice"))     # with issuer.verifier() in the app under test
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from authsvc.claims import Claims, Policy
from authsvc.clock import Clock, SystemClock
from authsvc.jwk import PrivateKey, public_jwk
from authsvc.keyparts import generate_key
from authsvc.tokens import JwkSet, SigningKey, VerificationKey, sign_token
from authsvc.verifier import Verifier

__all__ = ["FakeIssuer"]

ISSUER: Final = "https://auth.test.example"
AUDIENCE: Final = "api"
APPID: Final = "wx0000000000000000"
OPENID: Final = "oTEST0000000000000000000000"

_TTL_S: Final = 7_200


class FakeIssuer:
    """Signs tokens as authsvc does, with a key that was made a moment ago and is trusted by nobody else.

    `issuer.verifier()` knows its keys, also after `rotate()` and `revoke()`. `with issuer.served():` puts metadata and
    keys on a port of this machine, for programs that fetch them; `url` is the issuer then.
    """

    def __init__(
        self,
        url: str = ISSUER,
        *,
        audience: str = AUDIENCE,
        alg: str = "ES256",
        typ: str = "at+jwt",
        clock: Clock | None = None,
    ) -> None:
        """`alg`: ES256, EdDSA or RS256. `clock`: of the tokens' times, and of the verifiers it makes."""
        self.url = url
        self.audience = audience
        self._alg = alg
        self._typ = typ
        self._clock = clock or SystemClock()
        self._revoked: dict[str, VerificationKey] = {}
        self._keys = [self._new_key()]

    @property
    def policy(self) -> Policy:
        return Policy(self.url, self.audience, typ=(self._typ,))

    def token(
        self,
        openid: str = OPENID,
        *,
        appid: str = APPID,
        unionid: str | None = None,
        expires_in_s: int = _TTL_S,
        issued_ago_s: int = 0,
        **claims: Any,
    ) -> str:
        """A genuine token, or one that says something else: `claims` are those of authsvc.Claims, by their names."""
        return self._signed(self._claims(openid, appid, unionid, expires_in_s, issued_ago_s, claims), self._keys[-1])

    def expired_token(self, openid: str = OPENID) -> str:
        """A genuine token whose time was over a second ago."""
        return self.token(openid, issued_ago_s=_TTL_S + 1, expires_in_s=-1)

    def forged_token(self, openid: str = OPENID) -> str:
        """A token of somebody else, under the kid of our key."""
        ours, theirs = self._keys[-1], self._new_key()
        return self._signed(self._claims(openid, APPID, None, _TTL_S, 0, {}), replace(theirs, kid=ours.kid))

    def authorization(self, openid: str = OPENID, **claims: Any) -> dict[str, str]:
        """The header of a request by this user."""
        return {"Authorization": f"Bearer {self.token(openid, **claims)}"}

    def verifier(self, **options: Any) -> Verifier:
        """A Verifier of the tokens of this issuer; `options` are those of Policy, and `remember`."""
        remember = {"remember": options.pop("remember")} if "remember" in options else {}
        return Verifier(_Keys(self), replace(self.policy, **options), clock=self._clock, **remember)

    def rotate(self) -> None:
        """Sign with a fresh key from here on. Tokens that are out stay good."""
        self._keys.append(self._new_key())

    def revoke(self) -> None:
        """Refuse every token that is out, and sign with a fresh key."""
        self._revoked |= {key.kid: replace(_public(key), revoked=True) for key in self._keys}
        self._keys = [self._new_key()]

    def jwks(self) -> dict[str, Any]:
        """The keys as `GET /.well-known/jwks.json` gives them."""
        return {"keys": [public_jwk(key.key.public_key()).as_dict() for key in self._keys]}

    def metadata(self) -> dict[str, Any]:
        """The metadata as `GET /.well-known/openid-configuration` gives it."""
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/.well-known/jwks.json",
            "id_token_signing_alg_values_supported": [self._alg],
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
        }

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Serve metadata and keys on a free port of loopback. Gives the URL, which is the issuer meanwhile."""
        before = self.url
        with ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) as server:
            server.daemon_threads = True
            self.url = f"http://127.0.0.1:{server.server_address[1]}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield self.url
            finally:
                server.shutdown()
                thread.join()
                self.url = before

    def _claims(
        self,
        openid: str,
        appid: str,
        unionid: str | None,
        expires_in_s: int,
        issued_ago_s: int,
        changes: dict[str, Any],
    ) -> Claims:
        now = self._clock.now()
        issued_at = now - issued_ago_s
        claims = Claims(
            issuer=self.url,
            audience=self.audience,
            openid=openid,
            appid=appid,
            issued_at=issued_at,
            expires_at=now + expires_in_s,
            auth_time=issued_at,
            jti=secrets.token_urlsafe(16),
            sid=secrets.token_urlsafe(16),
            unionid=unionid,
        )
        return replace(claims, **changes)

    def _signed(self, claims: Claims, key: SigningKey) -> str:
        return sign_token(claims, key, typ=self._typ)

    def _new_key(self) -> SigningKey:
        private: PrivateKey = generate_key(self._alg)
        return SigningKey(self._alg, public_jwk(private.public_key()).kid, private)


class _Keys:
    """The issuer's keys as they are at the moment of the question."""

    def __init__(self, issuer: FakeIssuer) -> None:
        self._issuer = issuer
        self._read: tuple[object, JwkSet] = (None, JwkSet(issuer.jwks()))

    @property
    def epoch(self) -> object:
        return self._current()

    def find(self, unverified_kid: str, *, now: int) -> VerificationKey | None:
        return self._issuer._revoked.get(unverified_kid) or self._current().find(unverified_kid, now=now)

    def ask(self, *, issued_at: int) -> None:
        """There is nobody who would know more."""

    def _current(self) -> JwkSet:
        kids = tuple(key.kid for key in self._issuer._keys)
        if self._read[0] != kids:
            self._read = kids, JwkSet(self._issuer.jwks())
        return self._read[1]


def _public(key: SigningKey) -> VerificationKey:
    return VerificationKey(key.alg, key.kid, key.key.public_key())


def _handler(issuer: FakeIssuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            documents = {
                "/.well-known/openid-configuration": issuer.metadata,
                "/.well-known/oauth-authorization-server": issuer.metadata,
                "/.well-known/jwks.json": issuer.jwks,
            }
            document = documents.get(self.path)
            body = json.dumps(document() if document else {}).encode("ascii")
            self.send_response(200 if document else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "public, max-age=300")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A test's output is the test's own."""

    return Handler
