"""Fixtures for pytest: `pytest_plugins = ["authsvc.testing.fixtures"]` in the conftest.py at the top."""

from __future__ import annotations

import pytest

from authsvc.testing import FakeIssuer


@pytest.fixture
def authsvc_issuer() -> FakeIssuer:
    """An issuer of its own for each test, with a key of its own."""
    return FakeIssuer()
