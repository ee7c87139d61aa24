"""Periodic tasks: a trigger says when, and each run is a task of its own."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from types import CodeType
from typing import Any, Generic, ParamSpec, TypeVar, overload

import anyio.lowlevel

from ._clock import Clock, clock_in_force
from ._config import TaskConfig
from ._phase import TaskPhase
from ._run.ledger import PeriodicStatistics
from ._run.services import ENDLESS, check_service_function, check_service_options
from ._schedule import ConfiguredTarget, ScheduleTarget, TaskFactory, make_task
from ._service import Service
from ._support.call import check_provided_call, function_name
from ._support.log import logger
from ._task import Task, TaskState
from .exceptions import InvalidConfigError, InvalidTaskError, TasksError
from .triggers import Every, Trigger

P = ParamSpec("P")
T = TypeVar("T")

# Seconds after which a wait for a moment of the wall clock looks at that clock again, which may have been set, or the
# machine may have slept.
_LOOK_AGAIN = 60.0
# Seconds that are lost between a clock, which is a float, and a datetime: a virtual clock would not move for them.
_PRECISION = 1e-5


class PeriodicTask(Generic[T]):
    """
    What `scheduler.periodic(...).schedule(...)` returns: a function that runs again and again.

    Each run is a `Task` of the phase `"periodic"`, with all the options of `.task(...)`. There is never more than one
    at a time: an occurrence that is due while the last run has not ended is skipped, with an INFO line. When several
    occurrences have passed because the event loop was blocked or the machine slept, the function runs once, with an
    INFO line. Shutdown ends the periodic task; a run that has begun is drained like any task.
    """

    __slots__ = (
        "_anchor",
        "_anchor_now",
        "_clock",
        "_code",
        "_context",
        "_failed",
        "_instruction",
        "_occurrence",
        "_runs",
        "_service",
        "_skipped",
        "_target",
        "args",
        "func",
        "kwargs",
        "last",
        "next_at",
        "trigger",
    )

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    trigger: Trigger
    last: Task[T] | None
    """The latest run; `None` before the first."""
    next_at: datetime | None
    """When the next run is due, in UTC; `None` before the scheduler has started, and after the end."""

    def __init__(
        self,
        target: ScheduleTarget,
        trigger: Trigger,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
        code: CodeType,
        instruction: int,
    ) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.trigger = trigger
        self.last = None
        self.next_at = None
        self._runs = self._failed = self._skipped = 0
        phase = TaskPhase(target._runner.scheduler, "periodic", origin=self, opened=True)
        self._target = ConfiguredTarget(phase, target.config)
        self._context = context
        self._code = code
        self._instruction = instruction
        self._occurrence: datetime | None = None
        name = target.config.name or function_name(func)
        services = target._runner.services
        self._service = Service(services, self._run, (), name, "", ENDLESS, 0.0, context, periodic=self)

    @property
    def name(self) -> str:
        """`TaskConfig.name`, or the name of the function; unique among the periodic tasks of the scheduler."""
        return self._service.name

    @property
    def finished(self) -> bool:
        """Whether there is no further occurrence: it was cancelled, its trigger has ended, or the scheduler closes."""
        return self._service.finished

    def statistics(self) -> PeriodicStatistics:
        """Return how many occurrences there have been; from any thread."""
        last = self.last
        return PeriodicStatistics(self._runs, self._failed + (last is not None and _has_failed(last)), self._skipped)

    def cancel(self) -> bool:
        """
        Cancel all further occurrences; a run that has begun goes on (`periodic.last.cancel()` cancels it).

        Returns:
            Whether there would have been further occurrences.
        """
        return self._service.cancel()

    def __repr__(self) -> str:
        when = "finished" if self.finished else f"next at {self.next_at}"
        return f"<PeriodicTask {self.name!r} {when}>"

    # ---- the timer ----

    async def _run(self) -> None:
        self._clock = clock_in_force(self._target._runner.clock)
        self._anchor, self._anchor_now = _wall_time(self._clock), self._clock.now()
        jitter = float(getattr(self.trigger, "jitter", 0.0))
        previous, now = None, self._now()
        while (occurrence := self.trigger.next_after(previous, now)) is not None:
            self.next_at = occurrence + timedelta(seconds=random.random() * jitter)
            await anyio.lowlevel.checkpoint()  # a trigger that is wrong must not block the event loop
            await self._sleep_until(self.next_at)
            now = max(self._now(), self.next_at)  # a clock of microseconds may be behind one of nanoseconds
            following = self.trigger.next_after(occurrence, occurrence)
            if following is not None and following <= now:
                logger.info(
                    "Periodic task %r is %.1f s late and runs once for all occurrences since %s",
                    self.name,
                    (now - occurrence).total_seconds(),
                    occurrence,
                )
            self._start_run()
            previous = occurrence
        self.next_at = None

    def _now(self) -> datetime:
        """Return the present, by the monotonic clock for an interval and by the wall clock otherwise."""
        if isinstance(self.trigger, Every):
            return self._anchor + timedelta(seconds=self._clock.now() - self._anchor_now)
        return _wall_time(self._clock)

    async def _sleep_until(self, due: datetime) -> None:
        look_again = inf if isinstance(self.trigger, Every) or hasattr(self._clock, "time") else _LOOK_AGAIN
        while (left := (due - self._now()).total_seconds()) > _PRECISION:
            await self._clock.sleep_until(self._clock.now() + min(left, look_again))

    def _start_run(self) -> None:
        if self.last is not None and not self.last.finished:
            self._skipped += 1
            logger.info(
                "An occurrence of the periodic task %r is skipped, because run #%d has not ended",
                self.name,
                self.last.id,
            )
            return
        target, runner = self._target, self._target._runner
        try:
            task = make_task(
                target, self.func, self.args, self.kwargs, self._context.copy(), self._code, self._instruction
            )
            runner.accept(task, target._take)
        except TasksError as error:
            self._skipped += 1
            logger.warning("An occurrence of the periodic task %r is skipped: %s", self.name, error)
        else:
            self._runs += 1
            self._failed += self.last is not None and _has_failed(self.last)
            self.last = task


def _has_failed(task: Task[Any]) -> bool:
    return task.state is TaskState.FAILED


class PeriodicTarget:
    """What `scheduler.periodic(trigger)` returns; its `schedule()` schedules runs in place of one task."""

    __slots__ = ("_target", "trigger")

    trigger: Trigger

    def __init__(self, target: ScheduleTarget, trigger: Trigger) -> None:
        _check_trigger(trigger)
        self._target = target
        self.trigger = trigger

    def task(self, **options: Any) -> PeriodicTarget:
        """
        Set options for each run, as `scheduler.task(...)` does for a task.

        Args:
            options: The fields of `TaskConfig`.

        Raises:
            InvalidConfigError: a value is not one that the option allows.
        """
        return PeriodicTarget(self._target.task(**options), self.trigger)

    @overload
    def schedule(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> PeriodicTask[T]: ...

    @overload
    def schedule(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> PeriodicTask[T]: ...

    def schedule(self, func: Any, /, *args: Any, **kwargs: Any) -> PeriodicTask[Any]:
        """
        Run `func(*args, **kwargs)` at each occurrence of the trigger, until shutdown or `cancel()`.

        May be called from any thread, and before the scheduler is entered; the time begins when it starts tasks. Each
        run has the context variables of the moment of this call. A failure of a run is logged and handled as that of
        any task (`on_error`), and the next occurrence comes.

        Raises:
            InvalidTaskError: *func* is not a function that can be called with these arguments, or is durable.
            InvalidConfigError: the scheduler has a periodic task of this name, or the first occurrence is in the past.
            SchedulerClosedError: shutdown has begun.
        """
        caller = sys._getframe(1)
        return self._schedule(func, args, kwargs, caller.f_code, caller.f_lasti, strict=True)

    def _schedule(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        code: CodeType,
        instruction: int,
        *,
        strict: bool,
    ) -> PeriodicTask[Any]:
        _check_not_durable(func)
        target, runner = self._target, self._target._runner
        check_provided_call(func, args, kwargs, runner.provisions)
        first = self.trigger.first if isinstance(self.trigger, Every) else None
        if strict and isinstance(first, datetime) and first < _wall_time(clock_in_force(runner.clock)):
            raise InvalidConfigError(
                f"every(first={first.isoformat()!r}): the first run would be in the past. Pass a moment to come, or "
                "seconds: first=60"
            )
        periodic = PeriodicTask[Any](target, self.trigger, func, args, kwargs, copy_context(), code, instruction)
        if any(service.periodic is not None and service.name == periodic.name for service in runner.services.all()):
            raise InvalidConfigError(
                f"the scheduler has a periodic task {periodic.name!r} already. Give this one a name of its own: "
                f".task(name=...).schedule({function_name(func)}, ...)"
            )
        runner.scheduler._check_service(periodic.name)
        runner.services.add(periodic._service)
        return periodic


def _check_trigger(trigger: object) -> None:
    if not callable(getattr(trigger, "next_after", None)):
        raise InvalidConfigError(
            f"periodic({type(trigger).__qualname__}): trigger must have the method next_after(), as in "
            "periodic(every(minutes=10)) or periodic(cron('0 3 * * *'))"
        )


def _check_not_durable(func: Any) -> None:
    if isinstance(func.func if isinstance(func, partial) else func, TaskFactory):
        raise InvalidTaskError(
            f"{function_name(func)} is durable: each process would submit it at each occurrence. Pass a function "
            "that runs in this process"
        )


def _wall_time(clock: Clock) -> datetime:
    read: Callable[[], float] = getattr(clock, "time", time.time)
    return datetime.fromtimestamp(read(), UTC)


class TaskRegistry:
    """
    Periodic tasks and services that modules register when they are imported, before there is a scheduler or an app.

    ```python
    registry = TaskRegistry()


    @registry.periodic(every(minutes=10), timeout=60)
    async def clean_up() -> None: ...


    @registry.service(grace=2)
    async def consume() -> None: ...


    scheduler = TaskScheduler(registry=registry)  # or add_tasks(app, registry=registry)
    ```

    One registry may serve any number of schedulers, each of which runs all that is registered when it is made.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[Callable[[Any], object]] = []

    def periodic(self, trigger: Trigger, **options: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """
        Return a decorator that registers a function without required arguments as a periodic task.

        Args:
            trigger: As in `scheduler.periodic()`.

            options: The fields of `TaskConfig`, for each run.

        Raises:
            InvalidConfigError: *trigger* is not a trigger, or an option has a value that it cannot have.
            InvalidTaskError: raised by the decorator, because the function is durable, or none.
        """
        _check_trigger(trigger)
        config = TaskConfig(**options)

        def register(func: Callable[P, T]) -> Callable[P, T]:
            if not callable(func):
                raise InvalidTaskError(
                    f"@registry.periodic(...) stands above a function, not {type(func).__qualname__!r}"
                )
            _check_not_durable(func)
            caller = sys._getframe(1)
            code, instruction = caller.f_code, caller.f_lasti

            def add(scheduler: Any) -> None:
                target = scheduler.periodic(trigger)
                if config != TaskConfig():
                    target = target.task(**options)
                target._schedule(func, (), {}, code, instruction, strict=False)

            self._entries.append(add)
            return func

        return register

    def service(self, **options: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """
        Return a decorator that registers a coroutine function without required arguments as a service.

        Args:
            options: `name`, `restart` and `grace`, as in `scheduler.service()`.

        Raises:
            InvalidConfigError: an option has a value that it cannot have.
            InvalidTaskError: raised by the decorator, because the function is no coroutine function without required
                arguments.
        """
        check_service_options(**options)

        def register(func: Callable[P, T]) -> Callable[P, T]:
            check_service_function(func, ())
            self._entries.append(lambda scheduler: scheduler.service(func, **options))
            return func

        return register

    def include(self, other: TaskRegistry) -> None:
        """Register all that *other* has at this moment."""
        self._entries.extend(other._entries)

    def add_to(self, scheduler: Any) -> None:
        """Add all that is registered to a scheduler; `TaskScheduler(registry=...)` does this."""
        for add in self._entries:
            add(scheduler)
