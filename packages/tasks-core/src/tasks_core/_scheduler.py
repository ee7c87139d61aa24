"""The scheduler: how it is entered and left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import Token, copy_context
from dataclasses import replace
from math import inf
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVarTuple, Unpack
from weakref import ref

import anyio
import anyio.lowlevel

from ._clock import MonotonicClock
from ._config import TaskConfig
from ._current import CURRENT, current
from ._options import SchedulerOptions, complete
from ._periodic import PeriodicTarget, PeriodicTask
from ._retry import RetryPolicy
from ._run.extension import Extension
from ._run.following import KeptTask
from ._run.ledger import SchedulerStatistics
from ._run.runner import Runner, Stage
from ._run.services import ENDLESS, check_service_function, check_service_options
from ._run.shutdown import Shutdown, ShutdownReport
from ._run.watch import make_slow_callbacks
from ._schedule import ScheduleTarget, add_transparent_modules, refuse_when
from ._service import Service
from ._support.call import function_name
from ._support.provider import Provider, Provisions
from ._task import NativeTask, Task, current_task
from .exceptions import SchedulerClosedError, SchedulerNotStartedError
from .triggers import Trigger

Args = TypeVarTuple("Args")


class TaskScheduler(ScheduleTarget):
    """
    Runs tasks in the background of an event loop, and accounts for each of them.

    ```python
    async with TaskScheduler(grace_period=10) as scheduler:
        scheduler.schedule(send_email, "ann@example.org")
        await serve()
    ```

    A task that fails affects no other task, nor the scheduler, nor the block. In `anyio.create_task_group()` the tasks
    are one piece of work and fail together; here each task is independent.

    Leaving the block closes the scheduler in five steps:

    1. `schedule()` raises `SchedulerClosedError`, except in tasks that still run, which may schedule follow-ups;
    2. all tasks have `grace_period` seconds to finish. `stopping` is set, so that a loop can end by itself;
    3. tasks without `shield` are cancelled if they run, and discarded if they do not;
    4. shielded tasks have `shield_timeout` more seconds; every 5 seconds a line in the log names the tasks that
       shutdown still waits for;
    5. the tasks that remain are cancelled. A thread cannot be cancelled and is abandoned: neither the scheduler nor the
       process waits for it.

    Each loss is logged with name, phase, age and the line that scheduled it; `report` has all of them. If the block is
    cancelled, the grace period ends at once; the steps after it are taken before the cancellation is raised again.
    A scheduler is entered once, on one event loop.

    On asyncio, a task that is cancelled through the event loop (`for task in asyncio.all_tasks(): task.cancel()`)
    before its first step cannot report it. It stays pending, and keeps its slot, until shutdown finds and logs it,
    because watching for this would cost every task. `task.cancel()` is noticed at once.

    Args:
        options: `SchedulerOptions` has their names, types and defaults.

    Raises:
        InvalidConfigError: an option has a value that it cannot have.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_closing",
        "_grace_period",
        "_inherited",
        "_phase",
        "_runner",
        "_shield_timeout",
        "_shutdown",
        "_take",
        "_token",
        "config",
        "stopping",
    )

    config: TaskConfig
    """What tasks inherit when `.task(...)` does not say otherwise."""
    stopping: anyio.Event
    """Set when shutdown begins; for tasks that loop: `while not scheduler.stopping.is_set(): ...`."""

    def __init__(self, **options: Unpack[SchedulerOptions]) -> None:
        given = complete(SchedulerOptions, options, "TaskScheduler")
        self.config = self._inherited = given["config"] or TaskConfig()
        self._grace_period: float = given["grace_period"]
        self._shield_timeout = _or_inf(given["shield_timeout"])
        self.stopping = anyio.Event()
        self._shutdown: Shutdown | None = None
        self._closed = anyio.Event()
        self._closing: NativeTask | None = None
        self._token: Token[Any] | None = None
        self._runner = runner = Runner(
            ref(self),
            MonotonicClock() if given["clock"] is None else given["clock"],
            _or_inf(given["max_concurrency"]),
            _or_inf(given["max_pending"]),
            given["max_threads"],
            None if given["provider"] is None else Provisions(given["provider"]),
            given["follow_for"],
        )
        self._take = runner.ready
        self._phase = None
        made = [make(given) for make in extensions]
        runner.extensions = tuple(extension for extension in made if extension is not None)
        add_transparent_modules(given["transparent_modules"])
        if given["registry"] is not None:
            given["registry"].add_to(self)

    @staticmethod
    def check_options(**options: Unpack[SchedulerOptions]) -> None:
        """Raise what `TaskScheduler(**options)` would raise, without making one."""
        complete(SchedulerOptions, options, "TaskScheduler")

    async def start(self, *, paused: bool = False) -> None:
        """
        Do what entering `async with` does; *paused*: accept tasks, but start none before `resume()`.

        The caller must call `aclose()` later.

        Raises:
            RuntimeError: the scheduler was started before.
        """
        if self._runner.stage is not Stage.NEW:
            raise RuntimeError("A TaskScheduler is started once; make a new one: TaskScheduler(...)")
        await self._runner.open()
        self._token = CURRENT.set(ref(self))
        if not paused:
            self.resume()

    def resume(self) -> None:
        """
        Begin to start tasks, after `start(paused=True)`; from any thread.

        Raises:
            RuntimeError: the scheduler has not been started.
        """
        if self._runner.stage <= Stage.STARTING:
            raise RuntimeError("resume() goes with a scheduler that was started: await scheduler.start(paused=True)")
        if self._runner.paused:
            self._runner.services.announce()
        self._runner.paused = False  # at once, so that the caller may wait for its tasks
        self._runner.loop.call(self._runner.resume)

    async def aclose(self) -> ShutdownReport:
        """
        Close the scheduler, as leaving `async with` does, and return what became of its tasks.

        Calling it again, or in several places at once, waits for the same end and returns the same report.

        Cancellation: ends the grace period. The call returns when shutdown is done all the same, by raising the
        cancellation.

        Raises:
            RuntimeError: called by a task of the scheduler, which would wait for itself, or on another event loop.
        """
        self._check_waiter("aclose()")
        shutdown = self._begin_shutdown()
        try:
            await self._closed.wait()
        except anyio.get_cancelled_exc_class():
            await self._close_in_a_hurry(shutdown)
            raise
        finally:
            self._reset_current()
        assert shutdown.report is not None
        return shutdown.report

    def _check_waiter(self, method: str) -> None:
        caller = current_task()
        if caller is not None and caller._owner is self._runner and not caller.state.finished:
            raise RuntimeError(
                f"{method} was called by a task of the scheduler, which would wait for its own end. "
                "Set an event instead, and let the code that entered the scheduler wait for that"
            )
        if self._runner.stage is not Stage.NEW and not self._runner.here():
            raise _of_another_loop(method)

    async def _close_in_a_hurry(self, shutdown: Shutdown) -> None:
        shutdown.hurry()
        while not self._closed.is_set():
            if self._closing is not None and self._closing.done():
                # The whole event loop is being cancelled, and shutdown with it before its first step.
                self._closing = self._spawn(shutdown)
            try:
                with anyio.CancelScope(shield=True):
                    await self._closed.wait()
            except anyio.get_cancelled_exc_class():
                pass  # asyncio: Task.cancel() once more. There is nothing left to give up that shutdown does not bound.

    def _begin_shutdown(self) -> Shutdown:
        if self._shutdown is None:
            self._shutdown = Shutdown(self._runner, self._grace_period, self._shield_timeout)
            self.stopping.set()
            if self._runner.stage is Stage.NEW:
                self._shutdown.finish()
                self._closed.set()
            else:
                self._closing = self._spawn(self._shutdown)
        return self._shutdown

    def _spawn(self, shutdown: Shutdown) -> NativeTask:
        return self._runner.loop.spawn(None, "tasks shutdown", self._shut_down(shutdown))

    async def _shut_down(self, shutdown: Shutdown) -> None:
        try:
            await shutdown.run()
        finally:
            self._closed.set()

    def _reset_current(self) -> None:
        if self._token is not None:
            token, self._token = self._token, None
            with suppress(ValueError):  # another context than that of start(), as in a fixture of pytest-asyncio
                CURRENT.reset(token)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None and issubclass(exc_type, anyio.get_cancelled_exc_class()):
            await self._close_in_a_hurry(self._begin_shutdown())
            self._reset_current()
        else:
            await self.aclose()

    @property
    def closed(self) -> bool:
        """Whether shutdown is over."""
        return self._runner.stage is Stage.CLOSED

    @property
    def report(self) -> ShutdownReport | None:
        """What became of the tasks; `None` until shutdown is over."""
        return None if self._shutdown is None else self._shutdown.report

    def owns(self, task: Task[Any]) -> bool:
        """Whether *task* was scheduled here, directly or into a phase; for observers, who hear of all schedulers."""
        return task._owner is self._runner

    @property
    def provider(self) -> Provider | None:
        """What supplies arguments that the caller of `schedule()` does not pass."""
        provisions = self._runner.provisions
        return None if provisions is None else provisions.provider

    def on_event_loop(self) -> bool:
        """Return whether the caller runs on the event loop on which the scheduler was started."""
        return self._runner.here()

    @property
    def tasks(self) -> tuple[Task[Any], ...]:
        """The tasks that have not ended, in the order of scheduling, at this moment; from any thread."""
        return tuple(task for task in self._runner.ledger.live() if not task._state.finished)

    @property
    def services(self) -> tuple[Service, ...]:
        """The services that have not ended, in the order in which they were added; from any thread."""
        return tuple(service for service in self._runner.services.all() if service.periodic is None)

    @property
    def periodic_tasks(self) -> Mapping[str, PeriodicTask[Any]]:
        """
        The periodic tasks that have further occurrences, by their names; from any thread.

        `scheduler.periodic_tasks["clean_up"].cancel()` cancels one by its name.
        """
        timers = [service for service in self._runner.services.all() if service.periodic is not None]
        return {service.name: service.periodic for service in timers}

    def periodic(self, trigger: Trigger) -> PeriodicTarget:
        """
        Schedule functions again and again: `scheduler.periodic(every(minutes=10)).schedule(clean_up)`.

        `.task(...)` sets options for each run: `scheduler.periodic(every(hours=1)).task(timeout=60).schedule(report)`.
        Each process runs its own; in several processes the function runs several times.

        Args:
            trigger: What `every()` or `cron()` returns, or a `tasks_core.triggers.Trigger` of your own.

        Raises:
            InvalidConfigError: *trigger* is not a trigger.
        """
        return PeriodicTarget(self, trigger)

    def service(
        self,
        func: Callable[[*Args], Coroutine[Any, Any, Any]],
        /,
        *args: *Args,
        name: str | None = None,
        restart: RetryPolicy | bool = True,
        grace: float = 0.0,
    ) -> Service:
        """
        Run `func(*args)` as long as the application: a consumer, a poller, a listener.

        It is started when the scheduler starts tasks; if that was before, at the next turn of the event loop. When it
        raises, it is started again after a pause, and the log has an ERROR with the whole traceback each time. When it
        returns, it has ended, and the log has a line. It may schedule tasks until it has ended, and has the context
        variables of the moment of the call.

        At shutdown, services are cancelled first, so that those that feed the scheduler stop. That is neither a loss
        nor a WARNING. A service that asks for time (*grace*) can finish its work: `stopping` is set, and it may still
        schedule tasks. May be called from any thread, and before the scheduler is entered.

        Args:
            func: A coroutine function. A plain function cannot be cancelled: let a coroutine function call it in a
                thread.

            args: Its arguments, by position.

            name: Its name in logs. Default: the name of the function.

            restart: When it is started again after an exception. Default (`True`): always, after 1 second, then 2, 4
                and so on up to 60, and after 1 second again when it has run for 60. A `RetryPolicy` sets these numbers;
                its `attempts` are those in a row that may fail, and a run of `max_delay` seconds or more counts as
                success. `False`: never.

            grace: Seconds at shutdown until it is cancelled, at most the grace period.

        Raises:
            InvalidTaskError: *func* is not a coroutine function that can be called with these arguments.
            InvalidConfigError: an option has a value that it cannot have.
            SchedulerClosedError: shutdown has begun.
        """
        check_service_options(name=name, restart=restart, grace=grace)
        check_service_function(func, args)
        caller = sys._getframe(1)
        policy = ENDLESS if restart is True else restart or None
        service = Service(
            self._runner.services,
            func,
            args,
            name or function_name(func),
            f"{caller.f_code.co_filename}:{caller.f_lineno}",
            policy,
            grace,
            copy_context(),
        )
        self._check_service(service.name)
        self._runner.services.add(service)
        return service

    def _check_service(self, name: str) -> None:
        if self._shutdown is not None:
            raise SchedulerClosedError(f"The service {name!r} was not started, because shutdown has begun")

    def find(self, task_id: int) -> Task[Any] | None:
        """Return the task with this `id` if it has not ended, otherwise `None`; from any thread."""
        task = self._runner.ledger.get(task_id)
        return None if task is None or task._state.finished else task

    def keep(self, task: Task[Any], *, owner: str | None = None) -> str:
        """
        Keep a task for followers that do not have its handle, and return the id that `find_kept()` finds it by.

        It is kept, with its events, its result and its arguments, until `follow_for` seconds after its end, and not
        beyond the end of the scheduler. Each call returns another id, which cannot be guessed. From any thread.

        Args:
            task: A task of this scheduler.

            owner: Whose it is, for the code that decides who may follow it.

        Raises:
            ValueError: the task belongs to another scheduler.
        """
        if task._owner is not self._runner:
            raise ValueError(f"keep(): {task!r} belongs to another scheduler. Write: task.scheduler.keep(task)")
        return self._runner.following.keep(task, owner)

    def find_kept(self, kept_id: str) -> KeptTask | None:
        """Return the task that `keep()` keeps under an id; `None` if there is none any more; from any thread."""
        return self._runner.following.find(kept_id)

    def made_id(self, kept_id: str) -> bool:
        """Return whether an id looks like one of this scheduler, and not like one of another process or of a guess."""
        return self._runner.following.made(kept_id)

    async def idle(self) -> None:
        """
        Return when no task is left that has not ended, the handlers of their ends (`on_end`) included.

        Tasks that are scheduled meanwhile count too. A task that waits for its delay or its phase has not ended.

        Raises:
            RuntimeError: called by a task of the scheduler, which would wait for itself, or on another event loop.
        """
        self._check_waiter("idle()")
        await anyio.lowlevel.checkpoint()
        await self._runner.ledger.wait_at_most(0)

    async def wait_for_capacity(self) -> None:
        """
        Return when `max_pending` allows one more task; at once (but after a checkpoint) if there is no such limit.

        The place is free until the caller awaits something, so that `schedule()` in the next line is accepted, unless
        another thread takes the place or shutdown begins.

        ```python
        async for message in queue:
            await scheduler.wait_for_capacity()
            scheduler.schedule(handle, message)
        ```

        Raises:
            RuntimeError: called on another event loop than that of the scheduler.
        """
        if self._runner.stage is not Stage.NEW and not self._runner.here():
            raise _of_another_loop("wait_for_capacity()")
        await anyio.lowlevel.checkpoint()
        await self._runner.ledger.wait_until(self._runner.ledger.has_capacity)

    def statistics(self) -> SchedulerStatistics:
        """Return what the scheduler has and has had; from any thread. Walks over the tasks that are not finished."""
        return replace(
            self._runner.ledger.statistics(),
            services=len(self.services),
            periodic={name: task.statistics() for name, task in self.periodic_tasks.items()},
        )

    def _refuse(self, config: TaskConfig) -> None:
        refuse_when(config)

    def __repr__(self) -> str:
        return f"<TaskScheduler {self._runner.stage.name.lower()}, {len(self._runner.ledger)} tasks>"


