"""The books: which tasks are alive, how the others ended, and a line for each one that was lost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from threading import Lock
from typing import Any

import anyio

from ._observer import hooks, notify
from ._task import Task, TaskState
from .exceptions import TaskQueueFullError

logger = logging.getLogger("tasks_core")

CANCEL_CALLED = "task.cancel() was called"
"""The one reason for a cancellation that is no loss: somebody wanted it."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """
    What a scheduler has at the moment, and what it has had. Ready for a health endpoint; see `as_dict()`.

    `scheduled` is always the sum of all the others but `oldest_age` and `by_phase`.
    """

    scheduled: int
    """Tasks accepted since the scheduler was made."""
    pending: int
    running: int
    retrying: int
    succeeded: int
    failed: int
    cancelled: int
    discarded: int
    by_phase: Mapping[str | None, int]
    """Tasks that are not finished, by phase (`None`: scheduled outside of any)."""
    oldest_age: float
    """Seconds since the oldest task that is not finished was scheduled; 0 if there is none."""

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers in a form that JSON can carry; the phase `None` is called `"none"`."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        numbers["by_phase"] = {phase or "none": number for phase, number in self.by_phase.items()}
        return numbers


@dataclass(frozen=True, slots=True)
class LostTask:
    """A task that did not run to its end, as reports and logs name it: without arguments."""

    id: int
    name: str
    phase: str | None
    state: TaskState
    reason: str
    attempts: int
    age: float
    """Seconds from `schedule()` until it was lost."""
    where: str
    """The `file:line` that called `schedule()`."""

    def __str__(self) -> str:
        phase = "" if self.phase is None else f"{self.phase}, "
        return f"{self.name!r} #{self.id} ({phase}{self.age:.1f} s old, scheduled at {self.where})"


class Ledger:
    """
    Every task that is not finished, by id, and the totals of those that are.

    Entered from any thread; everything else happens on the thread of the loop.
    """

    __slots__ = ("_empty", "_lock", "_max_pending", "_tasks", "_totals", "closed", "launched", "losses", "retrying")

    def __init__(self, max_pending: float) -> None:
        self._lock = Lock()
        self._max_pending = max_pending
        self._tasks: dict[int, Task[Any]] = {}  # in the order of scheduling
        self._totals = {state: 0 for state in TaskState if state.finished}
        self._empty: anyio.Event | None = None
        self.closed = False
        self.launched = 0  # tasks that hold a slot: they run, or start at the next turn of the loop
        self.retrying = 0
        self.losses: LossReport | None = None  # set while shutting down

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, task_id: int) -> Task[Any] | None:
        """Return a task that is not finished."""
        return self._tasks.get(task_id)

    def live(self) -> list[Task[Any]]:
        """Return a snapshot of the tasks that are not finished, oldest first."""
        return list(self._tasks.values())

    def enter(self, task: Task[Any]) -> bool:
        """Accept a task, on the thread of the loop; false when the books are closed."""
        if self._max_pending == inf and not self.closed:
            self._tasks[task.id] = task
            return True
        return self.enter_from_thread(task)

    def enter_from_thread(self, task: Task[Any]) -> bool:
        """Accept a task, from any thread; false when the books are closed."""
        with self._lock:
            if self.closed:
                return False
            waiting = len(self._tasks) - self.launched - self.retrying
            if waiting >= self._max_pending:
                raise TaskQueueFullError(
                    f"{task.name!r} was not accepted: {waiting} tasks are waiting to start, and "
                    f"max_pending={self._max_pending}. Raise max_pending, or schedule less at once"
                )
            self._tasks[task.id] = task
        return True

    def close(self) -> None:
        """Accept nothing more."""
        with self._lock:
            self.closed = True

    def start(self, task: Task[Any]) -> None:
        """Note that an attempt begins."""
        task._state = TaskState.RUNNING
        task.attempts += 1
        if task._started is not None:
            task._started.set()
        if hooks.task_started:
            notify(hooks.task_started, task)

    def settle(self, task: Task[Any], state: TaskState, reason: str | None = None) -> None:
        """Note how a task ended. This is the only way into a terminal state."""
        task._state = state
        task.reason = reason
        task._context = None
        task._native = None
        del self._tasks[task.id]
        self._totals[state] += 1
        if task._finished is not None:
            task._finished.set()
        if hooks.task_finished:
            notify(hooks.task_finished, task)
        if self._empty is not None and not self._tasks:
            self._empty.set()

    def drop(self, task: Task[Any], reason: str) -> None:
        """Note that a task is not wanted, for a reason that lies in the ordinary course of things."""
        self.settle(task, TaskState.DISCARDED, reason)
        logger.info("%s was discarded: %s", title(task), reason, extra=log_fields(task))

    def give_up(self, task: Task[Any], state: TaskState, reason: str) -> None:
        """Note that a task was cancelled, or dropped unwillingly: a loss, unless somebody called `cancel()`."""
        if reason == CANCEL_CALLED:
            self.settle(task, state, reason)
            logger.info("%s was cancelled: %s", title(task), reason, extra=log_fields(task))
            return
        lost = describe_loss(task, state, reason)
        if self.losses is None or self.losses.add(lost):
            logger.warning("Task %s was %s: %s", lost, state, reason, extra=log_fields(task))
        self.settle(task, state, reason)

    async def wait_empty(self) -> None:
        """Return when no task is alive."""
        while self._tasks:
            self._empty = anyio.Event()
            await self._empty.wait()

    def statistics(self) -> SchedulerStatistics:
        """Count. Walks over the live tasks."""
        live = self.live()
        states = Counter(task._state for task in live)
        totals = {state: self._totals[state] for state in self._totals}
        return SchedulerStatistics(
            scheduled=len(live) + sum(totals.values()),
            pending=states[TaskState.PENDING],
            running=states[TaskState.RUNNING],
            retrying=states[TaskState.RETRYING],
            succeeded=totals[TaskState.SUCCEEDED],
            failed=totals[TaskState.FAILED],
            cancelled=totals[TaskState.CANCELLED],
            discarded=totals[TaskState.DISCARDED],
            by_phase=Counter(task.phase for task in live),
            oldest_age=live[0].age if live else 0.0,
        )


# Beyond this many, losses of one shutdown are logged by kind: 100,000 lines would outlast its bounds.
_SINGLE_LINES = 1000


class LossReport:
    """The losses of one shutdown."""

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks: list[LostTask] = []

    def add(self, lost: LostTask) -> bool:
        """Keep a loss, and say whether it gets a line of its own."""
        self.tasks.append(lost)
        return len(self.tasks) <= _SINGLE_LINES

    def log_rest(self) -> None:
        """Log the losses that got no line of their own, one line for each kind."""
        kinds = Counter((t.state, t.name, t.phase, t.where, t.reason) for t in self.tasks[_SINGLE_LINES:])
        for (state, name, phase, where, reason), number in kinds.items():
            phase_text = "" if phase is None else f"{phase}, "
            logger.warning(
                "%d more tasks %r (%sscheduled at %s) were %s: %s", number, name, phase_text, where, state, reason
            )


def describe_loss(task: Task[Any], state: TaskState, reason: str) -> LostTask:
    return LostTask(task.id, task.name, task.phase, state, reason, task.attempts, task.age, task.where)


def log_fields(task: Task[Any]) -> dict[str, object]:
    """What every record about a task carries as `extra`."""
    return {
        "task_id": task.id,
        "task_name": task.name,
        "task_phase": task.phase,
        "task_attempt": task.attempts,
        "task_where": task.where,
    }


def title(task: Task[Any]) -> str:
    """How log lines begin."""
    phase = "" if task.phase is None else f"{task.phase}, "
    return f"Task {task.name!r} #{task.id} ({phase}scheduled at {task.where})"
