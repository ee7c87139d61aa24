"""The ledger: which tasks are not finished, how the others ended, and a line for each one that was lost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntFlag, auto
from math import inf
from threading import RLock
from typing import Any, Protocol

import anyio

from tasks_core._journal import Journal
from tasks_core._observer import hooks, notify
from tasks_core._support.log import logger, message_of, shows_traceback
from tasks_core._task import Task, TaskState
from tasks_core.exceptions import TaskQueueFullError

CANCEL_CALLED = "task.cancel() was called"
"""The one reason for a cancellation that is no loss, because the application asked for it."""


class Ticket(IntFlag):
    """What a task counts against, and what it waits for: the bits of `Task._tickets`."""

    LAUNCHED = auto()
    """The limits have admitted the task once, so that it no longer waits to start."""
    SLOT = auto()
    """It has one of `max_concurrency` slots."""
    THREAD = auto()
    """It has one of `max_threads` threads."""
    LIMITER = auto()
    """It has a token of its limiter."""
    HELD = auto()
    """An observer holds it."""
    ENDING = auto()
    """It is in its terminal state, and its `on_end` runs."""


# As plain integers: on CPython 3.11, an operation on members of an enumeration costs as much as ten attributes.
LAUNCHED, SLOT, THREAD, LIMITER, HELD, ENDING = map(int, Ticket)


@dataclass(frozen=True, slots=True)
class PeriodicStatistics:
    """What became of the occurrences of a periodic task."""

    runs: int
    """Occurrences at which it ran."""
    failed: int
    """Runs that have failed."""
    skipped: int
    """Occurrences at which it did not run, because the run before had not ended or was not accepted."""


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """
    How many tasks a scheduler has at the moment, and how those before have ended; `as_dict()` is for JSON.

    `scheduled` is always the sum of the tasks in each state. A run of a periodic task is a task of the phase
    `"periodic"`; a service is no task.
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
    services: int = 0
    """Services that have not ended."""
    periodic: Mapping[str, PeriodicStatistics] = field(default_factory=dict)
    """The periodic tasks that have further occurrences, by name."""

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers in a form that can be written as JSON; the phase `None` is called `"none"`."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        numbers["by_phase"] = {phase or "none": number for phase, number in self.by_phase.items()}
        numbers["periodic"] = {name: asdict(counts) for name, counts in self.periodic.items()}
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


class TaskLabel(Protocol):
    """
    How log lines name a task whose work is kept elsewhere, and is done there if this task does not end it.

    Whatever shutdown does to such a task, nothing is lost.
    """

    @property
    def where(self) -> str:
        """Takes the place of the line that called `schedule()`."""
        ...

    @property
    def fields(self) -> Mapping[str, object]:
        """Added to the `extra` of log records."""
        ...


def label(task: Task[Any], label: TaskLabel) -> None:
    """Name *task* by *label* in log lines, and count no loss of it."""
    task._label = label


