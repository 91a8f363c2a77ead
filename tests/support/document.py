"""Holds replies against the OpenAPI document: statuses, headers, content types, bodies, and nothing more than it says.

In the document objects are open: a client passes over members that come later. Here they are closed, so that a reply
has no member that is not described.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from requests.structures import CaseInsensitiveDict

from authsvc.http.openapi import ANY_ROUTE_CODES, build_document
from tests.support.keys import ISSUER

Json = dict[str, Any]

_TOLD: Final = ("Retry-After", "WWW-Authenticate", "Allow", "ETag", "Cache-Control")
_OF_EVERY_METHOD: Final = {
    404: "not_found",
    405: "method_not_allowed",
    421: "misdirected_request",
    500: "internal_error",
}


class DocumentedClient(FlaskClient):
    """The test client; a reply that the document does not have fails the test that met it."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        reply = super().open(*args, **kwargs)
        request = reply.request
        check_reply(
            document_of(self.application),
            method=request.method,
            path=request.environ["PATH_INFO"],
            status=reply.status_code,
            headers=CaseInsensitiveDict(reply.headers.items()),
            body=reply.data,
        )
        return reply


def document_of(app: Flask) -> Json:
    return _document(frozenset(rule.rule for rule in app.url_map.iter_rules()))


@lru_cache(maxsize=8)
def _document(paths: frozenset[str]) -> Json:
    return build_document(ISSUER, paths)


def check_reply(
    document: Json, *, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    """Raises: AssertionError, with what is wrong."""
    where = f"{method} {path} → {status}"
    response = _response(document, method.lower(), path, status, where)
    documented = {name: found(document, header) for name, header in response["headers"].items()}
    for name, header in documented.items():
        assert name in headers, f"{where}: {name} is missing"
        value: object = headers[name]
        if header["schema"]["type"] == "integer":
            value = int(headers[name])
        _check(header["schema"], value, f"{where}: {name}")
    assert [name for name in _TOLD if name in headers and name not in documented] == [], f"{where}: headers"
    content = response.get("content")
    if content is None or method == "HEAD":
        assert body == b"", f"{where}: a body"
        return
    media_type = headers["Content-Type"].partition(";")[0]
    assert media_type in content, f"{where}: {media_type}"
    value = json.loads(body) if media_type.endswith("json") else body.decode("utf-8")
    _check(closed(document, content[media_type]["schema"]), value, where)


def _response(document: Json, method: str, path: str, status: int, where: str) -> Json:
    responses = document["paths"].get(path, {}).get(method, {}).get("responses", {})
    if str(status) in responses:
        response: Json = responses[str(status)]
        return response
    # 404 of a path that is not there, 405 of a method that is not, 421 of another host; 500 is nobody's, and provoked.
    assert status in _OF_EVERY_METHOD, f"{where}: undocumented"
    assert status == 421 or (status == 404) is (path not in document["paths"]), f"{where}: undocumented"
    assert status != 405 or method not in document["paths"][path], f"{where}: undocumented"
    code = _OF_EVERY_METHOD[status]
    assert code in ANY_ROUTE_CODES
    shared: Json = document["components"]["responses"][code]
    return shared


def found(document: Json, part: Json) -> Json:
    """What a `$ref` leads to."""
    if "$ref" not in part:
        return part
    for name in part["$ref"].removeprefix("#/").split("/"):
        document = document[name]
    return document


def closed(document: Json, schema: Any, *, is_part: bool = False) -> Any:
    """The schema without references, whose objects have no members but those it names, unless it says otherwise."""
    if isinstance(schema, list):
        return [closed(document, item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return closed(document, found(document, schema), is_part=is_part)
    done = {
        name: [closed(document, part, is_part=True) for part in value] if name == "allOf" else closed(document, value)
        for name, value in schema.items()
    }
    is_object = "allOf" in schema or isinstance(schema.get("properties"), dict)
    if is_object and not is_part and "additionalProperties" not in schema:
        done["unevaluatedProperties"] = False
    return done


def _check(schema: Json, value: object, where: str) -> None:
    errors = _validator(json.dumps(schema)).iter_errors(value)
    assert [f"{where}: {error.json_path} {error.message}" for error in errors] == []


@lru_cache(maxsize=512)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))
