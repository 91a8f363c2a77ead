"""The OpenAPI 3.1 document, made of the request models, the reply types, the operations and the problem table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from authsvc.http.advice import ADVICE
from authsvc.http.operations import IDENTIFYING_CODES, OPERATIONS, TAGS, Body, Caller, Operation
from authsvc.http.problems import PROBLEMS
from authsvc.http.replies import Problem

Json: TypeAlias = dict[str, Any]

CONTRACT_VERSION: Final = "1.0.0"
"""Of the HTTP contract, and not of the program: the first number changes when a client would have to."""

ANY_ROUTE_CODES: Final = ("not_found", "method_not_allowed", "misdirected_request", "internal_error")
"""What is answered where there is no operation, or by none that works as it should."""

_FORM: Final = "application/x-www-form-urlencoded"
_PROBLEM_JSON: Final = "application/problem+json"
_SCHEMAS: Final = "#/components/schemas/"

_DESCRIPTION: Final = """\
The login service for WeChat mini-programs: a code of wx.login() in, a signed JWT with the openid out. Other services \
verify tokens by themselves, with the public keys.

JSON is in UTF-8, and a body with a member twice is refused. Members that a route does not know are passed over. \
Nothing redirects. Errors are `application/problem+json` (RFC 9457); a client goes by `code`, for the texts may \
change. A path that is not there is 404 `not_found`, another method 405 `method_not_allowed`, another public host than \
the issuer's 421 `misdirected_request`; 500 `internal_error` is a fault of the service, and never meant."""

_SECURITY: Final[Mapping[Caller, list[dict[str, list[str]]]]] = {
    Caller.ANYONE: [],
    Caller.TOKEN_OR_NONE: [{}, {"bearer": []}],
    Caller.TOKEN: [{"bearer": []}],
    Caller.BACK_END: [{"bearer": [], "service_token": []}],
    Caller.OPERATOR: [{"ops_token": []}],
}

_SECURITY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The token of `POST /login`, in the Authorization header.",
    },
    "service_token": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Service-Token",
        "description": "A secret of your back ends, one of those that the service is configured with.",
    },
    "ops_token": {
        "type": "http",
        "scheme": "bearer",
        "description": "The secret of operators that the service is configured with.",
    },
}

_HEADERS: Final[Json] = {
    "RequestId": {
        "description": "The X-Request-ID of the request if it is 1 to 64 of `0-9A-Za-z._-`, else a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9A-Za-z._-]{1,64}$"},
    },
    "NotCached": {
        "description": "The reply is for the one who asked, now.",
        "required": True,
        "schema": {"type": "string", "const": "no-store"},
    },
    "Cached": {
        "description": "How long caches may keep the reply. After a revocation of a key it is less.",
        "required": True,
        "schema": {"type": "string", "pattern": "^public, max-age=[0-9]+(, .+)?$"},
    },
    "ETag": {
        "description": "For If-None-Match.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9a-f]{32}"$'},
    },
    "Allow": {
        "description": "The methods of the route.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Z]+(, [A-Z]+)*$"},
    },
    "RetryAfter": {
        "description": "Seconds.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Challenge": {
        "description": "RFC 6750. Where a token was refused, with the code.",
        "required": True,
        "schema": {"type": "string", "pattern": "^Bearer"},
    },
}

_PARAMETERS: Final[Json] = {
    "RequestId": {
        "name": "X-Request-ID",
        "in": "header",
        "description": "An id of the caller's own for the request. It comes back, and stands in the log.",
        "schema": {"type": "string"},
        "example": "4bf92f3577b34da6",
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The ETag of the reply that is known already.",
        "schema": {"type": "string"},
        "example": '"d41d8cd98f00b204e9800998ecf8427e"',
    },
}


