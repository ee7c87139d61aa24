"""Runs of durable tasks. The worker makes a task for each attempt; the record shows one task for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

PHASE = "durable"
"""The phase of runs, in the record."""

_current: ContextVar[DurableRun | None] = ContextVar("tasks_testing_durable_run", default=None)


class DurableRun:
    """The deliveries of one durable call, until it succeeds or fails for good."""

    def __init__(self, where: str) -> None:
        self.where = where
        """The `file:line` that submitted the call."""
        self.task: Any = None
        """The `RecordedTask` of the record; `None` until the first attempt is scheduled."""
        self.completed = False
        """Whether it has ended in a transaction of its own, whatever its last attempt did afterwards."""
        self._expects_attempt = False

    @contextmanager
    def next_attempt(self) -> Iterator[None]:
        """Record the first task that is scheduled in the block, in its context, as the next attempt of the run."""
        self._expects_attempt = True
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def run_of_next_task() -> DurableRun | None:
    """
    Return the run that the task being scheduled is an attempt of, or `None`.

    Resets it as well: a task that the attempt itself schedules belongs to no run.
    """
    run = _current.get()
    if run is None or not run._expects_attempt:
        return None
    run._expects_attempt = False
    return run
