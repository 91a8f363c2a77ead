"""`GET /docs`: one page with everything in it, and nothing that a browser would run or fetch."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any, Final

import pytest

from authsvc.http.advice import ADVICE
from authsvc.http.docs import render_docs
from authsvc.http.problems import PROBLEMS
from tests.support.app import FakeService

NASTY: Final = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" </style> {{ 7*7 }} `"

# What has no end tag (HTML, 13.1.2).
_VOID: Final = {"meta", "link", "br", "hr", "img", "input", "wbr"}
_HEADINGS: Final = ("h1", "h2", "h3", "h4", "h5")


class Page(HTMLParser):
    """A page read by the rules: what stands where, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.style = self.text = ""
        self.cells: list[tuple[str, ...]] = []
        self._row: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._row.append("")
        elif tag == "p" and {"td", "th"} & set(self.open):
            self._row[-1] += " "

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "tr":
            self.cells.append(tuple(" ".join(cell.split()) for cell in self._row))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data
            if {"td", "th"} & set(self.open):
                self._row[-1] += data

    def attributes(self, *names: str) -> list[str]:
        return [value or "" for _, attrs in self.elements for name, value in attrs.items() if name in names]


@pytest.fixture(scope="module")
def reply() -> Any:
    return FakeService().client().get("/docs")


@pytest.fixture(scope="module")
def page(reply: Any) -> Page:
    return Page(reply.text)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    found: dict[str, Any] = FakeService().client().get("/openapi.json").get_json()
    return found


def test_every_route_has_a_heading_with_its_method_and_a_link_to_it(page: Page, told: dict[str, Any]) -> None:
    words = " ".join(page.text.split())
    for path, item in told["paths"].items():
        for method in {"get", "post"} & item.keys():
            anchor = item[method]["operationId"]
            assert ("h3", {"id": anchor}) in page.elements
            assert ("a", {"href": f"#{anchor}"}) in page.elements
            assert words.count(f"{method.upper()} {path}") >= 2
            assert item[method]["summary"] in words


def test_every_code_stands_in_the_table_with_what_to_do(page: Page) -> None:
    for code, problem in PROBLEMS.items():
        advice = ADVICE[code].replace("`", "")
        assert (str(problem.status), code, f"{problem.title}. {advice}") in page.cells


def test_a_route_has_the_codes_that_the_document_gives_it(page: Page, told: dict[str, Any]) -> None:
    counted = Counter(row[1] for row in page.cells if len(row) == 3 and row[1] in PROBLEMS)
    expected = Counter(PROBLEMS.keys())
    for item in told["paths"].values():
        for method in {"get", "post"} & item.keys():
            for status, response in item[method]["responses"].items():
                if int(status) >= 400:
                    expected.update(response["content"]["application/problem+json"]["examples"].keys())
    assert counted == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("code", "string, at least 1 character, like ^[0-9A-Za-z_-]{1,128}$ What wx.login() gave."),
        ("token may be left out", "string, in the query The token; better sent in the header"),
        ("iv", "string, 24 characters, base64"),
        ("watermark.timestamp", "integer Unix seconds."),
        ("reason", '"missing" or "malformed" or "revoked" or "invalid" or "expired" The first that fits'),
        ("keys", "list of object"),
        ("keys[].kty", '"EC" or "OKP" or "RSA"'),
        ("keys[].y may be left out", "string, like"),
        ("sig_method", '"hmac_sha256"'),
    ],
)
def test_members_and_parameters_have_their_types_and_limits(page: Page, name: str, said: str) -> None:
    assert any(row[0] == name and row[1].startswith(said) for row in page.cells)


def test_a_route_shows_how_it_is_asked_with_curl_and_which_methods_it_takes_besides(page: Page) -> None:
    words = " ".join(page.text.split())
    for said in (
        "curl -X POST https://auth.example.com/login \\ -H 'Content-Type: application/json' \\ "
        """-d '{"code": "0712cDoV0cfty22AeloV0daMoV02cDog"}'""",
        'curl -X POST https://auth.example.com/session/check \\ -H "Authorization: Bearer $TOKEN" \\ '
        '-H "X-Service-Token: $SERVICE_TOKEN"',
        "curl https://auth.example.com/readyz",
        "Wants nothing, or Authorization: Bearer .",
        "Takes HEAD and OPTIONS too.",
        "Takes OPTIONS too.",
    ):
        assert said.replace(" .", ".") in words.replace(" .", ".")


