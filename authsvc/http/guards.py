"""What a request body must be before a view sees it: small, of a known type, with one reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from flask import request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from authsvc.claims import Claims
from authsvc.encoding import NotCanonical, parse_json_object
from authsvc.errors import BadRequest, Overloaded
from authsvc.http.services import services
from authsvc.wechat.replies import IDENTIFIER

# Said in the schemas, and checked by the use-cases: they know why a code is none, and say so.
CODE_PATTERN: Final = f"^{IDENTIFIER.pattern}$"

_MAX_FORM_FIELDS: Final = 16


@contextmanager
def place() -> Iterator[None]:
    """One of the places for requests that wait for WeChat; there are fewer of them than threads.

    Raises: Overloaded at once if none is free.
    """
    with _one_of(services().places):
        yield


@contextmanager
def call_place() -> Iterator[None]:
    """A place of half of those: for what is no login, so that logins always have the other half. Raises: Overloaded."""
    with _one_of(services().call_places), place():
        yield


@contextmanager
def work_place(claims: Claims) -> Iterator[None]:
    """One of the places for requests that wait for the store alone, and few of them for one user; those that wait for
    WeChat leave them free.

    Raises: Overloaded at once if none is free.
    """
    with for_user(claims), _one_of(services().work_places):
        yield


@contextmanager
def for_user(claims: Claims) -> Iterator[None]:
    """Raises: Overloaded at once if the user has several requests under way already."""
    users = services().users_at_work
    if not users.begin(claims.appid, claims.openid):
        raise Overloaded("this user has too many requests under way")
    try:
        yield
    finally:
        users.end(claims.appid, claims.openid)


@contextmanager
def _one_of(places: BoundedSemaphore) -> Iterator[None]:
    if not places.acquire(blocking=False):
        raise Overloaded("too many requests are under way")
    try:
        yield
    finally:
        places.release()


_Model = TypeVar("_Model", bound=BaseModel)


def read_body(model: type[_Model], *, max_bytes: int) -> _Model:
    """The body, JSON or form, as `model`; members that the model does not know are ignored.

    Raises: RequestEntityTooLarge (413), UnsupportedMediaType (415), BadRequest; RequestTimeout (408) if it did not come
    in time, Overloaded if there was no room for it.
    """
    reader = _READERS.get(request.mimetype)
    if reader is None:
        raise UnsupportedMediaType
    if (request.content_length or 0) > max_bytes:
        raise RequestEntityTooLarge  # before a byte of it is read
    # A chunked body has no length beforehand, and werkzeug cuts it off at the limit without a word: hence one more.
    request.max_content_length = max_bytes + 1
    body = request.get_data(cache=False)
    if len(body) > max_bytes:
        raise RequestEntityTooLarge
    if request.content_length is not None and len(body) != request.content_length:
        raise BadRequest("the body was cut short")
    try:
        return model.model_validate(reader(body))
    except ValidationError as error:
        # Names and types only: pydantic's own text quotes what was sent.
        found = error.errors(include_input=False, include_url=False, include_context=False)
        names = sorted({str(item["loc"][0]) for item in found if item["loc"]})
        raise BadRequest(f"missing or not a plain text: {', '.join(names)}") from None


def _json(body: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(body)
    except NotCanonical as error:
        raise BadRequest(f"the body is {error}") from None


def _form(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MAX_FORM_FIELDS,
        )
    except ValueError:
        raise BadRequest("the body is not a form") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadRequest("the body has a field twice")
    return fields


_READERS: Final = {"application/json": _json, "application/x-www-form-urlencoded": _form}
