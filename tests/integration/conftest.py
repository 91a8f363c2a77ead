"""One sandbox and one service for all tests that only use them; who breaks something starts its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support.image import Image, built_here
from tests.support.service import SERVICE_TOKEN, Running, Service, authsvc, sandbox, service


@pytest.fixture(scope="session")
def wechat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with sandbox(tmp_path_factory.mktemp("wechat")) as it:
        yield it


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory, wechat: Running) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with service(folder, wechat_url=wechat.url, WECHAT_TIMEOUT="1", SERVICE_TOKENS=SERVICE_TOKEN) as it:
        yield it


@pytest.fixture
def node() -> str:
    """Where Node is. Without it the mini-program's side cannot be tested, and CI has to have it."""
    found = shutil.which("node")
    if found is None and os.environ.get("CI"):
        pytest.fail("node is missing: the mini-program's side was not tested")
    if found is None:
        pytest.skip("NODE IS MISSING: the mini-program's side was not tested")
    return found


@pytest.fixture(scope="session")
def dockerfile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `authsvc deploy docker` prints."""
    printed = authsvc("deploy", "docker", cwd=tmp_path_factory.mktemp("nowhere"))
    assert (printed.returncode, printed.stderr) == (0, "")
    return printed.stdout


@pytest.fixture(scope="session")
def image(dockerfile: str) -> Iterator[Image]:
    with built_here(dockerfile) as it:
        yield it