# ---- nothing to run, nothing to fetch --------------------------------------------------------------


def test_the_page_has_nothing_in_it_that_runs_or_loads(page: Page) -> None:
    allowed = {"html", "head", "meta", "title", "link", "style", "body", "a", "header", "nav", "main", "section"}
    allowed |= {"article", *_HEADINGS, "p", "ul", "li", "dl", "dt", "dd", "code", "pre", "span", "small", "strong"}
    allowed |= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "wbr"}
    assert page.tags.keys() <= allowed
    names = {name for _, attrs in page.elements for name in attrs}
    assert names <= {
        *("lang", "charset", "name", "content", "rel", "href", "class", "id"),
        *("role", "tabindex", "scope", "aria-label", "aria-labelledby"),
    }
    assert [attrs for tag, attrs in page.elements if tag == "link"] == [{"rel": "icon", "href": "data:,"}]
    assert all(link.startswith("#") or link in ("openapi.json", "data:,") for link in page.attributes("href"))
    assert re.findall(r"url\(|@import|expression", page.style) == []


def test_the_policy_lets_the_style_of_the_page_in_and_nothing_else(reply: Any, page: Page) -> None:
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert reply.headers["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert page.tags["style"] == 1
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.content_type == "text/html; charset=utf-8"


def test_whatever_the_document_says_stays_text(told: dict[str, Any]) -> None:
    """Every text in it that is not a name of the format's own."""

    def spoilt(part: Any, name: str = "") -> Any:
        if isinstance(part, dict) and name == "properties":
            return {key + NASTY: spoilt(value) for key, value in part.items()}
        if isinstance(part, dict):
            return {key: spoilt(value, key) for key, value in part.items()}
        if isinstance(part, list) and name == "required":
            return [item + NASTY for item in part]
        if isinstance(part, list):
            return [spoilt(value, name) for value in part] if name != "tags" else part
        if isinstance(part, str) and name in ("description", "summary", "title", "advice", "url", "pattern", "version"):
            return part + NASTY
        return part

    clean, _ = render_docs(told)
    dirty, _ = render_docs(spoilt(copy.deepcopy(told)))
    assert Page(dirty).tags["script"] == Page(dirty).tags["img"] == 0
    assert dirty.count("&lt;script&gt;") > 100
    assert "<script" not in dirty
    assert "49" not in dirty.replace("{{ 7*7 }}", "").split("</style>")[1] or "49" in clean
    structure = [tag for tag, _ in Page(clean).elements if tag not in ("code", "wbr")]
    assert [tag for tag, _ in Page(dirty).elements if tag not in ("code", "wbr")] == structure


# ---- for everybody ---------------------------------------------------------------------------------


def test_landmarks_and_headings_are_in_order(page: Page) -> None:
    assert (page.tags["main"], page.tags["nav"], page.tags["header"], page.tags["h1"]) == (1, 1, 1, 1)
    levels = [int(tag[1]) for tag, _ in page.elements if tag in _HEADINGS]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert dict(page.elements)["html"] == {"lang": "en"}


def test_every_link_within_the_page_leads_somewhere_and_every_id_is_there_once(page: Page) -> None:
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in page.attributes("href") if link.startswith("#")} <= set(ids)
    assert set(page.attributes("aria-labelledby")) <= set(ids)


def test_every_table_says_what_its_heads_are_heads_of_and_can_be_scrolled_by_keyboard(page: Page) -> None:
    assert page.tags["table"] == page.tags["caption"]
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.elements if tag == "th")
    for tag, attrs in page.elements:
        if tag == "pre" or attrs.get("class") == "scroll":
            assert (attrs["tabindex"], attrs["role"]) == ("0", "region")
            assert attrs["aria-label"]


def test_without_service_tokens_the_routes_for_back_ends_are_not_on_the_page() -> None:
    text = FakeService(service_tokens=()).client().get("/docs").text
    assert "/session/sign" not in text
    assert "Back ends" not in text
    assert "/session/decrypt" in text
