"""The dashboard that `authsvc deploy grafana` prints: JSON, and about figures that /metrics has."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pytest

from tests.support.app import FakeService
from tests.support.service import authsvc

NAME: Final = re.compile(r"authsvc_[a-z_]+")
LABEL: Final = re.compile(r"(?:by \(|, |\{|,)([a-z_]+)(?=[,)]|=~|=\"|!=)")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = authsvc("deploy", "grafana", cwd=tmp_path_factory.mktemp("empty"))
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """Every sample that there can be → its labels, and what Prometheus adds."""
    service = FakeService()
    client = service.client()
    assert service.metrics is not None
    service.metrics.note_wechat("jscode2session", 0.1, False)
    service.metrics.timed(service.store).ping()
    client.post("/login", json={"code": "a"})
    client.get("/checklogin")
    found: dict[str, set[str]] = {}
    for line in service.metrics.text().decode().splitlines():
        if not line.startswith("#"):
            name, _, labels = line.rpartition(" ")[0].partition("{")
            found.setdefault(name, {"job", "instance"}).update(re.findall(r'([a-z_]+)="', labels))
    return found


def expressions(told: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in told["panels"] for target in panel["targets"]]


def test_every_panel_asks_for_figures_that_the_service_has(told: dict[str, Any], metrics: dict[str, set[str]]) -> None:
    asked = {name for expression in expressions(told) for name in NAME.findall(expression)}
    assert asked <= metrics.keys()
    assert {name.removesuffix("_bucket") for name in asked} >= {
        "authsvc_http_requests_total",
        "authsvc_logins_total",
        "authsvc_tokens_issued_total",
        "authsvc_tokens_refused_total",
        "authsvc_wechat_call_seconds",
        "authsvc_wechat_down",
        "authsvc_store_seconds",
        "authsvc_signing_key_age_seconds",
        "authsvc_next_rotation_seconds",
    }


def test_every_label_that_a_panel_names_is_one_of_its_figure(
    told: dict[str, Any], metrics: dict[str, set[str]]
) -> None:
    for panel in told["panels"]:
        for target in panel["targets"]:
            labels = set.union(*(metrics[name] for name in NAME.findall(target["expr"])))
            named = {*LABEL.findall(target["expr"]), *re.findall(r"\{\{([a-z_]+)\}\}", target["legendFormat"])}
            assert named <= labels, panel["title"]


def test_the_panels_lie_side_by_side_and_not_one_over_another(told: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in told["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in told["panels"]}) == len(told["panels"])
