"""The running service does as its OpenAPI document says, whatever it is sent: schemathesis, over real HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import requests

from tests.support.conformance import SANDBOX_URL
from tests.support.service import SERVICE_TOKEN, Running, Service, service

ROOT: Final = Path(__file__).parents[2]
# What is left out: `positive_data_acceptance` holds that what fits a schema is taken, and no schema knows which codes
# WeChat has given out.
CHECKS: Final = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance"),
    *("missing_required_header", "ignored_auth", "is_as_documented"),
)


@pytest.fixture
def it(tmp_path: Path, wechat: Running) -> Iterator[Service]:
    with service(tmp_path, wechat_url=wechat.url, SERVICE_TOKENS=SERVICE_TOKEN) as it:
        yield it


def sweep(it: Service, folder: Path, *, seed: int, examples: int, timeout_s: int) -> None:
    """Nothing that is sent gets an answer that is not documented; each route says yes and no."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{it.url}/openapi.json", "--url", it.url),
        *("-H", f"Authorization: Bearer {it.token()}", "-H", f"X-Service-Token: {SERVICE_TOKEN}"),
        *("--seed", str(seed), "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing"),
        *("--checks", ",".join(CHECKS), "--continue-on-failure", "--no-color"),
    ]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.support.conformance",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
        SANDBOX_URL: it.sandbox_url,
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answered = _answers(it)
    document = requests.get(f"{it.url}/openapi.json", timeout=10).json()
    for path, item in document["paths"].items():
        for method in item:
            assert answered[method.upper(), path, 200], f"{method} {path} never succeeded"
        if "requestBody" in item.get("post", {}):
            assert answered["POST", path, 400], f"{path} was never sent anything bad"
            assert answered["POST", path, 415], f"{path} was never sent another type"
    assert [key for key in answered if key[2] >= 500] == []
    assert "unexpected_error" not in it.output()


def _answers(it: Service) -> Counter[tuple[str, str, int]]:
    lines = [json.loads(line) for line in it.output().splitlines() if '"event": "request"' in line]
    return Counter((line["method"], line["path"], line["status"]) for line in lines)


def test_the_service_answers_as_documented_whatever_it_is_sent(it: Service, tmp_path: Path) -> None:
    sweep(it, tmp_path, seed=1, examples=10, timeout_s=110)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_the_service_answers_as_documented_whatever_it_is_sent_for_long(it: Service, tmp_path: Path, seed: int) -> None:
    sweep(it, tmp_path, seed=seed, examples=300, timeout_s=1800)


def test_a_service_without_service_tokens_has_no_routes_for_back_ends_in_its_document(
    tmp_path: Path, wechat: Running
) -> None:
    with service(tmp_path, wechat_url=wechat.url) as it:
        paths = requests.get(f"{it.url}/openapi.json", timeout=10).json()["paths"]
        assert "/session/decrypt" in paths
        assert not paths.keys() & {"/session/sign", "/session/check", "/session/reset"}
        assert requests.get(f"{it.url}/docs", timeout=10).status_code == 200