def build_document(issuer: str, paths: Collection[str]) -> Json:
    """The document of the operations whose path is one of `paths`."""
    there = [operation for operation in OPERATIONS if operation.path in paths]
    schemas, definitions = _schemas(there)
    items: Json = {}
    for operation in there:
        items.setdefault(operation.path, {}).update(_methods(operation, schemas))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "authsvc",
            "summary": "Login for WeChat mini-programs",
            "description": _DESCRIPTION,
            "version": CONTRACT_VERSION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": GenerateJsonSchema.schema_dialect,
        "servers": [{"url": issuer}],
        "tags": [
            {"name": tag, "description": text} for tag, text in TAGS.items() if any(op.tag == tag for op in there)
        ],
        "paths": items,
        "components": {
            "schemas": definitions,
            "responses": {code: _problem_reply((code,)) for code in ANY_ROUTE_CODES},
            "parameters": _PARAMETERS,
            "examples": {code: _problem_example(code) for code in PROBLEMS},
            "headers": _HEADERS,
            "securitySchemes": _SECURITY_SCHEMES,
        },
        "x-error-codes": {
            code: {"status": problem.status, "title": problem.title, "advice": ADVICE[code]}
            for code, problem in PROBLEMS.items()
        },
    }


# ---- schemas ------------------------------------------------------------------------------------


