"""Services: coroutines that run as long as the scheduler does, and are started again when they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from math import inf
from typing import Any, Protocol
from weakref import ref

import anyio
import anyio.lowlevel

from tasks_core._clock import Clock, clock_in_force
from tasks_core._current import CURRENT
from tasks_core._loop.loop import Loop
from tasks_core._observer import hooks, notify
from tasks_core._retry import RetryPolicy
from tasks_core._support.log import logger
from tasks_core._task import NativeTask, TaskState

ENDLESS = RetryPolicy(attempts=sys.maxsize)
"""The policy that starts a service again whenever it fails."""

# Seconds that a service has to clean up behind its cancellation at shutdown.
_CLEAN_UP = 5.0

_ids = count(1)

SHUTDOWN = "the scheduler shuts down"
CANCELLED = "service.cancel() was called"


class ServiceOwner(Protocol):
    """What services need from the runner."""

    clock: Clock
    loop: Loop
    paused: bool

    @property
    def scheduler(self) -> Any: ...


class Service:
    """
    What `scheduler.service()` returns: something that runs as long as the application.

    It is no task: it does not count in `statistics()`, and neither shutdown, `idle()` nor a recorder of tests waits for
    it as for a task. `state` has the words of tasks: it is pending until the scheduler starts, running, retrying while
    it waits to be started again, and then succeeded (it returned), failed (it is not started again) or cancelled.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_ended",
        "_failures",
        "_native",
        "_owner",
        "_restart",
        "_state",
        "_stop_asked_at",
        "args",
        "attempts",
        "exception",
        "func",
        "grace",
        "id",
        "name",
        "periodic",
        "reason",
        "where",
    )

    id: int
    """Unique among the services of the process."""
    name: str
    """The option `name`, or the name of the function."""
    func: Callable[..., Coroutine[Any, Any, Any]]
    args: tuple[Any, ...]
    where: str
    """The `file:line` that called `service()`."""
    grace: float
    """Seconds that it has at shutdown before it is cancelled."""
    attempts: int
    """How often it has been started."""
    exception: Exception | BaseException | None
    """What it raised last."""
    periodic: Any
    """The `PeriodicTask` whose timer this is; `None` for a service of the application."""
    reason: str | None
    """Why it was cancelled; set before the cancellation arrives."""

    def __init__(
        self,
        owner: Services,
        func: Callable[..., Coroutine[Any, Any, Any]],
        args: tuple[Any, ...],
        name: str,
        where: str,
        restart: RetryPolicy | None,
        grace: float,
        context: Context,
        *,
        periodic: Any = None,
    ) -> None:
        self.periodic = periodic
        self.id = next(_ids)
        self.func = func
        self.args = args
        self.name = name
        self.where = where
        self.grace = grace
        self.attempts = 0
        self.exception = None
        self.reason = None
        self._owner = owner
        self._restart = restart
        self._context = context
        self._state = TaskState.PENDING
        self._failures = 0
        self._native: NativeTask | None = None
        self._stop_asked_at: float | None = None
        self._ended: anyio.Event | None = None

    @property
    def state(self) -> TaskState:
        """The current state."""
        return self._state

    @property
    def finished(self) -> bool:
        """Whether it has ended and will not be started again by itself."""
        return self._state.finished

    @property
    def scheduler(self) -> Any:
        """The `TaskScheduler` that it belongs to."""
        return self._owner.scheduler

    @property
    def failures(self) -> int:
        """How often it has failed in a row; 0 again after a run that lasted for a good while."""
        return self._failures

    def cancel(self) -> bool:
        """
        Cancel the service; it is not started again. May be called from any thread.

        Returns:
            Whether it had not ended. If so, it is cancelled now, or receives the cancellation that follows.
        """
        return self._owner.cancel(self)

    def start(self) -> None:
        """
        Start the service again that has ended, in whatever way; do nothing if it has not. From any thread.

        Raises:
            SchedulerClosedError: shutdown has begun.
        """
        self._owner.start_again(self)

    async def wait(self) -> None:
        """Return when the service has ended, in whatever way. Call it on the event loop of the scheduler."""
        await anyio.lowlevel.checkpoint()
        while not self._state.finished:
            if self._ended is None:
                self._ended = anyio.Event()
            await self._ended.wait()

    def __repr__(self) -> str:
        return f"<Service {self.name!r} #{self.id} {self._state}>"


