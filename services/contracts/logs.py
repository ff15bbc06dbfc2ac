"""Structured logs, the same in every process: JSON lines for machines, colours on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog

# Without the frames' variables: they hold keys and people.
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure_logs(format: str, level: str, service: str) -> None:
    """Configure structlog and the standard library's loggers for this process.

    `format` is ``json``, ``console`` or ``auto`` (console on a terminal); `level` a level's name.
    """
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    as_json = format == "json" or (format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [_tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # Chatty at every reconnect; what matters is logged by us, once.
    for name in ("httpx", "httpcore", "apprise", "asyncio"):
        logging.getLogger(name).setLevel(max(number, logging.ERROR))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # Quotes what it could not read of a body.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn").setLevel(max(number, logging.WARNING))
