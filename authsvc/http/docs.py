"""The reference page: one HTML text made of the OpenAPI document, without a script and without anything to load."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

Json: TypeAlias = Mapping[str, Any]

_METHODS: Final = ("get", "post", "put", "patch", "delete")
_IMPLIED_METHODS: Final = ("head", "options")
_PARTS: Final = re.compile(r"(?<=[_.])(?=.)")
_OTHER_CHARACTERS: Final = re.compile(r"[^0-9a-z]+")


@dataclass(frozen=True, slots=True)
class Member:
    """A row of a table of members or parameters. `kind` says type and limits."""

    name: str
    kind: str
    is_required: bool
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    status: str
    text: str
    media_type: str | None
    headers: tuple[str, ...]
    shapes: tuple[tuple[Member, ...], ...]  # the body has one of these
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorCode:
    status: int
    code: str
    title: str
    advice: str
    headers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    anchor: str
    method: str
    path: str
    summary: str
    text: str
    implied_methods: tuple[str, ...]
    wanted: tuple[tuple[str, ...], ...]  # one of these sets of credentials
    headers: tuple[str, ...]
    parameters: tuple[Member, ...]
    body_text: str
    body_media_types: tuple[str, ...]
    body: tuple[Member, ...]
    curl: str
    replies: tuple[Reply, ...]
    errors: tuple[ErrorCode, ...]


@dataclass(frozen=True, slots=True)
class Group:
    anchor: str
    name: str
    text: str
    routes: tuple[Route, ...]


def render_docs(document: Json) -> tuple[str, dict[str, str]]:
    """The page and the headers that it needs."""
    style = files("authsvc.http").joinpath("docs.css").read_text("utf-8")
    environment = Environment(
        loader=PackageLoader("authsvc.http", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": _prose, "word": _word}
    reader = _Reader(document)
    page = environment.get_template("docs.html").render(
        info=document["info"],
        server=document["servers"][0]["url"],
        style=Markup(style),  # noqa: S704 - a file of ours
        groups=reader.groups(),
        schemes=document["components"]["securitySchemes"],
        errors=reader.every_error(),
        headers=reader.headers(),
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _prose(text: str) -> Markup:
    """Paragraphs, and `code` in back quotes."""
    return Markup("\n").join(Markup("<p>{}</p>").format(_codes(paragraph)) for paragraph in text.split("\n\n"))


def _word(text: str) -> Markup:
    """A name, which may break behind an underscore or a dot: a phone is narrow."""
    return Markup("<code>{}</code>").format(Markup("<wbr>").join(_PARTS.split(text)))


def _codes(text: str) -> Markup:
    parts = (Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(text.split("`")))
    return Markup("").join(parts)


class _Reader:
    """Finds in the document what the page shows."""

    def __init__(self, document: Json) -> None:
        self._document = document

    def groups(self) -> list[Group]:
        routes: dict[str, list[Route]] = {}
        for path, item in self._document["paths"].items():
            for method in _METHODS:
                if method in item:
                    routes.setdefault(item[method]["tags"][0], []).append(self._route(path, method, item))
        return [
            Group(_anchor(tag["name"]), tag["name"], tag["description"], tuple(routes[tag["name"]]))
            for tag in self._document["tags"]
        ]

    def every_error(self) -> list[ErrorCode]:
        return [self._error(code) for code in self._document["x-error-codes"]]

    def headers(self) -> list[tuple[str, str]]:
        """Those of requests and replies that are the same everywhere."""
        parameters = self._document["components"]["parameters"].values()
        return [(parameter["name"], parameter["description"]) for parameter in parameters]

    def _route(self, path: str, method: str, item: Json) -> Route:
        operation = item[method]
        body = operation.get("requestBody", {})
        schema = next(iter(body["content"].values()))["schema"] if body else {}
        replies = {status: self._found(reply) for status, reply in operation["responses"].items()}
        return Route(
            anchor=operation["operationId"],
            method=method.upper(),
            path=path,
            summary=operation["summary"],
            text=operation["description"],
            implied_methods=tuple(name.upper() for name in _IMPLIED_METHODS if name in item),
            wanted=tuple(tuple(wanted) for wanted in operation["security"]),
            headers=tuple(self._found(each)["name"] for each in operation["parameters"] if "$ref" in each),
            parameters=tuple(self._parameter(each) for each in operation["parameters"] if "$ref" not in each),
            body_text=body.get("description", ""),
            body_media_types=tuple(body.get("content", ())),
            body=tuple(self._members(schema)) if body else (),
            curl=self._curl(path, method, operation),
            replies=tuple(self._reply(status, reply) for status, reply in replies.items() if int(status) < 400),
            errors=tuple(
                self._error(code, tuple(reply["headers"]))
                for status, reply in replies.items()
                if int(status) >= 400
                for code in next(iter(reply["content"].values()))["examples"]
            ),
        )

    def _error(self, code: str, headers: tuple[str, ...] = ()) -> ErrorCode:
        said = self._document["x-error-codes"][code]
        worth_saying = tuple(name for name in headers if name in ("Retry-After", "WWW-Authenticate", "Allow"))
        return ErrorCode(said["status"], code, said["title"], said["advice"], worth_saying)

    def _parameter(self, parameter: Json) -> Member:
        kind = f"{self._kind(parameter['schema'])}, in the {parameter['in']}"
        return Member(parameter["name"], kind, parameter.get("required", False), parameter["description"])

    def _reply(self, status: str, reply: Json) -> Reply:
        contents: Json = reply.get("content", {})
        media_type = next(iter(contents), None)
        content: Json = contents[media_type] if media_type else {}
        schema = self._found(content.get("schema", {}))
        examples = (json.dumps(e["value"], ensure_ascii=False, indent=2) for e in content.get("examples", {}).values())
        shapes = (tuple(self._members(shape)) for shape in schema.get("anyOf", [schema]))
        return Reply(
            status,
            reply["description"],
            media_type,
            tuple(reply["headers"]),
            tuple(shape for shape in shapes if shape),
            tuple(examples),
        )

    def _members(self, schema: Json, prefix: str = "") -> Iterator[Member]:
        """Those of an object, and of the objects in it; of alternatives those of all."""
        schema = self._found(schema)
        shapes = [self._found(shape) for shape in schema.get("anyOf", [schema])]
        names = dict.fromkeys(name for shape in shapes for name in shape.get("properties", ()))
        for name in names:
            found = [self._found(shape["properties"][name]) for shape in shapes if name in shape.get("properties", ())]
            kind = " or ".join(dict.fromkeys(map(self._kind, found)))
            is_required = all(name in shape.get("required", ()) for shape in shapes)
            yield Member(prefix + name, kind, is_required, found[0].get("description", ""))
            if found[0].get("type") == "array":
                yield from self._members(found[0]["items"], f"{prefix}{name}[].")
            else:
                yield from self._members(found[0], f"{prefix}{name}.")

    def _kind(self, schema: Json) -> str:
        """Type and limits, in words."""
        schema = self._found(schema)
        if "const" in schema:
            return json.dumps(schema["const"])
        if "enum" in schema:
            return " or ".join(map(json.dumps, schema["enum"]))
        if "anyOf" in schema:
            kind = " or ".join(dict.fromkeys(self._kind(part) for part in schema["anyOf"]))
        elif schema.get("type") == "array":
            kind = f"list of {self._kind(schema['items'])}"
        else:
            kind = schema.get("type", "anything")
        return ", ".join((kind, *_limits(schema)))

    def _curl(self, path: str, method: str, operation: Json) -> str:
        words = ["curl", self._document["servers"][0]["url"] + path]
        if method != "get":
            words[1:1] = ["-X", method.upper()]
        lines = [shlex.join(words)]
        wanted = operation["security"][-1] if operation["security"] else {}
        if "bearer" in wanted:
            lines.append('-H "Authorization: Bearer $TOKEN"')
        if "service_token" in wanted:
            lines.append('-H "X-Service-Token: $SERVICE_TOKEN"')
        if "requestBody" in operation:
            (media_type, content), *_ = operation["requestBody"]["content"].items()
            body = json.dumps(next(iter(content["examples"].values()))["value"], ensure_ascii=False)
            lines += [f"-H 'Content-Type: {media_type}'", f"-d {shlex.quote(body)}"]
        return " \\\n  ".join(lines)

    def _found(self, part: Json) -> Json:
        """What a `$ref` leads to; with what stands beside it."""
        if "$ref" not in part:
            return part
        found: Json = self._document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return {**self._found(found), **{name: value for name, value in part.items() if name != "$ref"}}


def _limits(schema: Json) -> Iterator[str]:
    least, most = schema.get("minLength"), schema.get("maxLength")
    if least is not None and least == most:
        yield f"{least} characters"
    elif least is not None:
        yield f"at least {least} character{'s' if least > 1 else ''}"
    if "pattern" in schema:
        yield f"like {schema['pattern']}"
    if "minimum" in schema:
        yield f"from {schema['minimum']}"
    if "contentEncoding" in schema:
        yield schema["contentEncoding"]
    if "format" in schema:
        yield schema["format"]


def _anchor(text: str) -> str:
    return _OTHER_CHARACTERS.sub("-", text.lower()).strip("-")
