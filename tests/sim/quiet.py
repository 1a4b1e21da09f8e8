"""The simulated processes log nothing, but what they call a bug is one: kept here for `Sim.check`."""

from __future__ import annotations

import logging
import sys

import structlog

bugs: list[str] = []


def _keep(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if "by a bug" in str(event.get("event", "")):
        bugs.append(f"{event}: {sys.exc_info()[1]!r}")
    raise structlog.DropEvent


def quiet() -> None:
    """For this interpreter. Safe to repeat."""
    structlog.configure(
        processors=[_keep],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
