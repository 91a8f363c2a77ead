"""`GET /openapi.json`: true to the app in both directions. That every other reply in these tests is in it, their client
looks after (support/document.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from werkzeug.exceptions import RequestTimeout

from authsvc import errors
from authsvc.http.advice import ADVICE
from authsvc.http.bodies import Unreadable
from authsvc.http.operations import OPERATIONS
from authsvc.http.problems import PROBLEMS
from authsvc.keyset import Kind
from authsvc.sessionkeys import sealed_login
from authsvc.store import LoginRow, UserId, UserRow
from authsvc.store.memory import MemoryStore
from authsvc.tokens import sign_token
from tests.support.app import CODE, SERVICE_TOKEN, SESSION_KEY, FakeService
from tests.support.clock import NOW
from tests.support.document import check_reply, closed, found
from tests.support.keys import CLAIMS, ISSUER, keyring
from tests.support.users import ban

PATH = "/openapi.json"
METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")
FOR_BACK_ENDS = {"/session/sign", "/session/check", "/session/reset"}


def document(*, service_tokens: tuple[str, ...] = (SERVICE_TOKEN,)) -> dict[str, Any]:
    told: dict[str, Any] = FakeService(service_tokens=service_tokens).client().get(PATH).get_json()
    return told


def operations(told: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in told["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def app_of(service: FakeService) -> Flask:
    return service.client().application


# ---- the document itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("service_tokens", [(), (SERVICE_TOKEN,)])
def test_the_document_is_openapi_3_1(service_tokens: tuple[str, ...]) -> None:
    told = document(service_tokens=service_tokens)
    assert told["openapi"] == "3.1.0"
    assert [error.message for error in OpenAPIV31SpecValidator(told).iter_errors()] == []


@pytest.mark.parametrize("service_tokens", [(), (SERVICE_TOKEN,)])
def test_what_is_documented_is_what_is_routed_method_by_method(service_tokens: tuple[str, ...]) -> None:
    service = FakeService(service_tokens=service_tokens)
    routed = {
        (rule.rule, method.lower()) for rule in app_of(service).url_map.iter_rules() for method in rule.methods or ()
    }
    documented = {(path, method) for path, method, _ in operations(service.client().get(PATH).get_json())}
    assert documented == routed
    assert {path for path, _ in documented} & FOR_BACK_ENDS == (FOR_BACK_ENDS if service_tokens else set())


def test_no_operation_is_for_a_route_that_no_settings_bring() -> None:
    routed = {rule.rule for rule in app_of(FakeService()).url_map.iter_rules()}
    assert [operation.path for operation in OPERATIONS if operation.path not in routed] == []


def test_every_operation_has_an_id_of_its_own_a_summary_a_description_and_a_tag() -> None:
    told = document()
    ids = [operation["operationId"] for _, _, operation in operations(told)]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in told["tags"]}
    for _, _, operation in operations(told):
        assert operation["summary"]
        assert operation["description"]
        assert set(operation["tags"]) <= tags
    assert all(tag["description"] for tag in told["tags"])


def test_no_tag_is_left_without_a_route() -> None:
    for service_tokens in ((), (SERVICE_TOKEN,)):
        told = document(service_tokens=service_tokens)
        used = {tag for _, _, operation in operations(told) for tag in operation["tags"]}
        assert used == {tag["name"] for tag in told["tags"]}


def test_every_reference_in_the_document_leads_somewhere() -> None:
    told = document()

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from ([part["$ref"]] if isinstance(part.get("$ref"), str) else [])
            for member in part.values():
                yield from references(member)
        elif isinstance(part, list):
            for member in part:
                yield from references(member)

    wanted = set(references(told))
    assert len(wanted) > 20
    for reference in wanted:
        assert found(told, {"$ref": reference})


def test_no_schema_has_a_title_that_says_its_name_once_more() -> None:
    for schema in document()["components"]["schemas"].values():
        assert not isinstance(schema.get("title"), str)
        assert [name for name, member in schema["properties"].items() if "title" in member] == []


def test_the_server_is_the_issuer_whatever_the_request_says() -> None:
    reply = FakeService().client().get(PATH, headers={"Host": "evil.internal", "X-Forwarded-Host": "evil.example"})
    assert reply.get_json()["servers"] == [{"url": ISSUER}]
    assert "evil" not in reply.text


@pytest.mark.parametrize("path", [PATH, "/docs"])
def test_who_has_it_is_told_so(path: str) -> None:
    client = FakeService().client()
    reply = client.get(path)
    assert reply.headers["Cache-Control"] == "public, max-age=300"
    again = client.get(path, headers={"If-None-Match": reply.headers["ETag"]})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", reply.headers["ETag"])
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert FakeService(service_tokens=()).client().get(path).headers["ETag"] != reply.headers["ETag"]


# ---- examples and schemas --------------------------------------------------------------------------


def contents(told: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body of the document, with where it stands."""
    for path, method, operation in operations(told):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{method} {path} {media_type}", content
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                yield f"{method} {path} {status}", content
    for code, response in told["components"]["responses"].items():
        for content in response["content"].values():
            yield code, content


