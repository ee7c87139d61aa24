"""One service: what runs as long as the application, its state, and how it is cancelled and started again."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from ._task import NativeTask, TaskState

if TYPE_CHECKING:
    from ._clock import Clock
    from ._retry import RetryPolicy

_ids = count(1)


class ServiceOwner(Protocol):
    """What a service needs from the machinery that runs it."""

    @property
    def scheduler(self) -> Any: ...
    @property
    def clock(self) -> Clock: ...
    def cancel(self, service: Service) -> bool: ...
    def start_again(self, service: Service) -> None: ...


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
        owner: ServiceOwner,
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


def service_clock(service: Service) -> Clock:
    """Return the clock for the next wait of a service: that of its scheduler, or the one that overrides it."""
    return service._owner.clock
