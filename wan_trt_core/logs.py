"""Logging: to the terminal, and to a file when asked. Only this package's own loggers are touched."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_trt_core.config import LogSettings

LOGGER = "wan_trt_core"
FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogError(ValueError):
    """The log file cannot be written; the message names it."""


@contextmanager
def logging_to(settings: LogSettings, *, terminal: bool = True) -> Iterator[None]:
    """Log this package's messages while the block runs: to stderr, and to the settings' file if there is one.

    Raises:
        LogError: when the file cannot be opened.
    """
    logger = logging.getLogger(LOGGER)
    handlers = [_terminal_handler()] if terminal else []
    if settings.file is not None:
        try:
            settings.file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_file_handler(settings))
        except OSError as error:
            raise LogError(f"log.file: {settings.file} cannot be written: {error}") from error
    level = logger.level
    logger.setLevel(settings.level.upper())
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)


def _file_handler(settings: LogSettings) -> logging.Handler:
    assert settings.file is not None
    handler = logging.FileHandler(settings.file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FILE_FORMAT))
    return handler


def _terminal_handler() -> logging.Handler:
    """Through rich, so that a message goes above a running progress bar and not through it."""
    from rich.logging import RichHandler

    from wan_trt_core.progress import ERR

    return RichHandler(console=ERR, show_time=False, show_path=False, markup=False)