def test_every_example_of_a_body_fits_its_schema() -> None:
    told = document()
    seen = 0
    for where, content in contents(told):
        validator = Draft202012Validator(closed(told, content["schema"]))
        for example in content.get("examples", {}).values():
            value = found(told, example)["value"]
            assert [f"{where}: {error.message}" for error in validator.iter_errors(value)] == []
            seen += 1
    assert seen > 60


@pytest.mark.parametrize("path", [operation.path for operation in OPERATIONS if operation.body is not None])
@pytest.mark.parametrize("media_type", ["application/json", "application/x-www-form-urlencoded"])
def test_the_example_of_a_request_is_taken_in_each_type_that_is_documented(path: str, media_type: str) -> None:
    content = document()["paths"][path]["post"]["requestBody"]["content"][media_type]
    (example,) = content["examples"].values()
    body = {"data" if "form" in media_type else "json": example["value"]}
    reply = Act(path).client().post(path, headers=credentials(), content_type=media_type, **body)
    assert reply.get_json(force=True).get("code") in (None, "decrypt_failed")


LIMITS: list[tuple[str, dict[str, Any]]] = [
    ("/login", {"code": ""}),
    ("/login", {"code": "a" * 128}),
    ("/login", {"code": "a" * 129}),
    ("/login", {"code": "a b"}),
    ("/login", {"code": 1}),
    ("/login", {}),
    ("/login", {"code": "a", "appid": None}),
    ("/login", {"code": "a", "appid": 1}),
    ("/login", {"code": "a", "appid": "a" * 65}),
    ("/login", {"code": "a", "userInfo": {}}),
    ("/session/phone", {"code": ""}),
    ("/session/phone", {"code": "a" * 128}),
    ("/session/phone", {"code": "a" * 129}),
    ("/session/phone", {"code": "é"}),
    ("/session/phone", {"code": None}),
    ("/session/sign", {"body": ""}),
    ("/session/sign", {"body": "x"}),
    ("/session/sign", {"body": {}}),
    ("/session/verify", {"rawData": "", "signature": ""}),
    ("/session/verify", {"rawData": "x"}),
    ("/session/verify", {"rawData": "x", "signature": 1}),
]


@pytest.mark.parametrize(("path", "body"), LIMITS)
def test_a_body_is_refused_as_a_bad_request_where_the_schema_refuses_it_and_nowhere_else(
    path: str, body: dict[str, Any]
) -> None:
    told = document()
    schema = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fits = Draft202012Validator(found(told, schema)).is_valid(body)
    reply = Act(path).client().post(path, headers=credentials(), json=body)
    assert (reply.get_json(force=True).get("code") != "bad_request") is fits


