"""The logger `tasks_core`: a line about a task never keeps the task from its end, and is never lost without a trace."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

DISABLED = (
    "The logger {!r} is disabled, so that failed and lost tasks are not logged. logging.config.fileConfig() and "
    "dictConfig() disable the loggers that exist already; pass disable_existing_loggers=False to them\n"
)


class SteadyLogger(logging.LoggerAdapter[logging.Logger]):
    """
    A logger that raises nothing but `KeyboardInterrupt`.

    Filters, handlers and record factories belong to the application, and may raise in the middle of ending a task. What
    they raise goes to standard error together with the line, as `logging` itself does with errors of its handlers.
    """

    _said_disabled = False

    def log(self, level: int, msg: object, *args: object, exc_info: Any = None, **kwargs: Any) -> None:
        """Log, from the line that called one of the methods named after levels."""
        if isinstance(exc_info, BaseException):
            # logging asks whether it is true, which the class of an exception may answer in its own way.
            exc_info = (type(exc_info), exc_info, traceback_of(exc_info))
        try:
            if self.logger.disabled or self._said_disabled:
                self._look_whether_disabled(level)
            try:
                self.logger.log(level, msg, *args, exc_info=exc_info, stacklevel=2, **kwargs)
            except KeyError as error:
                # The application sets a field of the same name on every record: with ids of Celery, for example.
                if "overwrite" not in str(error) or kwargs.pop("extra", None) is None:
                    raise
                self.logger.log(level, msg, *args, exc_info=exc_info, stacklevel=2, **kwargs)
        except KeyboardInterrupt:
            raise  # meant for the process
        except BaseException as error:  # pytest.fail() in a handler, for example
            _write_lost_line(msg, args, exc_info, error)

    def _look_whether_disabled(self, level: int) -> None:
        disabled = self.logger.disabled
        if disabled and not self._said_disabled:
            if level < self.logger.getEffectiveLevel():
                return  # this line would not have been logged anyway
            _write(DISABLED.format(self.logger.name))
        self._said_disabled = disabled


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return `error.__traceback__`, whatever the class of the exception makes of attributes."""
    traceback: TracebackType | None = _TRACEBACK.__get__(error)
    return traceback


_TRACEBACK = vars(BaseException)["__traceback__"]


def message_of(error: BaseException) -> str:
    """Return the class and the message of an exception as one short line."""
    name = type(error).__name__
    try:
        lines = str(error).splitlines()
    except Exception:  # the `__str__` of the class raises, which must not cost the task its next attempt
        return name
    if not lines:
        return name
    first = lines[0]
    return f"{name}: {first if len(first) <= _LONGEST_MESSAGE else first[:_LONGEST_MESSAGE] + '...'}"


_LONGEST_MESSAGE = 200


def shows_traceback(failures: int) -> bool:
    """Return whether the traceback is part of the line about a failure, the *failures*-th, that is tried again."""
    return failures == 1 or failures % 10 == 0


def _write_lost_line(msg: object, args: tuple[object, ...], exc_info: Any, error: BaseException) -> None:
    try:
        line = str(msg) % args
    except Exception:
        line = str(msg)
    lines = [f"Logging raised, and this line is lost: {line}\n"]
    with suppress(Exception):
        if isinstance(exc_info, tuple):
            lines += traceback.format_exception(*exc_info)
        lines += ["What logging raised:\n", *traceback.format_exception(error)]
    _write("".join(lines))


def _write(text: str) -> None:
    with suppress(Exception):  # there is no standard error, or it is closed
        sys.stderr.write(text)


logger = SteadyLogger(logging.getLogger("tasks_core"))
