"""What the tests of tasks-core share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tasks_core import Outcome, PhaseInfo, Task, TaskObserver, TaskState


class EventLog(TaskObserver):
    """Writes down every event, as `(what, name of the task)`."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.finished: list[Task[Any]] = []

    def task_scheduled(self, task: Task[Any]) -> None:
        self.events.append(("scheduled", task.name))

    def task_started(self, task: Task[Any]) -> None:
        self.events.append((f"started {task.attempts}", task.name))

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        self.events.append((f"retrying after {type(exception).__name__} in {delay:g}", task.name))

    def task_finished(self, task: Task[Any]) -> None:
        self.finished.append(task)
        self.events.append((str(task.state), task.name))

    def phase_opened(self, batch: PhaseInfo, outcome: Outcome) -> None:
        self.events.append((f"opened {outcome}", batch.name))

    def phase_discarded(self, batch: PhaseInfo, reason: str) -> None:
        self.events.append((f"discarded because {reason}", batch.name))

    def origin_event(self, origin: object, event: str) -> None:
        self.events.append((event, str(origin)))


def in_thread(func: Callable[[], Any]) -> Any:
    """Call in a plain thread that knows nothing of event loops; blocks."""
    result: list[Any] = []

    def call() -> None:
        try:
            result.append(func())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What tasks_core has logged, at *level* and above."""
    return [r.getMessage() for r in caplog.records if r.name == "tasks_core" and r.levelno >= level]


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing: a log record keeps the exception that it tells of."""
    logger = logging.getLogger("tasks_core")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def states(*tasks: Task[Any]) -> list[TaskState]:
    return [task.state for task in tasks]


async def noop() -> None:
    pass


async def fail() -> None:
    raise ValueError("failed on purpose")


class Workers:
    """The threads of schedulers that there are now, less those of before."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def alive(self) -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t not in self._before and t.name == "tasks worker thread"]
