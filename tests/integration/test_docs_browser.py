"""`/docs` in a real browser: it loads without any network but the service, without a complaint, and can be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.browser import Page, browser_page, find_browser
from tests.support.service import Service

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Page]:
    program = find_browser()
    if program is None and os.environ.get("CI"):
        pytest.fail("a browser is missing: the reference page was not looked at")
    if program is None:
        pytest.skip("A BROWSER IS MISSING: the reference page was not looked at")
    with browser_page(program, tmp_path) as page:
        yield page


def test_the_page_asks_for_nothing_but_itself_and_the_console_says_nothing(tab: Page, shared_service: Service) -> None:
    url = f"{shared_service.url}/docs"
    tab.open(url)
    assert tab.requests == [url]
    assert tab.complaints == []
    assert tab.ask("document.scripts.length") == 0
    assert tab.ask("getComputedStyle(document.querySelector('article')).borderTopStyle") == "solid", (
        "the style is let in"
    )


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_route_and_every_code_can_be_seen_on_it(
    tab: Page, shared_service: Service, size: dict[str, int], dark: bool
) -> None:
    tab.look(**size, dark=dark)
    tab.open(f"{shared_service.url}/docs")
    document = requests.get(f"{shared_service.url}/openapi.json", timeout=10).json()
    seen = str(tab.ask("document.body.innerText"))
    for path, item in document["paths"].items():
        for method in {"get", "post"} & item.keys():
            assert f"{method.upper()} {path}" in seen
            box = f"document.getElementById('{item[method]['operationId']}').getBoundingClientRect()"
            assert tab.ask(f"{box}.height > 10 && {box}.left >= 0 && {box}.right <= innerWidth")
    for code in document["x-error-codes"]:
        assert code in seen
    assert tab.ask("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the side"
    light = tab.ask("Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]) > 127")
    assert light is not dark


def test_the_keyboard_reaches_the_routes_first_and_then_every_link(tab: Page, shared_service: Service) -> None:
    tab.open(f"{shared_service.url}/docs")
    focused = []
    for _ in range(3):
        for kind in ("keyDown", "keyUp"):
            tab.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        focused.append(tab.ask("document.activeElement.getAttribute('href')"))
    assert focused == ["#main", "openapi.json", "#login"]


def test_what_a_page_asks_others_for_and_what_the_console_says_would_be_noticed(
    tab: Page, shared_service: Service
) -> None:
    tab.open("data:text/html,<img src='http://other.example/x.png'><script>console.log('hello'); oops()</script>")
    assert "http://other.example/x.png" in tab.requests
    assert any("hello" in text for text in tab.complaints)
    assert any("oops" in text for text in tab.complaints)