@pytest.mark.parametrize(
    "body", [{}, {"encryptedData": "", "iv": "A" * 22 + "=="}, {"encryptedData": "A" * 24, "iv": "AAAA"}]
)
def test_data_that_the_schema_refuses_are_not_decrypted(body: dict[str, str]) -> None:
    told = document()
    schema = told["paths"]["/session/decrypt"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert not Draft202012Validator(found(told, schema)).is_valid(body)
    assert (
        Act("/session/decrypt").client().post("/session/decrypt", headers=credentials(), json=body).status_code == 400
    )


# ---- every code of every route ---------------------------------------------------------------------


class _Store(MemoryStore):
    """Fails where it is told to."""

    is_down = False

    def put_login(self, login: LoginRow, *, unionid: str | None) -> None:
        self._fail_as_told()
        super().put_login(login, unionid=unionid)

    def user(self, user: UserId) -> UserRow | None:
        self._fail_as_told()
        return super().user(user)

    def _fail_as_told(self) -> None:
        if self.is_down:
            raise errors.StoreUnavailable("gone")


GOOD_BODIES: dict[str, dict[str, str]] = {
    operation.path: dict(operation.body.example) for operation in OPERATIONS if operation.body is not None
}


@dataclass
class Act:
    """One request that is answered with 200, or with `decrypt_failed`, unless something is changed in it before."""

    path: str
    method: str = "POST"
    store: _Store = field(default_factory=_Store)
    service: FakeService = field(init=False)
    headers: dict[str, str] = field(default_factory=lambda: credentials())
    body: bytes | None = None
    stream: Unreadable | None = None
    content_type: str | None = "application/json"
    times: int = 1

    def __post_init__(self) -> None:
        self.service = FakeService(store=self.store)
        self.method = "GET" if self.path in ("/readyz", "/metrics") else "POST"
        if self.path in GOOD_BODIES:
            self.body = json.dumps(GOOD_BODIES[self.path]).encode()
        if self.path != "/login":
            row = sealed_login(
                SESSION_KEY,
                self.service.ring,
                user=self.service.user(CLAIMS.openid),
                sid=CLAIMS.sid,
                started_at_us=NOW * 1_000_000,
                created_at=NOW,
                expires_at=NOW + 1000,
                now=NOW,
                random_bytes=bytes,
            )
            self.store.put_login(row, unionid=None)

    def client(self) -> Any:
        return self.service.client()

    def code(self) -> str:
        client = self.client()
        for _ in range(self.times):
            reply = client.open(
                self.path,
                method=self.method,
                headers=self.headers,
                data=self.body,
                content_type=self.content_type,
                environ_overrides={} if self.stream is None else {"wsgi.input": self.stream},
            )
        return str(reply.get_json(force=True).get("code", reply.status_code))


def token(**changes: Any) -> str:
    return sign_token(replace(CLAIMS, **changes), keyring().signing_key(now=NOW), typ="at+jwt")


def credentials() -> dict[str, str]:
    return {"Authorization": f"Bearer {token()}", "X-Service-Token": SERVICE_TOKEN}


def _revoke(act: Act) -> None:
    ring = act.service.ring
    active, standby, *others = ring.keyset.keys
    keys = (replace(active, revoked_at=NOW), replace(standby, activate_at=NOW), *others)
    act.service.ring = replace(ring, keyset=replace(ring.keyset, keys=keys))


def _ban(act: Act) -> None:
    if act.path == "/login":
        act.client().post("/login", json={"code": CODE + "1"})
    ban(act.store, act.service.user(CLAIMS.openid))


def _forget(act: Act) -> None:
    act.service.store = _Store()


def _take_sealing_key(act: Act) -> None:
    ring = act.service.ring
    keys = [replace(k, activate_at=NOW + 1) if k.kind is not Kind.INDEX else k for k in ring.keyset.keys]
    act.service.ring = replace(ring, keyset=replace(ring.keyset, keys=tuple(keys)))


def _fill(act: Act) -> None:
    act.service.places = act.service.work_places = 0
    if act.path == "/session/sign":
        act.stream = Unreadable(errors.Overloaded("too many long requests are under way"))


def _dawdle(act: Act) -> None:
    act.stream = Unreadable(RequestTimeout())


def _header(name: str, value: str | None) -> Callable[[Act], None]:
    def change(act: Act) -> None:
        act.headers.pop(name)
        if value is not None:
            act.headers[name] = value

    return change


def _at_wechat(error: errors.WeChatError) -> Callable[[Act], None]:
    def change(act: Act) -> None:
        act.service.wechat.answer = act.service.wechat.failure = error

    return change


def _limit(act: Act) -> None:
    if act.path == "/session/decrypt":
        act.times = 51
    else:
        _at_wechat(errors.WeChatRateLimited("x", errcode=45011))(act)


def _set(name: str, value: object) -> Callable[[Act], None]:
    return lambda act: setattr(act, name, value)


CAUSES: dict[str, Callable[[Act], None]] = {
    "bad_request": _set("body", b"{}"),
    "request_timeout": _dawdle,
    "payload_too_large": _set("body", b" " * 300_000),
    "unsupported_media_type": _set("content_type", "text/plain"),
    "missing": _header("Authorization", None),
    "malformed": _header("Authorization", "Bearer abc"),
    "invalid": _header("Authorization", f"Bearer {token(audience='another')}"),
    "expired": _header("Authorization", f"Bearer {token(expires_at=NOW)}"),
    "revoked": _revoke,
    "service_token_invalid": _header("X-Service-Token", None),
    "ops_token_invalid": _header("Authorization", None),
    "user_banned": _ban,
    "session_key_gone": _forget,
    "store_unavailable": lambda act: setattr(act.store, "is_down", True),
    "keys_unusable": _take_sealing_key,
    "overloaded": _fill,
    "decrypt_failed": lambda act: None,
    "rate_limited": _limit,
    "phone_code_invalid": _at_wechat(errors.PhoneCodeInvalid("x", errcode=40029)),
    "code_invalid": _at_wechat(errors.CodeInvalid("x", errcode=40029)),
    "code_used": _at_wechat(errors.CodeUsed("x", errcode=40163)),
    "user_blocked": _at_wechat(errors.UserBlocked("x", errcode=40226)),
    "wechat_config": _at_wechat(errors.WeChatMisconfigured("x", errcode=40125)),
    "wechat_bad_reply": _at_wechat(errors.WeChatBadReply("x")),
    "wechat_error": _at_wechat(errors.WeChatError("x", errcode=50002)),
    "wechat_busy": _at_wechat(errors.WeChatBusy("x", errcode=-1)),
    "wechat_quota": _at_wechat(errors.WeChatQuotaExceeded("x", errcode=45009)),
    "wechat_timeout": _at_wechat(errors.WeChatTimeout("x")),
}


def documented_codes() -> list[tuple[str, str]]:
    told = document()
    return [
        (path, code)
        for path, method, operation in operations(told)
        if method in ("get", "post")
        for status, response in operation["responses"].items()
        if int(status) >= 400
        for code in response["content"]["application/problem+json"]["examples"]
    ]


@pytest.mark.parametrize("path", sorted({path for path, _ in documented_codes()}))
def test_each_code_that_a_route_is_documented_with_is_answered_by_it(path: str) -> None:
    codes = [code for documented, code in documented_codes() if documented == path]
    answered = []
    for code in codes:
        act = Act(path)
        CAUSES[code](act)
        answered.append(act.code())
    assert answered == codes


@pytest.mark.parametrize("path", [operation.path for operation in OPERATIONS if operation.path.startswith("/session")])
def test_options_of_a_session_route_wants_no_token(path: str) -> None:
    reply = Act(path).client().options(path)
    assert (reply.status_code, set(reply.headers["Allow"].split(", "))) == (200, {"OPTIONS", "POST"})


def test_the_credentials_that_a_route_is_documented_with_are_those_it_refuses_without() -> None:
    wanted: dict[str, list[Any]] = {
        "missing": [{"bearer": []}],
        "service_token_invalid": [{"bearer": [], "service_token": []}],
        "ops_token_invalid": [{"ops_token": []}],
    }
    told = document()
    for path, method, operation in operations(told):
        with_bodies = told["paths"][path]["get"] if method == "head" else operation
        codes = {code for response in with_bodies["responses"].values() for code in _codes(response)}
        needed = [security for code, security in wanted.items() if code in codes]
        asks_for_one = path == "/checklogin" and method != "options"
        optional: list[list[Any]] = [[{}, {"bearer": []}]] if asks_for_one else [[]]
        assert operation["security"] == (needed or optional)[-1], f"{method} {path}"


def _codes(response: dict[str, Any]) -> list[str]:
    return [code for content in response.get("content", {}).values() for code in content.get("examples", ())]


def test_every_code_has_its_advice_and_stands_in_the_document() -> None:
    assert ADVICE.keys() == PROBLEMS.keys()
    told = document()
    assert told["x-error-codes"] == {
        code: {"status": problem.status, "title": problem.title, "advice": ADVICE[code]}
        for code, problem in PROBLEMS.items()
    }
    of_routes = {code for _, code in documented_codes()}
    assert of_routes | told["components"]["responses"].keys() == PROBLEMS.keys()
    assert of_routes & told["components"]["responses"].keys() == set()


# ---- what holds replies against the document ---------------------------------------------------------

GOOD_HEADERS = {"X-Request-ID": "abc", "Cache-Control": "no-store", "Content-Type": "application/json"}
PROBLEM = {"status": 400, "title": PROBLEMS["bad_request"].title, "code": "bad_request", "request_id": "abc"}


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {}, {"status": "fine"}),
        (200, {}, {"status": "ok", "version": "1"}),
        (200, {"Content-Type": "text/html"}, {"status": "ok"}),
        (200, {"Cache-Control": "public"}, {"status": "ok"}),
        (200, {"Retry-After": "5"}, {"status": "ok"}),
        (200, {"X-Request-ID": ""}, {"status": "ok"}),
        (204, {}, {"status": "ok"}),
        (400, {"Content-Type": "application/problem+json"}, PROBLEM),
        (404, {"Content-Type": "application/problem+json"}, PROBLEM),
        (405, {"Content-Type": "application/problem+json", "Allow": "GET"}, PROBLEM),
    ],
)
def test_a_reply_that_is_not_as_documented_is_noticed(status: int, headers: dict[str, str], body: object) -> None:
    told = document()
    good = {"method": "GET", "path": "/healthz", "status": 200, "headers": GOOD_HEADERS, "body": b'{"status":"ok"}'}
    check_reply(told, **good)  # type: ignore[arg-type]
    bad = good | {"status": status, "headers": GOOD_HEADERS | headers, "body": json.dumps(body).encode()}
    with pytest.raises(AssertionError):
        check_reply(told, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"code": "code_used"}, {"status": 401}, {"title": "Oh"}, {"extra": 1}, {"request_id": ""}]
)
def test_a_problem_that_is_not_one_of_the_route_is_noticed(changes: dict[str, object]) -> None:
    told = document()
    headers = GOOD_HEADERS | {"Content-Type": "application/problem+json"}
    reply = {"method": "POST", "path": "/login", "status": 400, "headers": headers}
    check_reply(told, **reply, body=json.dumps(PROBLEM).encode())  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        check_reply(told, **reply, body=json.dumps(PROBLEM | changes).encode())  # type: ignore[arg-type]