def current_scheduler() -> TaskScheduler:
    """
    Return the scheduler of the task or the request that the caller is part of.

    Elsewhere, it is that of the innermost `async with scheduler` around the caller. Works in coroutines, in functions
    that run in a worker thread, and in what they call.

    Raises:
        SchedulerNotStartedError: the caller is part of none of them, or that scheduler is closed.
    """
    caller = current()
    scheduler = caller if isinstance(caller, TaskScheduler) else getattr(caller, "scheduler", None)
    if not isinstance(scheduler, TaskScheduler) or scheduler.closed:
        raise SchedulerNotStartedError(
            "current_scheduler() was called outside of a task, of a request and of `async with scheduler`. "
            "Enter one first: async with TaskScheduler() as scheduler: ..."
        )
    return scheduler


def _of_another_loop(method: str) -> RuntimeError:
    return RuntimeError(
        f"{method} was called on another event loop than that of the scheduler. Await it on the event loop that has "
        f"entered the scheduler; a worker thread of that one writes: anyio.from_thread.run(scheduler.{method[:-2]})"
    )


def mark_as_brief(scheduler: TaskScheduler) -> None:
    """
    Note that *scheduler* lives as long as one request, message or job, of which there are many.

    The line that nothing was to be waited for at its end is then logged at `DEBUG` in place of `INFO`.
    """
    scheduler._runner.brief = True


def _or_inf(limit: float | None) -> float:
    return inf if limit is None else limit


MakeExtension: TypeAlias = Callable[[Mapping[str, Any]], Extension | None]
"""Takes all options of a new scheduler; returns `None` if they ask for nothing."""

extensions: list[MakeExtension] = [make_slow_callbacks]
"""What is asked for each new scheduler. A room that stands above the scheduler appends to it when it is imported."""
