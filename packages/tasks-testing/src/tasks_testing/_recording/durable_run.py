"""Runs of durable tasks: each attempt is a task of a worker, and all of them are one task of the record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .record import RecordedTask

PHASE = "durable"
"""The phase of runs, in the record."""

_delivering: ContextVar[DurableRun | None] = ContextVar("tasks_testing_delivering", default=None)


class DurableRun:
    """A durable task that is delivered to a worker until it succeeds, or fails for good."""

    def __init__(self, where: str) -> None:
        self.where = where
        """The `file:line` that handed it over."""
        self.task: RecordedTask[Any] | None = None
        """What the recording has of it; `None` until the first attempt is scheduled."""
        self._awaits_attempt = False

    @contextmanager
    def next_attempt(self) -> Iterator[None]:
        """Take the first task that is scheduled in the block, in its context, for the next attempt."""
        self._awaits_attempt = True
        token = _delivering.set(self)
        try:
            yield
        finally:
            _delivering.reset(token)


def run_of_next_task() -> DurableRun | None:
    """Return the run of which the task that is being scheduled is an attempt; the next one is none."""
    run = _delivering.get()
    if run is None or not run._awaits_attempt:
        return None
    run._awaits_attempt = False
    return run
