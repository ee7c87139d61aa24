"""What the page remembers of this process: the last failures, the last warnings, and numbers over time."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from weakref import finalize

import anyio
from tasks_core import Task, TaskObserver, TaskState, observe
from tasks_core.engines import EngineError, OperableEngine, QueueStatistics

# Failures and warnings that are kept.
_KEPT = 20
# Moments of the small picture, and seconds between two of them.
_MOMENTS, _EVERY = 60, 2.0
# Counts end here: the page does not count a table of a million rows.
_COUNT_TO = 10_000
_LOGGERS = ("tasks_core", "tasks_fastapi")


@dataclass(frozen=True, slots=True)
class Failure:
    """A task whose last attempt failed."""

    name: str
    at: datetime
    attempts: int
    where: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Warned:
    """A line of the log."""

    at: datetime
    level: str
    text: str


class _Failures(TaskObserver):
    def __init__(self) -> None:
        self.kept: deque[Failure] = deque(maxlen=_KEPT)

    def task_finished(self, task: Task[Any]) -> None:
        """Keep a failure, as text: the exception would keep the objects of its frames."""
        error = task.exception
        if task.state is TaskState.FAILED and error is not None:
            text = "".join(traceback.format_exception(error))
            kind = type(error).__qualname__
            self.kept.appendleft(Failure(task.name, datetime.now(UTC), task.attempts, task.where, kind, text))


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: deque[Warned] = deque(maxlen=_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, without its traceback."""
        at = datetime.fromtimestamp(record.created, UTC)
        self.kept.appendleft(Warned(at, record.levelname, record.getMessage()))


class History:
    """Remembers from the moment that it is made until nothing refers to it any more."""

    def __init__(self) -> None:
        failures, warnings = _Failures(), _Warnings()
        self.failures: deque[Failure] = failures.kept
        self.warnings: deque[Warned] = warnings.kept
        self.waiting: dict[str, deque[int]] = {}
        """How many tasks of each queue waited, the oldest number first."""
        self._statistics: tuple[QueueStatistics, ...] = ()
        self._problem: str | None = None
        self._at = float("-inf")
        self._lock = anyio.Lock()
        subscription = observe(failures)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(warnings)
        finalize(self, _forget, subscription, warnings)

    async def queues(self, engine: OperableEngine) -> tuple[tuple[QueueStatistics, ...], str | None]:
        """Return the numbers of the queues, asked for at most every two seconds, and what is wrong if they are old."""
        async with self._lock:
            if monotonic() - self._at >= _EVERY:
                try:
                    self._statistics = tuple(await engine.statistics(count_to=_COUNT_TO))
                    self._problem = None
                except EngineError as error:
                    self._problem = str(error)
                self._at = monotonic()
                for one in self._statistics:
                    self.waiting.setdefault(one.queue, deque(maxlen=_MOMENTS)).append(one.waiting)
        return self._statistics, self._problem

    def ask_again(self) -> None:
        """Have the next call of `queues()` ask the engine: an operator has changed something."""
        self._at = float("-inf")


def _forget(subscription: Any, warnings: logging.Handler) -> None:
    subscription.close()
    for name in _LOGGERS:
        logging.getLogger(name).removeHandler(warnings)
