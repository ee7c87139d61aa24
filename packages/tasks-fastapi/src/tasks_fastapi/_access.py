"""How code finds the scheduler of an application and the tasks of a request."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from tasks_core import Task, TaskScheduler
from tasks_core.exceptions import SchedulerNotStartedError
from tasks_core.frameworks import CURRENT, AfterShutdown, current

from ._request import SCOPE_KEY, ApplicationOrigin, RequestOrigin, RequestTasks
from ._schedulers import schedulers_of, schedulers_on_event_loop
from .exceptions import SeveralLifespansError, TasksNotInstalledError


def get_scheduler(app: Starlette) -> TaskScheduler:
    """
    Return the scheduler of an application, for code outside a request: lifespans, consumers, other threads.

    With several lifespans at the same time, as in nested test clients or with two servers in one process, it is that of
    the request, the task or the lifespan that the caller is part of, or the only one on the running event loop. A
    mounted application has the scheduler of the outer one while that serves a request.

    Raises:
        TasksNotInstalledError: `add_tasks(app)` was not called for this application.
        SchedulerNotStartedError: no lifespan of the application runs.
        SeveralLifespansError: several lifespans run, and the caller is part of none of them.
    """
    schedulers = schedulers_of(app)
    caller = _scheduler_of(current())
    if schedulers is not None:
        if schedulers.created(caller):
            return caller  # type: ignore[return-value]  # that one is not None
        for candidates in (schedulers.lifespans, schedulers.on_event_loop()):
            if len(candidates) == 1:
                return candidates[0]
    if caller is not None and (schedulers is None or not schedulers.lifespans) and _request_of(current()) is not None:
        return caller
    if schedulers is None:
        raise _not_installed()
    if schedulers.lifespans:
        raise SeveralLifespansError(
            f"{len(schedulers.lifespans)} lifespans of the application run at the same time, each with a scheduler of "
            "its own, and get_scheduler(app) was called outside of all of them. Call it in a lifespan, a request or a "
            "task, and pass the scheduler on"
        )
    raise SchedulerNotStartedError(
        "get_scheduler(app) needs a running application, because the scheduler exists from the start of the "
        "lifespan to its end. In a test write: with TestClient(app): ..."
    )


def current_tasks() -> RequestTasks:
    """
    Return the tasks of the request that the caller is part of, for code that has no parameter `tasks: Tasks`.

    ```python
    class Orders:
        async def create(self, order: Order) -> None:
            current_tasks().after_response.schedule(send_receipt, order.id)
    ```

    Works in endpoints, dependencies, middlewares, worker threads and tasks, and in what they call. A task has the tasks
    of the request that scheduled it. In code that belongs to the application and to no request, such as a lifespan, a
    consumer or a durable task, all phases are open, so that tasks start at once: a service need not know who calls it.

    Raises:
        TasksNotInstalledError: the caller is part of no request, no task and no lifespan of an application with tasks.
    """
    caller = current()
    request = caller if isinstance(caller, RequestOrigin) else _request_of(caller)
    if request is not None:
        return request.tasks
    scheduler = _scheduler_of(caller)
    if scheduler is None and CURRENT.get() is not None:
        # A coroutine that a request has started, and that is still running after the end of the request.
        running = schedulers_on_event_loop()
        scheduler = running[0] if len(running) == 1 else None
    if scheduler is None:
        raise TasksNotInstalledError(
            "current_tasks() was called outside of a request, of a task and of a lifespan of an application with "
            "tasks. Add tasks where the application is created: add_tasks(app). Elsewhere, write: "
            "get_scheduler(app).schedule(...)"
        )
    return ApplicationOrigin(scheduler).tasks


def _request_of(caller: object) -> RequestOrigin | None:
    """Return the request that *caller* is, or that has scheduled it if it is a task."""
    if isinstance(caller, Task):
        caller = None if caller.phase is None else caller.phase.origin
    return caller if isinstance(caller, RequestOrigin) else None


def _scheduler_of(caller: object) -> TaskScheduler | None:
    if isinstance(caller, AfterShutdown):
        return caller.scheduler  # type: ignore[no-any-return]  # the middleware has put it there
    scheduler = caller if isinstance(caller, TaskScheduler) else getattr(caller, "scheduler", None)
    return None if scheduler is None or scheduler.closed else scheduler


def get_tasks(connection: HTTPConnection) -> RequestTasks:
    """
    Return the tasks of a request or a WebSocket, for code without dependency injection: `get_tasks(request)`.

    Raises:
        TasksNotInstalledError: `add_tasks(app)` was not called for the application that serves the request.
    """
    request: RequestOrigin | None = connection.scope.get(SCOPE_KEY)
    if request is None:
        raise _not_installed()
    return request.tasks


def _not_installed() -> TasksNotInstalledError:
    return TasksNotInstalledError(
        "This application has no tasks. Add them where it is created: "
        "from tasks_fastapi import add_tasks; app = FastAPI(...); add_tasks(app)"
    )
