"""What the caller is part of: a task, an origin such as a request, or the block of a scheduler."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, ClassVar, Protocol
from weakref import ref


class Origin(Protocol):
    """
    A unit of work that is not a task and schedules tasks, such as a request; a framework makes it the current one.

    ```python
    token = CURRENT.set(ref(origin))
    try:
        await serve(request)
    finally:
        CURRENT.reset(token)
    ```

    `current_scheduler()` then finds its scheduler, and while it has not finished, it may schedule tasks although the
    shutdown of that scheduler has begun, as a task may that still runs.
    """

    @property
    def scheduler(self) -> Any:
        """The `TaskScheduler` of the tasks, or `None`."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the work has ended."""
        ...


class AfterShutdown:
    """
    The origin of code that runs when its scheduler has closed: the exit of the resources around it.

    What it schedules is discarded with *reason*, in a WARNING. An exception in its place would end the exit, and leave
    resources open.
    """

    __slots__ = ("__weakref__", "reason", "scheduler")

    scheduler: Any
    """The `TaskScheduler`, which is closed."""
    reason: str
    finished: ClassVar[bool] = False

    def __init__(self, scheduler: Any, reason: str) -> None:
        self.scheduler = scheduler
        self.reason = reason


# One variable for all of them, so that the innermost counts: a request inside a task, a task inside a request.
# Weak, because copies of a context stay alive in timers of the event loop, cancelled or not, until they are due.
CURRENT: ContextVar[ref[Any] | None] = ContextVar("tasks_core_current", default=None)
"""A weak reference to the `Task`, the `Origin` or the `TaskScheduler` that the caller is part of."""


def current() -> Any:
    """Return the `Task`, `Origin` or `TaskScheduler` that the caller is part of, or `None`."""
    reference = CURRENT.get()
    return None if reference is None else reference()
