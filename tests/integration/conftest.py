"""One sandbox and one service for all tests that only use them; who breaks something starts its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.service import Running, Service, sandbox, service


@pytest.fixture(scope="session")
def wechat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with sandbox(tmp_path_factory.mktemp("wechat")) as it:
        yield it


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory, wechat: Running) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service"), wechat_url=wechat.url, WECHAT_TIMEOUT="1") as it:
        yield it
