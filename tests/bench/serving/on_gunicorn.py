"""The service as gunicorn loads it: `gunicorn 'tests.bench.serving.on_gunicorn:app()'`. Settings: the environment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from authsvc.cli.serve import service_settings
from authsvc.clock import SystemClock
from authsvc.telemetry import configure_logging
from authsvc.wiring import build_app, prepare
from tests.bench.serving.trusting import trust_wechat


def app() -> Callable[..., Any]:
    """In each worker: keys and connections do not survive a fork."""
    configure_logging(sys.stderr)
    trust_wechat()
    settings = service_settings(or_sandbox=False)
    prepared = prepare(settings, clock=SystemClock())
    return build_app(settings, inherited=prepared, metrics_folder=None)
