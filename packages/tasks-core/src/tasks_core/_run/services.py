"""Services: coroutines that run as long as the scheduler does, and are started again when they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import inf
from typing import Any, Protocol
from weakref import ref

import anyio

from tasks_core._clock import Clock, clock_in_force
from tasks_core._current import CURRENT
from tasks_core._loop.loop import Loop
from tasks_core._observer import hooks, notify
from tasks_core._retry import RetryPolicy
from tasks_core._service import Service
from tasks_core._support.call import check_call, function_name
from tasks_core._support.log import logger
from tasks_core._support.rules import Rule, is_seconds, is_text
from tasks_core._task import TaskState
from tasks_core.exceptions import InvalidTaskError

ENDLESS = RetryPolicy(attempts=sys.maxsize)
"""The policy that starts a service again whenever it fails."""

# Seconds that a service has to clean up behind its cancellation at shutdown.
_CLEAN_UP = 5.0

SHUTDOWN = "the scheduler shuts down"
CANCELLED = "service.cancel() was called"


_NAME = Rule(is_text, "a text that is not empty, as in name='consumer'")
_RESTART = Rule(
    lambda value: isinstance(value, (bool, RetryPolicy)),
    "True, False or a RetryPolicy, as in restart=RetryPolicy(attempts=5)",
)
_GRACE = Rule(lambda value: is_seconds(value, zero=True), "a number of seconds, 0 or more, as in grace=2")


def check_service_options(*, name: object = None, restart: object = True, grace: object = 0.0) -> None:
    """Raise if an option of a service has a value that it cannot have."""
    if name is not None:
        _NAME.check("name", name)
    _RESTART.check("restart", restart)
    _GRACE.check("grace", grace)


def check_service_function(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Raise if *func* is no coroutine function that can be called with these arguments."""
    if not check_call(func, args, {}):
        raise InvalidTaskError(
            f"{function_name(func)} is a plain function, which shutdown could not cancel. A service is a coroutine "
            "function; call a blocking function in it: await anyio.to_thread.run_sync(...)"
        )


class ServicesRunner(Protocol):
    """What services need from the runner."""

    clock: Clock
    loop: Loop
    paused: bool

    @property
    def scheduler(self) -> Any: ...


class Services:
    """The services of a scheduler, in the order in which they were added."""

    __slots__ = ("_live", "_runner", "_wake")

    def __init__(self, runner: ServicesRunner) -> None:
        self._runner = runner
        self._live: dict[int, Service] = {}
        self._wake: anyio.Event | None = None

    @property
    def scheduler(self) -> Any:
        return self._runner.scheduler

    @property
    def clock(self) -> Clock:
        """The clock for the next wait of a service."""
        return clock_in_force(self._runner.clock)

    def all(self) -> tuple[Service, ...]:
        """Return those that have not ended."""
        return tuple(self._live.values())

    def add(self, service: Service) -> None:
        """Take in a service, which starts when the scheduler does; from any thread."""
        self._live[service.id] = service
        if not self._runner.paused:
            self._announce(service)
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

    def announce(self) -> None:
        """Tell the observers that all which have waited for the scheduler to start are going to; before `resume()`."""
        for service in self.all():
            self._announce(service)

    def _announce(self, service: Service) -> None:
        if hooks.service_starting:
            notify(hooks.service_starting, service)

    def _start(self, service: Service) -> None:
        if service._native is None and not service._state.finished:
            coroutine = self._run(service)
            try:
                # A copy, because a context can be entered only once at a time.
                service._native = self._runner.loop.spawn(service._context.copy(), service.name, coroutine)
            except Exception as error:  # of the task factory of the event loop, for example
                coroutine.close()
                service.exception = error
                logger.error("%s could not be started", _title(service), exc_info=error)
                self._end(service, TaskState.FAILED)

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
            clock = self.clock
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
