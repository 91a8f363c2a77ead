"""Structured logs: one JSON object a line, or coloured text on a terminal. What may be secret never gets here."""

from __future__ import annotations

import logging
import traceback
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_LEVEL: Final = logging.INFO


def configure_logging(stream: TextIO) -> None:
    """Send structlog's events and every library's log records to `stream`, in one form."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception_without_message,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVEL)
    # It tells each step of every start.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It names the address of each client that is refused.
    logging.getLogger("flask-limiter").setLevel(logging.WARNING)
    # Its DEBUG log holds URLs with the app secret; no level of ours may turn it on.
    logging.getLogger("urllib3").setLevel(logging.WARNING)


def _exception_without_message(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """An exception's type and place. Its message may quote what it choked on, and that may be a secret."""
    exc_info: Any = event.pop("exc_info", None)
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(error, BaseException):
        frames = traceback.extract_tb(error.__traceback__)
        event["error_type"] = type(error).__name__
        event["error_at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    return event
