"""Limits: which task may start now, and which has to wait for another to end."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Any

from tasks_core._support.log import logger
from tasks_core._task import Task

from .ledger import ENDING, LAUNCHED, LIMITER, SLOT, THREAD, Ledger, log_fields, title


class Gate:
    """A number of places. A task that finds none free waits, in the order of scheduling."""

    __slots__ = ("limit", "ticket", "used", "waiting")

    def __init__(self, ticket: int, limit: float) -> None:
        self.ticket = ticket
        self.limit = limit
        self.used = 0
        # Ids, not tasks: a task that is cancelled while it waits is released at once, and its id is skipped later.
        self.waiting: list[int] = []

    def take(self, task: Task[Any]) -> bool:
        """Take a place, or queue for one."""
        if self.used < self.limit:
            self.used += 1
            task._tickets |= self.ticket
            return True
        heappush(self.waiting, task.id)
        return False

    def next(self, ledger: Ledger) -> Task[Any] | None:
        """Give a free place to the first task that waits, and return that task."""
        while self.waiting and self.used < self.limit:
            task = ledger.get(heappop(self.waiting))
            if task is not None:
                self.used += 1
                task._tickets |= self.ticket
                return task
        return None


class Limits:
    """
    Decides which task may start. A plain function needs a thread first, then every task needs a slot.

    In this order, because a task that waits for a thread must not take a slot from a coroutine that could run. Nothing
    is started here: the methods return the tasks that may start now, and the runner starts them.
    """

    __slots__ = ("_ledger", "_max_concurrency", "_slots", "_threads", "unlimited")

    def __init__(self, ledger: Ledger, max_concurrency: float, max_threads: float) -> None:
        self._ledger = ledger
        self._max_concurrency = max_concurrency
        self._slots = Gate(SLOT, 0)  # until resume()
        self._threads = Gate(THREAD, max_threads)
        self.unlimited = False
        """Whether there is nothing to count for a coroutine function."""

    def resume(self) -> list[Task[Any]]:
        """Begin to admit tasks; return those that have waited for it."""
        self._slots.limit = self._max_concurrency
        self.unlimited = self._max_concurrency == self._ledger.max_pending == inf
        return self._refill(self._slots)

    def admit(self, task: Task[Any]) -> bool:
        """Return whether the task may start now; if not, it waits here and is returned by a later call."""
        if self.unlimited and task._is_async:
            return True
        if not ((task._is_async or self._threads.take(task)) and self._slots.take(task)):
            return False
        self._ledger.launch(task)
        return True

    def release(self, task: Task[Any]) -> list[Task[Any]]:
        """Give back all that the task counts against; return the tasks that may start because of it."""
        tickets = task._tickets
        task._tickets = tickets & (LAUNCHED | ENDING)
        admitted: list[Task[Any]] = []
        if tickets & SLOT:
            admitted += self._give_back(self._slots)
        if tickets & THREAD:
            admitted += self._give_back(self._threads)
        if tickets & LIMITER:
            _release_token(task)
        return admitted

    def detach_thread(self, task: Task[Any]) -> bool:
        """
        Detach the place of a thread from the task, because a function that hangs occupies its thread for longer.

        Return whether there was one. If so, the caller owes a call of `release_thread()`.
        """
        had_ticket = bool(task._tickets & THREAD)
        task._tickets &= ~THREAD
        return had_ticket

    def release_thread(self) -> list[Task[Any]]:
        """Give back the place that `detach_thread()` has detached; return the tasks that may start because of it."""
        return self._give_back(self._threads)

    def _give_back(self, gate: Gate) -> list[Task[Any]]:
        gate.used -= 1
        return self._refill(gate) if gate.waiting else []

    def _refill(self, gate: Gate) -> list[Task[Any]]:
        admitted = []
        while (task := gate.next(self._ledger)) is not None:
            if gate is self._slots or self._slots.take(task):
                self._ledger.launch(task)
                admitted.append(task)
        return admitted


def _release_token(task: Task[Any]) -> None:
    assert task.config.limiter is not None
    try:
        task.config.limiter.release_on_behalf_of(task)
    except Exception:  # the limiter belongs to the user, who may have released everything by hand
        logger.exception("%s could not give its token back to its limiter", title(task), extra=log_fields(task))