class _Untitled(GenerateJsonSchema):
    """A title that pydantic makes of a member's name says nothing that the name does not."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the signature is given
        return False


_REPLY, _BODY, _MEMBERS = "reply", "body", "problem members"


def _schemas(operations: Iterable[Operation]) -> tuple[dict[tuple[str, str], Json], Json]:
    """By operation and use what stands where a schema is wanted, mostly a `$ref`, and the definitions behind them."""
    wanted: dict[tuple[str, str], tuple[JsonSchemaMode, Any]] = {}
    for operation in operations:
        wanted[operation.id, _REPLY] = "serialization", operation.reply
        if operation.body is not None:
            wanted[operation.id, _BODY] = "validation", operation.body.model
        if operation.problem_members is not None:
            wanted[operation.id, _MEMBERS] = "serialization", operation.problem_members.type
    inputs = [(key, mode, TypeAdapter(type_)) for key, (mode, type_) in wanted.items()]
    inputs.append((("", ""), "serialization", TypeAdapter(Problem)))
    found, definitions = TypeAdapter.json_schemas(inputs, ref_template=_SCHEMAS + "{model}", schema_generator=_Untitled)
    for schema in definitions["$defs"].values():
        schema.pop("title", None)
    return {key: schema for (key, _mode), schema in found.items()}, definitions["$defs"]


# ---- operations ---------------------------------------------------------------------------------


def _methods(operation: Operation, schemas: Mapping[tuple[str, str], Json]) -> Json:
    """The operation itself, and what Flask answers to HEAD and OPTIONS beside it."""
    methods = {operation.method: _operation(operation, schemas)}
    if operation.method == "get":
        methods["head"] = _head(methods["get"])
    methods["options"] = _options(operation)
    return methods


def _operation(operation: Operation, schemas: Mapping[tuple[str, str], Json]) -> Json:
    codes = (*IDENTIFYING_CODES[operation.caller], *operation.codes)
    responses = {"200": _good_reply(operation, schemas[operation.id, _REPLY])}
    if operation.may_be_kept:
        responses["304"] = {
            "description": "What If-None-Match names is still good.",
            "headers": _headers("RequestId", "Cached", "ETag"),
        }
    responses |= _problem_replies(codes)
    if operation.problem_members is not None:
        _extend(responses, schemas[operation.id, _MEMBERS], operation.problem_members.example)
    found = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": _parameters(operation),
        "security": _SECURITY[operation.caller],
        "responses": responses,
    }
    if operation.body is not None:
        found["requestBody"] = _request_body(operation.body, schemas[operation.id, _BODY])
    return found


def _head(get: Json) -> Json:
    return get | {
        "operationId": f"{get['operationId']}Head",
        "summary": f"{get['summary']}: the headers alone",
        "description": "As GET, without a body.",
        "responses": {
            status: {name: member for name, member in response.items() if name != "content"}
            for status, response in get["responses"].items()
        },
    }


def _options(operation: Operation) -> Json:
    return {
        "operationId": f"{operation.id}Options",
        "tags": [operation.tag],
        "summary": "Tell which methods the route takes",
        "description": "Allow names them.",
        "parameters": [_ref("parameters", "RequestId")],
        "security": [],
        "responses": {"200": {"description": "No body.", "headers": _headers("RequestId", "NotCached", "Allow")}},
    }


def _parameters(operation: Operation) -> list[Json]:
    found = [_ref("parameters", "RequestId")]
    if operation.parameter is not None:
        parameter = operation.parameter
        found.append(
            {
                "name": parameter.name,
                "in": "query",
                "description": parameter.description,
                "schema": {"type": "string"},
                "example": parameter.example,
            }
        )
    if operation.may_be_kept:
        found.append(_ref("parameters", "IfNoneMatch"))
    return found


def _request_body(body: Body, schema: Json) -> Json:
    content = {"schema": schema, "examples": {"usual": {"value": dict(body.example)}}}
    return {
        "description": f"At most {body.max_bytes:,} bytes, as JSON or as a form.",
        "required": True,
        "content": {"application/json": content, _FORM: content},
    }


def _good_reply(operation: Operation, schema: Json) -> Json:
    content: Json = {"schema": schema}
    if operation.examples:
        content["examples"] = {name: {"value": value} for name, value in operation.examples.items()}
    kept = ("Cached", "ETag") if operation.may_be_kept else ("NotCached",)
    return {
        "description": "The answer.",
        "headers": _headers("RequestId", *kept),
        "content": {operation.media_type: content},
    }


# ---- problems -----------------------------------------------------------------------------------


def _problem_replies(codes: Iterable[str]) -> Json:
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes, key=list(PROBLEMS).index):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    return {str(status): _problem_reply(codes) for status, codes in by_status.items()}


def _problem_reply(codes: Collection[str]) -> Json:
    """One response with the codes, all of one status, that it may have."""
    (status,) = {PROBLEMS[code].status for code in codes}
    here = {
        "type": "object",
        "properties": {
            "status": {"const": status},
            "title": {"enum": [PROBLEMS[code].title for code in codes]},
            "code": {"enum": list(codes)},
        },
    }
    names = ["RequestId", "NotCached"]
    if status == 401:
        names.append("Challenge")
    if status == 405:
        names.append("Allow")
    if any(PROBLEMS[code].retry_after_s is not None for code in codes):
        names.append("RetryAfter")
    return {
        "description": "\n\n".join(f"`{code}`: {PROBLEMS[code].title}. {ADVICE[code]}" for code in codes),
        "headers": _headers(*names),
        "content": {
            _PROBLEM_JSON: {
                "schema": {"allOf": [{"$ref": _SCHEMAS + Problem.__name__}, here]},
                "examples": {code: _ref("examples", code) for code in codes},
            }
        },
    }


def _extend(responses: Json, members: Json, example: Mapping[str, Any]) -> None:
    """Put the members into every problem among the responses."""
    for response in responses.values():
        content = response.get("content", {}).get(_PROBLEM_JSON)
        if content is not None:
            content["schema"]["allOf"].append(members)
            content["examples"] = {
                code: {"value": {**_problem_example(code)["value"], **example}} for code in content["examples"]
            }


def _problem_example(code: str) -> Json:
    problem = PROBLEMS[code]
    value = {"status": problem.status, "title": problem.title, "code": code, "request_id": "4bf92f3577b34da6"}
    return {"summary": problem.title, "value": value}


# ---- references ---------------------------------------------------------------------------------

_NAMES_OF_HEADERS: Final = {
    "RequestId": "X-Request-ID",
    "NotCached": "Cache-Control",
    "Cached": "Cache-Control",
    "ETag": "ETag",
    "Allow": "Allow",
    "RetryAfter": "Retry-After",
    "Challenge": "WWW-Authenticate",
}


def _headers(*names: str) -> Json:
    return {_NAMES_OF_HEADERS[name]: _ref("headers", name) for name in names}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
