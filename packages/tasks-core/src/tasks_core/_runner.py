"""The way of a task from `schedule()` to its attempts, and of a cancellation to the task."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from ._admission import HELD, LIMITER, Admission
from ._attempt import Attempts
from ._clock import Clock, clock_in_force
from ._ledger import CANCEL_CALLED, Ledger
from ._loop import Loop
from ._observer import hooks, is_held, notify
from ._task import CURRENT_TASK, Task, TaskState, current_task
from .exceptions import SchedulerClosedError, SchedulerNotStartedError

GRACE_OVER = "the grace period of the shutdown was over"


class Stage(IntEnum):
    """How far a scheduler is in its life."""

    NEW = 0
    OPEN = 1
    DRAINING = 2
    """Closed to outside work; everything may finish."""
    SHIELDED_ONLY = 3
    """The grace period is over."""
    CLOSED = 4


class Runner:
    """
    What stands behind a `TaskScheduler`, its batches and its tasks.

    The state of a task changes on the thread of the loop only; other threads hand over what they want done.
    """

    __slots__ = ("_admission", "attempts", "clock", "ledger", "loop", "paused", "stage")

    def __init__(self, clock: Clock, max_concurrency: float, max_pending: float, max_threads: int) -> None:
        self.clock = clock
        self.stage = Stage.NEW
        self.paused = True
        self.loop = Loop()
        self.ledger = Ledger(max_pending)
        self._admission = Admission(self.ledger, max_concurrency, max_threads)
        self.attempts = Attempts(self.loop, clock, self.ledger, self._admission, max_threads, self._again)
        self._admission.launch = self.attempts.start

    async def open(self) -> None:
        """Bind to the running event loop, and accept tasks; they start after `resume()`."""
        self.attempts.open()
        await self.loop.open()
        self.stage = Stage.OPEN

    def resume(self) -> None:
        """Begin to start tasks."""
        self.paused = False
        self._admission.resume()

    # ---- for the tasks: TaskOwner ----

    def now(self) -> float:
        return self.clock.now()

    def here(self) -> bool:
        return self.loop.here()

    async def call_in_thread(self, func: Any) -> Any:
        return await self.attempts.call_in_thread(func)

    # ---- accepting ----

    def accept(self, task: Task[Any]) -> None:
        """Take a task into the books, or raise and keep nothing of it. It starts when `ready()` is called with it."""
        if self.stage is not Stage.OPEN:
            self._check_stage(task)
        if not (self.ledger.enter(task) if self.loop.here() else self.ledger.enter_from_thread(task)):
            raise _closed(task)
        if hooks.task_scheduled:
            notify(hooks.task_scheduled, task)

    def _check_stage(self, task: Task[Any]) -> None:
        if self.stage is Stage.NEW:
            raise SchedulerNotStartedError(
                f"{task.name!r} was scheduled before the scheduler was started. "
                "Enter it first: async with TaskScheduler() as scheduler: scheduler.schedule(...)"
            )
        caller = current_task()
        if caller is None or caller._owner is not self or caller._state.finished:
            raise _closed(task)

    def ready(self, task: Task[Any]) -> None:
        """The phase of the task is open: start it as soon as nothing else is in the way. On the thread of the loop."""
        if task._state.finished:
            return  # cancelled, or given up by shutdown, before its turn
        if self.stage >= Stage.SHIELDED_ONLY and not task.config.shielded:
            self.ledger.give_up(task, TaskState.DISCARDED, GRACE_OVER)
        elif hooks.hold_task and is_held(task):
            task._tickets |= HELD
        else:
            self._wait_or_enter(task, task.config.delay or 0.0)

    def release(self, task: Task[Any]) -> None:
        self.loop.call(self._release, task)

    def _release(self, task: Task[Any]) -> None:
        if task._tickets & HELD and not task._state.finished:
            task._tickets &= ~HELD
            self._wait_or_enter(task, task.config.delay or 0.0)

    # ---- starting, and starting again ----

    def _wait_or_enter(self, task: Task[Any], delay: float) -> None:
        if delay or task.config.limiter is not None:
            task._native = self.loop.spawn(None, task.name, self._wait_then_enter, task, delay)
        else:
            self._enter(task)

    async def _wait_then_enter(self, task: Task[Any], delay: float) -> None:
        CURRENT_TASK.set(task)  # a clock can tell who sleeps
        if delay:
            clock = clock_in_force(self.clock)
            await clock.sleep_until(clock.now() + delay)
        if task.config.limiter is not None and not task._state.finished:
            await task.config.limiter.acquire_on_behalf_of(task)
            task._tickets |= LIMITER
        if task._state.finished:  # cancelled at the very moment at which the wait was over
            self._admission.leave(task)
        else:
            task._native = None
            self._enter(task)

    def _enter(self, task: Task[Any]) -> None:
        if task._state is TaskState.RETRYING:
            self.ledger.retrying -= 1
            task._state = TaskState.PENDING
        self._admission.enter(task)

    def _again(self, task: Task[Any], error: BaseException, delay: float) -> bool:
        if self.stage >= Stage.SHIELDED_ONLY and not task.config.shielded:
            return False
        task._native = None
        task._state = TaskState.RETRYING
        self.ledger.retrying += 1
        if hooks.task_retrying:
            notify(hooks.task_retrying, task, error, delay)
        self._wait_or_enter(task, delay)
        return True

    # ---- cancelling ----

    def cancel(self, task: Task[Any]) -> None:
        if not self.loop.here() and task._state is TaskState.PENDING:
            task._cancel_reason = CANCEL_CALLED  # seen by the attempt, should it begin before the request arrives
        self.loop.call(self.stop, task, CANCEL_CALLED)

    def stop(self, task: Task[Any], reason: str) -> None:
        """Cancel a task that runs; a task that does not will not. On the thread of the loop."""
        if task._state.finished:
            return
        task._cancel_reason = task._cancel_reason or reason
        native = task._native
        if task._state is TaskState.RUNNING:
            assert native is not None
            native.cancel()
            return
        state = TaskState.CANCELLED
        if task._state is TaskState.RETRYING:
            self.ledger.retrying -= 1
        elif reason != CANCEL_CALLED:
            state = TaskState.DISCARDED
        self._admission.leave(task)
        self.ledger.give_up(task, state, reason)
        if native is not None:
            native.cancel()


def _closed(task: Task[Any]) -> SchedulerClosedError:
    return SchedulerClosedError(
        f"{task.name!r} was scheduled after shutdown began. "
        "Only tasks that still run may schedule more; schedule other work before `async with scheduler` is left"
    )
