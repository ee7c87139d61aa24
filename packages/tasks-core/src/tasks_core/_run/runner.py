"""The way of a task from `schedule()` to its attempts, and of a cancellation to the task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from functools import partial
from math import inf
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet, ref

import anyio

from tasks_core._clock import Clock, clock_in_force, steady
from tasks_core._current import CURRENT, AfterShutdown, current
from tasks_core._decision import Snooze
from tasks_core._loop.backend import for_another_thread
from tasks_core._loop.loop import Loop
from tasks_core._observer import hooks, is_held, notify
from tasks_core._retry import Retry
from tasks_core._support.call import function_name
from tasks_core._support.log import logger
from tasks_core._support.provider import Provisions
from tasks_core._task import PENDING, Task, TaskState
from tasks_core.exceptions import SchedulerClosedError, SchedulerNotStartedError, WrongEventLoopError

from .attempt import Attempts, announce_snooze
from .endings import Endings
from .extension import Extension
from .following import Following
from .keys import Joined, Keys
from .ledger import CANCEL_CALLED, HELD, LIMITER, Ledger, log_fields, log_retry, title, unstarted
from .limits import Limits
from .services import Services

AnyTask = TypeVar("AnyTask", bound=Task[Any])
Enter: TypeAlias = Callable[[Task[Any], bool, bool], bool]

GRACE_OVER = "the grace period of the shutdown was over"
DELAY_TOO_LONG = "its delay would have ended after the time that shutdown leaves it"
SHIELD_OVER = "the time for shielded tasks (shield_timeout) was over"


class Stage(IntEnum):
    """How far a scheduler is in its life."""

    NEW = 0
    STARTING = 1
    OPEN = 2
    DRAINING = 3
    """Closed to outside work; everything may finish."""
    SHIELDED_ONLY = 4
    """The grace period is over."""
    ENDING = 5
    """The time for shielded tasks is over too."""
    CLOSED = 6


_OPEN = Stage.OPEN  # looked up once, because every task passes by here


class Runner:
    """
    What stands behind a `TaskScheduler`, its phases and its tasks.

    The state of a task changes on the event loop only; other threads post to the loop what is to be done.
    """

    __slots__ = (
        "_endings",
        "attempts",
        "brief",
        "clock",
        "delayed",
        "extensions",
        "find_scheduler",
        "following",
        "here",
        "keys",
        "ledger",
        "limits",
        "loop",
        "paused",
        "provisions",
        "report_prefix",
        "services",
        "stage",
        "steady_clock",
        "time_left",
    )

    def __init__(
        self,
        find_scheduler: Callable[[], Any],
        clock: Clock,
        max_concurrency: float,
        max_pending: float,
        max_threads: int,
        provisions: Provisions | None = None,
        follow_for: float = 0.0,
    ) -> None:
        self.find_scheduler = find_scheduler  # a weak reference, because the scheduler refers to the runner
        self.clock = clock
        self.provisions = provisions
        self.steady_clock = steady(clock)
        self.extensions: tuple[Extension, ...] = ()
        self.stage = Stage.NEW
        self.paused = True
        self.brief = False
        """Whether the scheduler lives as long as a request, so that an end without tasks is a line at `DEBUG`."""
        self.report_prefix = ""
        """What the line of the shutdown report begins with, if it is not the only scheduler of an application."""
        self.loop = Loop()
        self.here: Callable[[], bool] = self.loop.runs_caller  # replaced in open()
        self.keys = Keys(self)
        self._endings = Endings(self)
        self.following = Following(self, follow_for)
        self.ledger = Ledger(max_pending, self._begin_ending, self.following.end)
        self.limits = Limits(self.ledger, max_concurrency, max_threads)
        self.attempts = Attempts(self, max_threads)
        self.services = Services(self)
        self.delayed: dict[int, tuple[Clock | None, float]] = {}
        """The clock and the moment at which a delay ends, by the id of the task; before it begins, its length."""
        self.time_left: Callable[[Task[Any]], float] = lambda _: inf
        """Returns the seconds that shutdown leaves a task to start."""

    async def open(self) -> None:
        """Bind to the running event loop, and accept tasks; they start after `resume()`."""
        self.stage = Stage.STARTING
        self.steady_clock.now()  # the time from which it can go on
        self.attempts.open()
        try:
            await self.loop.open()
            self.here = self.loop.runs_caller
            for extension in self.extensions:
                await extension.open(self.loop, self.brief)
        except BaseException:
            self.stage = Stage.NEW
            raise
        self.stage = Stage.OPEN

    async def close(self) -> None:
        """Close the extensions and unbind from the event loop."""
        for extension in reversed(self.extensions):
            await extension.close()
        await self.loop.close()
        self.following.close()

    def resume(self) -> None:
        """Begin to start tasks."""
        self.loop.look_for_task_factory()
        self.services.resume()
        self.start_all(self.limits.resume())

    # ---- for the tasks: TaskOwner ----

    @property
    def scheduler(self) -> Any:
        return self.find_scheduler()

    def now(self) -> float:
        return self.steady_clock.now()

    def check_wait(self, task: Task[Any]) -> None:
        caller, phase = current(), task._phase
        if phase is not None and phase.origin is not None and caller is phase.origin and phase._holds(task):
            raise RuntimeError(
                f"Task {task.name!r} #{task.id} was awaited by the code that {phase.name} waits for, before "
                f"{phase.name} opened, so neither could go on. Do what needs the result in a task of the same phase: "
                f"tasks.{phase.name}.schedule(...)"
            )
        if caller is task:
            raise RuntimeError(
                f"{task.name!r} waits for itself, which would never end. `await task` belongs into the code that "
                "scheduled the task, or into another task"
            )
        if self.paused and self.stage is _OPEN:
            raise RuntimeError(
                f"{task.name!r} does not start before the scheduler is resumed, which is after the start of the "
                f"application: to wait for it here would never end. Call the function itself: "
                f"await {function_name(task.func)}(...)"
            )

    def loop_runs(self) -> bool:
        return self.loop.runs()

    async def call_in_thread(self, task: Task[Any], func: Callable[[], object]) -> Any:
        return await self.attempts.call_in_thread(task, func)

    # ---- accepting ----

    def accept(self, task: AnyTask, then: Callable[[AnyTask], object], enter: Enter | None = None) -> None:
        """
        Enter a task into the ledger; if this raises, the task will not run.

        *then* is called with it on the loop: `ready()`, or what leads there. *enter* is called instead of
        `Ledger.enter()`.
        """
        enter = enter or self.ledger.enter
        if self.stage is not _OPEN:
            if self.stage is Stage.CLOSED and isinstance(caller := current(), AfterShutdown):
                self.ledger.discard_late(task, caller.reason)
                return
            self._check_stage(task)
        try:
            here = self.loop.running() is self.loop.native  # Loop.here(), without the call
        except RuntimeError:
            here = False
        if not here:
            if self.loop.stands_still():
                raise _out_of_reach(task)
            assert task._context is not None
            for_another_thread(task._context)
        if hooks.task_scheduled:
            self._enter_and_announce(task, here, enter)
        elif not enter(task, here, False):
            raise _closed(task)
        if here:
            try:
                then(task)
            except BaseException as error:
                self.end_anyhow(task, error)
                raise
        elif not self.loop.post(partial(self._take, task, then)):
            self.ledger.record_loss(task, TaskState.DISCARDED, "the event loop of its scheduler was closed")

    def _take(self, task: AnyTask, then: Callable[[AnyTask], object]) -> None:
        try:
            then(task)
        except BaseException as error:
            self.end_anyhow(task, error)
            raise

    def accept_keyed(self, task: AnyTask, then: Callable[[AnyTask], object]) -> Task[Any]:
        """Accept a task that has a key; or return the one that it joins."""
        key = task.config.key
        joined = self.keys.find_joined(task)
        try:
            if joined is None:
                self.accept(task, then, self.keys.enter)
        except Joined as call:  # another thread has scheduled that task meanwhile
            joined = call.task
        finally:
            if self.here():
                self.keys.forget(task)
        if joined is None:
            return task
        logger.info("No task was made of the call at %s: %s has its key %r", task.where, title(joined), key)
        return joined

    def _begin_ending(self, task: Task[Any], state: TaskState, reason: str | None) -> bool:
        if task.config.key is not None and (following := self.keys.release(task)) is not None:
            # Not now: this task is not in its terminal state yet.
            self.loop.post(partial(self._start_keyed, *following))
        return self._endings.begin(task, state, reason)

    def _start_keyed(self, task: Task[Any], delay: float) -> None:
        if task._state is PENDING:  # each stage of shutdown ends those that are too late for it
            self._wait_or_start(task, delay)

    def discard(self, task: Task[Any], reason: str) -> None:
        """Discard a task that has not started, because a call said so. Call on the loop."""
        native = task._native
        self.delayed.pop(task.id, None)
        self.release_limits(task)
        self.ledger.drop(task, reason)
        if native is not None:
            native.cancel()

    def _enter_and_announce(self, task: Task[Any], here: bool, enter: Enter) -> None:
        if not enter(task, here, True):
            raise _closed(task)
        try:
            notify(hooks.task_scheduled, task)
        except BaseException:  # Ctrl-C, for example: the caller gets no handle
            self.loop.call(self.stop, task, "an observer was interrupted in task_scheduled()")
            raise
        finally:
            self.ledger.announced(task)

    def _check_stage(self, task: Task[Any]) -> None:
        if self.stage <= Stage.STARTING:
            raise SchedulerNotStartedError(
                f"{task.name!r} was scheduled before the scheduler was started. "
                "Enter it first: async with TaskScheduler() as scheduler: scheduler.schedule(...)"
            )
        caller = current()  # a task or a request that has not finished may schedule more
        if getattr(caller, "finished", True) or caller.scheduler is not self.scheduler:
            raise _closed(task)
        if not isinstance(caller, Task) and self.too_late(task):
            raise _closed(task)

    def ready(self, task: Task[Any]) -> None:
        """Start a task whose phase is open, when the limits and its delay allow it. Call on the loop."""
        if task._state is not PENDING:
            return  # cancelled, or ended by shutdown, before its turn
        if self.stage is not _OPEN and (reason := self.too_late(task)):
            self.ledger.record_loss(task, TaskState.DISCARDED, reason)
        elif task._perform is not None:
            self.start(task)
        elif hooks.hold_task and self._hold(task):
            return
        elif not task.config.is_plain:
            self._wait_or_start(task, task.config.delay or 0.0)
        elif (self.limits.unlimited and task._is_async) or self.limits.admit(task):  # the usual case, without the call
            self.start(task)

    def _hold(self, task: Task[Any]) -> bool:
        held = is_held(task)
        if held:
            task._tickets |= HELD
        return held or task._state.finished  # an observer that was asked may have cancelled it

    def too_late(self, task: Task[Any]) -> str | None:
        """Return why shutdown leaves no time for another attempt of the task; `None` if it does."""
        if self.stage >= Stage.ENDING:
            return SHIELD_OVER
        if self.stage is Stage.SHIELDED_ONLY and not task.config.shielded:
            return GRACE_OVER
        return None

    def release(self, task: Task[Any]) -> None:
        self.loop.call(self._release, task)

    def _release(self, task: Task[Any]) -> None:
        if task._tickets & HELD and not task._state.finished:
            task._tickets &= ~HELD
            self._wait_or_start(task, task.config.delay or 0.0)

    # ---- starting, and starting again ----

    def _wait_or_start(self, task: Task[Any], delay: float) -> None:
        if task.config.key is not None and not self.keys.take(task, delay):
            return
        if delay and self.stage is not _OPEN and delay > self.time_left(task):
            self.ledger.record_loss(task, unstarted(task), DELAY_TOO_LONG)
        elif delay or task.config.limiter is not None:
            if delay:
                self.delayed[task.id] = None, delay
            task._native = self.loop.spawn(None, task.name, self._wait_then_start(task))
        elif self.limits.admit(task):
            self.start(task)

    def start(self, task: Task[Any]) -> None:
        """Start an attempt at the next turn of the loop."""
        config, context = task.config, task._context
        if config.on_error is not None and context is not None:
            # Another attempt gets the same variables; but its current task is not the one that scheduled this one.
            context.run(CURRENT.set, ref(task))
            context = context.copy()
        try:
            name = config.name or getattr(task.func, "__name__", None)
        except Exception:  # a proxy may raise anything
            name = None
        if type(name) is not str:
            name = "task"
        attempt = self.attempts.run(task)
        try:
            task._native = self.loop.spawn(context, name, attempt)
        except Exception as error:  # of the task factory of the loop, for example
            attempt.close()
            self.end_anyhow(task, error)

    def end_anyhow(self, task: Task[Any], error: BaseException) -> None:
        """Bring a task to its terminal state although a step on the way there has raised *error*."""
        if task._state.finished:
            logger.error("%s has ended, and a step after that raised", title(task), exc_info=error)
            return
        if task.exception is None:
            task.exception = error
        try:
            logger.error(
                "%s failed in attempt %d, and a step on the way to its end raised %s",
                title(task),
                task.attempts,
                type(error).__name__,
                exc_info=error,
                extra=log_fields(task),
            )
            self.release_limits(task)
        finally:
            self.ledger.settle(task, TaskState.FAILED)

    def start_all(self, tasks: list[Task[Any]]) -> None:
        """Start the tasks that the limits have admitted."""
        for task in tasks:
            self.start(task)

    def release_limits(self, task: Task[Any]) -> None:
        """Give back all that the task counts against, and start the tasks that have waited for it."""
        self.start_all(self.limits.release(task))

    async def _wait_then_start(self, task: Task[Any]) -> None:
        CURRENT.set(ref(task))  # for clocks that ask which task sleeps
        try:
            await self._wait(task)
        except BaseException as error:
            # Cancelled from outside, for `stop()` leaves nothing to do here; or the clock or the limiter is broken.
            if not task._state.finished:
                self._give_up_waiting(task, error)
            if isinstance(error, KeyboardInterrupt):
                self.loop.interrupt(error)
            return
        if task._state.finished:  # stopped at the very moment at which the wait was over
            self.release_limits(task)
        else:
            task._native = None
            if self.limits.admit(task):
                self.start(task)

    async def _wait(self, task: Task[Any]) -> None:
        if task.id in self.delayed:
            try:
                clock = clock_in_force(self.clock)
                due = clock.now() + self.delayed[task.id][1]
                self.delayed[task.id] = clock, due
                await clock.sleep_until(due)
            finally:
                self.delayed.pop(task.id, None)
        if task.config.limiter is not None and not task._state.finished:
            await _acquire_token(task.config.limiter, task)
            task._tickets |= LIMITER

    def _give_up_waiting(self, task: Task[Any], error: BaseException) -> None:
        reason = "it was cancelled through the event loop while it waited for its turn"
        if isinstance(error, Exception):
            task.exception = error
            reason = f"waiting for its delay or its limiter raised {type(error).__name__}"
        self.ledger.record_loss(task, unstarted(task), reason)

    def run_again(self, task: Task[Any], error: BaseException | None, answer: Retry | Snooze) -> bool:
        """Run a task once more whose attempt failed with *error*, or was snoozed; return whether it will run."""
        if task._state.finished or task._cancel_reason is not None or self.too_late(task):
            return False
        self.release_limits(task)
        task._native = None
        task._state = TaskState.RETRYING
        if isinstance(answer, Snooze):
            announce_snooze(task, answer, error)
            task.attempts -= 1
        else:
            assert error is not None
            log_retry(task, error, f"runs again in {answer.delay:g} s", task.attempts)
            if hooks.task_retrying:
                notify(hooks.task_retrying, task, error, answer.delay)
        if not task._state.finished:  # an observer may have cancelled it
            self._wait_or_start(task, answer.delay)
        return True

    # ---- cancelling ----

    def cancel(self, task: Task[Any]) -> bool:
        if task._state.finished:
            return False
        if self.loop.here():
            self.stop(task, CANCEL_CALLED)
        else:
            task._cancel_reason = CANCEL_CALLED  # seen by the attempt, should it begin before the request arrives
            self.loop.post(partial(self.stop, task, CANCEL_CALLED))
        return True

    def stop(self, task: Task[Any], reason: str) -> None:
        """Cancel a task if it runs, and keep it from running if it does not. Call on the loop."""
        if task._state.finished:
            return
        self.delayed.pop(task.id, None)
        native = task._native
        if task._state is TaskState.RUNNING:
            if task._cancel_reason == CANCEL_CALLED != reason:
                # It went on in spite of that: asyncio.wait_for() of Python 3.11 loses a cancellation now and then.
                task._cancel_reason = f"{reason}; it had gone on after task.cancel()"
            task._cancel_reason = task._cancel_reason or reason
            assert native is not None
            self.attempts.name_thread_left(task, reason)
            native.cancel()
            return
        task._cancel_reason = task._cancel_reason or reason
        self.release_limits(task)
        self.ledger.record_loss(task, TaskState.CANCELLED if reason == CANCEL_CALLED else unstarted(task), reason)
        if native is not None:
            native.cancel()


async def _acquire_token(limiter: anyio.CapacityLimiter, task: Task[Any]) -> None:
    # A free one without waiting: before anyio 4.16, cancelling that wait on asyncio loses the token for good.
    with suppress(Exception):  # it would block, which anyio and trio have an exception each for; the wait says the rest
        limiter.acquire_on_behalf_of_nowait(task)
        return
    if limiter not in _reported:
        _report_another_loop(limiter, task)
    await limiter.acquire_on_behalf_of(task)


_reported: WeakSet[anyio.CapacityLimiter] = WeakSet()


def _report_another_loop(limiter: anyio.CapacityLimiter, task: Task[Any]) -> None:
    """Log, once for each limiter, that a task waits for the tasks of another event loop: anyio may not wake it."""
    borrowers = [borrower for borrower in limiter.statistics().borrowers if isinstance(borrower, Task)]
    if all(borrower._owner is task._owner or borrower._owner.here() for borrower in borrowers):
        return
    _reported.add(limiter)
    logger.warning(
        "%s waits for a limiter that tasks of another event loop use, and may wait although a token is free: a limiter "
        "of anyio belongs to one event loop. Make one for each of them",
        title(task),
        extra=log_fields(task),
    )


def _out_of_reach(task: Task[Any]) -> WrongEventLoopError:
    return WrongEventLoopError(
        f"{task.name!r} was scheduled on another event loop than that of the scheduler, which does not run now: the "
        "task would not start. Enter a scheduler on this loop: async with TaskScheduler() as scheduler: "
        "scheduler.schedule(...). In pytest-asyncio, give the test and its fixtures the same loop_scope"
    )


def _closed(task: Task[Any]) -> SchedulerClosedError:
    return SchedulerClosedError(
        f"{task.name!r} was scheduled after shutdown began. "
        "Only tasks, services and requests that still run may schedule more. Work that belongs to the end is scheduled "
        "by a service: scheduler.service(say_goodbye, grace=2), which begins with `await scheduler.stopping.wait()`. "
        "An application starts it in its lifespan, before `yield`: get_scheduler(app).service(say_goodbye, grace=2)"
    )
