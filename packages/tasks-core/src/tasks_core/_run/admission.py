"""Limits: which task may start now, and which has to wait for another to end."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

from tasks_core._support.log import logger
from tasks_core._task import Task

from .ledger import LAUNCHED, Ledger, log_fields, title

# What a task counts against: bits in Task._tickets, next to LAUNCHED.
SLOT = 2
THREAD = 4
LIMITER = 8
# Not a limit, but a wait of the same kind: an observer holds the task.
HELD = 16


class Gate:
    """A number of places; whoever comes when all are taken waits, in the order of scheduling."""

    __slots__ = ("limit", "ticket", "used", "waiting")

    def __init__(self, ticket: int, limit: float) -> None:
        self.ticket = ticket
        self.limit = limit
        self.used = 0
        # Ids, not tasks: one that is cancelled while it waits is gone at once, and its id is skipped later.
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
        """Give a free place to the first that waits."""
        while self.waiting and self.used < self.limit:
            task = ledger.get(heappop(self.waiting))
            if task is not None:
                self.used += 1
                task._tickets |= self.ticket
                return task
        return None


class Admission:
    """
    Lets tasks through to `launch`: plain functions need a thread first, then everybody needs a slot.

    In this order, because a task that waits for a thread must not take a slot from a coroutine that could run.
    """

    __slots__ = ("_ledger", "_max_concurrency", "_slots", "_threads", "_unlimited", "launch")

    launch: Callable[[Task[Any]], None]
    """Starts the next attempt of a task."""

    def __init__(self, ledger: Ledger, max_concurrency: float, max_threads: float) -> None:
        self._ledger = ledger
        self._max_concurrency = max_concurrency
        self._slots = Gate(SLOT, 0)  # until resume()
        self._threads = Gate(THREAD, max_threads)
        self._unlimited = False

    def resume(self) -> None:
        """Begin to let tasks through."""
        self._slots.limit = self._max_concurrency
        self._unlimited = self._max_concurrency == self._ledger.max_pending == inf
        self._refill(self._slots)

    def enter(self, task: Task[Any]) -> None:
        """Launch the task as soon as the limits allow."""
        if not (self._unlimited and task._is_async):  # else there is nothing to count
            if not ((task._is_async or self._threads.take(task)) and self._slots.take(task)):
                return
            self._ledger.launch(task)
        self.launch(task)

    def leave(self, task: Task[Any]) -> None:
        """Give back all that the task counts against, and launch those who waited for it."""
        tickets = task._tickets
        if not tickets:
            return
        task._tickets = tickets & LAUNCHED
        if tickets & SLOT:
            slots = self._slots
            slots.used -= 1
            if slots.waiting:
                self._refill(slots)
        if tickets & THREAD:
            self._give_back(self._threads)
        if tickets & LIMITER:
            _release_token(task)

    def keep_thread(self, task: Task[Any]) -> bool:
        """
        Detach the place of a thread from the task: a function that hangs takes up its thread for longer.

        Return whether there was one; if so, `thread_ended()` is owed.
        """
        had_ticket = bool(task._tickets & THREAD)
        task._tickets &= ~THREAD
        return had_ticket

    def thread_ended(self) -> None:
        """Give back the place of a thread that `keep_thread()` has detached."""
        self._give_back(self._threads)

    def _give_back(self, gate: Gate) -> None:
        gate.used -= 1
        if gate.waiting:
            self._refill(gate)

    def _refill(self, gate: Gate) -> None:
        while (task := gate.next(self._ledger)) is not None:
            if gate is self._slots or self._slots.take(task):
                self._ledger.launch(task)
                self.launch(task)


def _release_token(task: Task[Any]) -> None:
    assert task.config.limiter is not None
    try:
        task.config.limiter.release_on_behalf_of(task)
    except Exception:  # the limiter belongs to the user, who may have released everything by hand
        logger.exception("%s could not give its token back to its limiter", title(task), extra=log_fields(task))