class Ledger:
    """
    Every task that is not finished, by id, and the totals of those that are.

    Tasks are entered and counted from any thread; everything else happens on the event loop.
    """

    __slots__ = (
        "_begin_ending",
        "_launched",
        "_lock",
        "_tasks",
        "_totals",
        "_unannounced",
        "_waiters",
        "closed",
        "end_journal",
        "get",
        "journals",
        "losses",
        "max_pending",
    )

    get: Callable[[int], Task[Any] | None]
    """Returns a task that is not finished, by its id."""

    def __init__(
        self,
        max_pending: float,
        begin_ending: Callable[[Task[Any], TaskState, str | None], bool],
        end_journal: Callable[[Task[Any]], object],
    ) -> None:
        # Reentrant: a finalizer or a signal handler that calls schedule() may run in the middle of it.
        self._lock = RLock()
        self.max_pending = max_pending
        self._tasks: dict[int, Task[Any]] = {}  # in the order of scheduling
        self.get = self._tasks.get
        self._totals = {state: 0 for state in TaskState if state.finished}
        self._launched = 0  # Invariant: how many of _tasks have the bit LAUNCHED
        self._unannounced: set[int] = set()  # tasks whose `task_scheduled` is being called
        # Called when a task ends that is not plain. When that returns true, settle() is called once more later.
        self._begin_ending = begin_ending
        self.end_journal = end_journal  # called for each task that ends while there are journals
        self.journals: dict[int, Journal] = {}  # of tasks that have not ended, by id
        self._waiters: list[tuple[Callable[[], bool], anyio.Event]] = []  # the conditions, and the events to set
        self.closed = False
        self.losses: LossReport | None = None  # set while shutting down

    def __len__(self) -> int:
        return len(self._tasks)

    def live(self) -> list[Task[Any]]:
        """Return a snapshot of the tasks that are not finished, oldest first."""
        return list(self._tasks.values())

    def enter(self, task: Task[Any], here: bool, announcing: bool) -> bool:
        """
        Accept a task; return false if the ledger is closed. *here*: the caller runs on the event loop.

        With *announcing*, the caller has to call `announced()`; `task_finished` is not called before that.
        """
        if here and self.max_pending == inf and not self.closed:  # the short way, without the lock
            if announcing:
                self._unannounced.add(task.id)
            self._tasks[task.id] = task
            return True
        with self._lock:
            if self.closed:
                return False
            if not self.has_capacity():
                raise TaskQueueFullError(
                    f"{task.name!r} was not accepted: {len(self._tasks) - self._launched} tasks are waiting to start, "
                    f"and max_pending={self.max_pending}. Raise max_pending, schedule less at once, or wait first: "
                    "await scheduler.wait_for_capacity()"
                )
            if announcing:
                self._unannounced.add(task.id)
            self._tasks[task.id] = task
        return True

    def announced(self, task: Task[Any]) -> None:
        """Note that `task_scheduled` has been called."""
        if not self._take_unannounced(task):  # it has ended meanwhile: by another thread, or by one of the observers
            notify(hooks.task_finished, task)

    def _take_unannounced(self, task: Task[Any]) -> bool:
        """Return whether the caller is the first of `announced()` and `settle()`; the second calls `task_finished`."""
        try:
            self._unannounced.remove(task.id)
        except KeyError:
            return False
        return True

    def close(self) -> None:
        """Accept nothing more."""
        with self._lock:
            self.closed = True

    def launch(self, task: Task[Any]) -> None:
        """Note that the limits have admitted the task."""
        if not task._tickets & LAUNCHED:
            task._tickets |= LAUNCHED
            self._launched += 1
            if self._waiters:
                self._wake()

    def settle(self, task: Task[Any], state: TaskState, reason: str | None = None) -> None:
        """Note how a task ended. This is the only way into a terminal state."""
        if not task.config.is_plain and self._begin_ending(task, state, reason):
            return
        task._state = state
        task._reason = reason
        if task._tickets & LAUNCHED:
            self._launched -= 1  # before the next line: to a thread, max_pending may look exceeded, but never is
        del self._tasks[task.id]
        self._totals[state] += 1
        task._context = None
        task._native = None
        try:
            if task._finished is not None:
                task._finished.set()
            if self.journals:
                self.end_journal(task)
            if hooks.task_finished and not (self._unannounced and self._take_unannounced(task)):
                notify(hooks.task_finished, task)
        finally:
            if self._waiters:
                self._wake()

    def drop(self, task: Task[Any], reason: str) -> None:
        """Note that a task will not run, for a reason that is no loss: its phase had the other outcome."""
        self.settle(task, TaskState.DISCARDED, reason)
        logger.info("%s was discarded: %s", title(task), reason, extra=log_fields(task))

    def record_loss(self, task: Task[Any], state: TaskState, reason: str) -> None:
        """Note that a task was cancelled or discarded: a loss, unless the reason is a call of `cancel()`."""
        if reason != CANCEL_CALLED and hasattr(task, "_label"):
            self.settle(task, state, reason)
            logger.debug("%s is not done by this process: %s", title(task), reason, extra=log_fields(task))
            return
        lost = describe_loss(task, state, reason)
        task._lost = reason != CANCEL_CALLED
        self.settle(task, state, reason)
        if reason == CANCEL_CALLED:
            level = logging.INFO
        elif self.losses is None or self.losses.add(lost):
            level = logging.WARNING
        else:
            return
        # The exception of an attempt that was to be followed by another: it has not been logged yet.
        logger.log(level, "Task %s was %s: %s", lost, state, reason, exc_info=task.exception, extra=log_fields(task))

    def discard_late(self, task: Task[Any], reason: str) -> None:
        """Enter a task into the closed ledger and discard it at once."""
        self._tasks[task.id] = task
        notify(hooks.task_scheduled, task)
        self.record_loss(task, TaskState.DISCARDED, reason)

    def has_capacity(self) -> bool:
        """Return whether `max_pending` allows one more task to wait."""
        return len(self._tasks) - self._launched < self.max_pending

    async def wait_at_most(self, few: int) -> None:
        """Return when no more than *few* tasks are alive."""
        await self.wait_until(lambda: len(self._tasks) <= few)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when *condition*, which tells about the number of tasks, is true at the moment of the return."""
        while not condition():
            waiter = condition, anyio.Event()
            self._waiters.append(waiter)
            try:
                await waiter[1].wait()
            finally:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        for condition, event in self._waiters:
            if condition():
                event.set()

    def statistics(self) -> SchedulerStatistics:
        """Count the tasks; walks over those that are not finished."""
        # Without a lock: to another thread, a task that ends right now may be neither alive nor counted.
        live = [(task, state) for task in self.live() if not (state := task._state).finished]
        states = Counter(state for _, state in live)
        ended = self._totals.copy()
        return SchedulerStatistics(
            scheduled=len(live) + sum(ended.values()),
            pending=states[TaskState.PENDING],
            running=states[TaskState.RUNNING],
            retrying=states[TaskState.RETRYING],
            succeeded=ended[TaskState.SUCCEEDED],
            failed=ended[TaskState.FAILED],
            cancelled=ended[TaskState.CANCELLED],
            discarded=ended[TaskState.DISCARDED],
            by_phase=Counter(phase_name(task) for task, _ in live),
            oldest_age=live[0][0].age if live else 0.0,
        )


# Beyond this many, losses of one shutdown are logged by kind: 100,000 lines would outlast its bounds.
_SINGLE_LINES = 1000


class LossReport:
    """The losses of one shutdown."""

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks: list[LostTask] = []

    def add(self, lost: LostTask) -> bool:
        """Keep a loss; return whether it gets a line of its own."""
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


def unstarted(task: Task[Any]) -> TaskState:
    """Return the state of a task that shutdown keeps from running: cancelled after an attempt, otherwise discarded."""
    # An attempt that ended in `Snooze` does not count.
    began = task.attempts or task._state is TaskState.RETRYING
    return TaskState.CANCELLED if began else TaskState.DISCARDED


def phase_name(task: Task[Any]) -> str | None:
    return None if task.phase is None else task.phase.name


def describe_loss(task: Task[Any], state: TaskState, reason: str) -> LostTask:
    return LostTask(task.id, task.name, phase_name(task), state, reason, task.attempts, task.age, task.where)


def log_fields(task: Task[Any]) -> dict[str, object]:
    """Return the `extra` of every log record about *task*."""
    fields: dict[str, object] = {
        "task_id": task.id,
        "task_name": task.name,
        "task_phase": phase_name(task),
        "task_attempt": task.attempts,
        "task_where": task.where,
    }
    if hasattr(task, "_label"):
        fields |= task._label.fields
    return fields


def title(task: Task[Any]) -> str:
    """Return the beginning of a log line about *task*."""
    if hasattr(task, "_label"):
        return f"Task {task.name!r}, {task._label.where},"
    phase = "" if task.phase is None else f"{task.phase.name}, "
    return f"Task {task.name!r} #{task.id} ({phase}scheduled at {task.where})"


def log_retry(task: Task[Any], error: BaseException, what: str, failures: int) -> None:
    """Log that an attempt, the *failures*-th that failed, is followed by another, and *what* that one does."""
    whole, extra = shows_traceback(failures), log_fields(task)
    logger.warning(
        "%s failed in attempt %d (%s) and %s",
        title(task),
        task.attempts,
        message_of(error),
        what,
        exc_info=error if whole else None,
        extra=extra,
    )
    if not whole:
        # The title begins or ends a sentence elsewhere.
        name = title(task).removeprefix("Task ").removesuffix(",")
        logger.debug("The traceback of attempt %d of task %s", task.attempts, name, exc_info=error, extra=extra)