class Services:
    """The services of a scheduler, in the order in which they were added."""

    __slots__ = ("_live", "_runner", "_wake")

    def __init__(self, runner: ServiceOwner) -> None:
        self._runner = runner
        self._live: dict[int, Service] = {}
        self._wake: anyio.Event | None = None

    @property
    def scheduler(self) -> Any:
        return self._runner.scheduler

    def all(self) -> tuple[Service, ...]:
        """Return those that have not ended."""
        return tuple(self._live.values())

    def add(self, service: Service) -> None:
        """Take in a service, which starts when the scheduler does; from any thread."""
        self._live[service.id] = service
        if not self._runner.paused:
            self._runner.loop.call(self._start, service)

    def start_again(self, service: Service) -> None:
        if service._state.finished:
            self._runner.scheduler._check_service(service.name)
            service._state, service.reason, service._failures = TaskState.PENDING, None, 0
            service._ended = None
            self.add(service)

    def resume(self) -> None:
        """Start all that have waited for the scheduler to start."""
        for service in self.all():
            self._start(service)

    def _start(self, service: Service) -> None:
        if service._native is None and not service._state.finished:
            # A copy, because a context can be entered only once at a time.
            service._native = self._runner.loop.spawn(service._context.copy(), service.name, self._run(service))

    # ---- a service while it runs ----

    async def _run(self, service: Service) -> None:
        if service._state.finished:
            return  # cancelled before its first step, which trio takes all the same
        CURRENT.set(ref(service))  # it may schedule until it has ended, and `current_scheduler()` finds its scheduler
        if hooks.service_started:
            notify(hooks.service_started, service)
        try:
            state = await self._run_and_restart(service)
        except anyio.get_cancelled_exc_class():
            state = TaskState.CANCELLED
            if service.reason is None:
                service.reason = "it was cancelled from outside of the scheduler"
                logger.warning("%s was cancelled: %s", _title(service), service.reason)
            elif service.reason == CANCELLED:
                logger.info("%s was cancelled: %s", _title(service), service.reason)
        except Exception as error:  # the clock is broken
            service.exception, state = error, TaskState.FAILED
            logger.error("%s failed and is not started again", _title(service), exc_info=error)
        self._end(service, state)

    async def _run_and_restart(self, service: Service) -> TaskState:
        while service.reason is None:
            clock = clock_in_force(self._runner.clock)
            began = clock.now()
            service._state = TaskState.RUNNING
            service.attempts += 1
            try:
                await service.func(*service.args)
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                pause = self._pause_after(service, error, clock.now() - began)
                if isinstance(error, KeyboardInterrupt):
                    self._runner.loop.interrupt(error)
                if pause is None:
                    return TaskState.FAILED
            else:
                what = "it returned, and is not started again" if service.periodic is None else "no more occurrences"
                logger.info("%s has ended: %s", _title(service), what)
                return TaskState.SUCCEEDED
            service._state = TaskState.RETRYING
            await clock.sleep_until(clock.now() + pause)
        return TaskState.CANCELLED  # while it raised something else

    def _pause_after(self, service: Service, error: BaseException, lasted: float) -> float | None:
        """Log the failure; return the seconds until the service is started again, or `None` if it is not."""
        policy = service._restart
        service.exception = error
        if policy is not None and lasted >= policy.max_delay:
            service._failures = 0
        service._failures += 1
        pause = None if policy is None or service.reason is not None else policy.pause(error, service._failures)
        if pause is None:
            logger.error("%s failed and is not started again", _title(service), exc_info=error)
        else:
            logger.error(
                "%s failed, %d times in a row, and is started again in %g s",
                _title(service),
                service._failures,
                pause,
                exc_info=error,
            )
        return pause

    def _end(self, service: Service, state: TaskState) -> None:
        if service._state.finished:
            return  # it was abandoned before
        service._state = state
        service._native = None
        self._live.pop(service.id, None)
        if service._ended is not None:
            service._ended.set()
        if self._wake is not None:
            self._wake.set()
        if hooks.service_ended:
            notify(hooks.service_ended, service)

    # ---- the end ----

    def cancel(self, service: Service) -> bool:
        if service._state.finished:
            return False
        if self._runner.paused:  # there may be no event loop yet, and the service has not started
            self._cancel(service, CANCELLED)
        else:
            self._runner.loop.call(self._cancel, service, CANCELLED)
        return True

    def _cancel(self, service: Service, reason: str) -> None:
        if service._state.finished:
            return
        service.reason = service.reason or reason
        native = service._native
        if native is not None:
            native.cancel()
        if native is None or native.done() or service._state is TaskState.PENDING:
            self._end(service, TaskState.CANCELLED)  # there is no coroutine that would report it

    def stop_due(self, began: float, now: float, last: float) -> float:
        """
        Cancel the services whose time at shutdown is over, and give up those that ignored it.

        Args:
            began: When shutdown began.

            now: The time.

            last: When the time of all of them is over.

        Returns:
            When to call this again.
        """
        again = inf
        for service in self.all():
            due = min(began + service.grace, last)
            if service._stop_asked_at is None and now >= due:
                service._stop_asked_at = now
                self._cancel(service, SHUTDOWN)
            if service._state.finished:
                continue
            if service._stop_asked_at is None:
                again = min(again, due)
            elif now >= service._stop_asked_at + _CLEAN_UP:
                self._abandon(service)
            else:
                again = min(again, service._stop_asked_at + _CLEAN_UP)
        return again

    async def wait_for_end(self, *, all_of_them: bool = False) -> None:
        """Return when the next service has ended, or all have."""
        while self._live:
            self._wake = anyio.Event()
            await self._wake.wait()
            if not all_of_them:
                return

    def close(self) -> None:
        """Forget the services that still run: they ignored their cancellation."""
        for service in self.all():
            service.reason = service.reason or SHUTDOWN
            self._abandon(service)

    def _abandon(self, service: Service) -> None:
        native = service._native
        if native is not None and not native.done():
            logger.warning("%s ignored its cancellation and was abandoned", _title(service))
        self._end(service, TaskState.CANCELLED)


def _title(service: Service) -> str:
    if service.periodic is not None:
        return f"The timer of the periodic task {service.name!r}"
    return f"Service {service.name!r} (started at {service.where})"
