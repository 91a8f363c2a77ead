"""`/openapi.json` and `/docs`: what this service answers, for programs and for people. Built once for an app."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from flask import Flask, Response, request

from authsvc.http.docs import render_docs
from authsvc.http.openapi import build_document

_OPENAPI: Final = "/openapi.json"
_DOCS: Final = "/docs"


@dataclass(frozen=True, slots=True)
class Page:
    """A reply that stays the same while the app lives."""

    body: bytes
    mimetype: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:32]


def install_reference(app: Flask, *, issuer: str) -> None:
    """After every other route: what is documented is what is there."""
    paths = frozenset({*(rule.rule for rule in app.url_map.iter_rules()), _OPENAPI, _DOCS})
    openapi, docs = _pages(issuer, paths)

    def openapi_document() -> Response:
        return _reply(openapi)

    def reference_page() -> Response:
        return _reply(docs)

    app.add_url_rule(_OPENAPI, "openapi", openapi_document, methods=["GET"])
    app.add_url_rule(_DOCS, "docs", reference_page, methods=["GET"])


# Both are made of their arguments alone, and there are processes with many apps: those of the tests.
@lru_cache(maxsize=4)
def _pages(issuer: str, paths: frozenset[str]) -> tuple[Page, Page]:
    document = build_document(issuer, paths)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    html, headers = render_docs(document)
    return Page(text.encode(), "application/json"), Page(html.encode(), "text/html", headers)


def _reply(page: Page) -> Response:
    reply = Response(page.body, mimetype=page.mimetype, headers=dict(page.headers))
    reply.headers["Cache-Control"] = "public, max-age=300"
    etag = page.etag
    reply.set_etag(etag)
    if request.if_none_match.contains(etag):
        # RFC 9110, 13.1.2. The other preconditions are for writers, and nothing is written here.
        reply.status_code = 304
        reply.set_data(b"")
    return reply
