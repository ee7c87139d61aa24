"""`add_tasks()`, and how code finds the scheduler of an application and the tasks of a request."""

from __future__ import annotations

from typing import Unpack

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp
from tasks_core import SchedulerOptions, Task, TaskQueueFullError, TaskScheduler
from tasks_core.exceptions import InvalidConfigError, SchedulerNotStartedError
from tasks_core.frameworks import CURRENT, current

from ._asgi import TasksMiddleware
from ._handlers import noting_exceptions
from ._request import SCOPE_KEY, ApplicationOrigin, RequestOrigin, RequestTasks
from ._schedulers import AppSchedulers, install, schedulers_of, schedulers_on_event_loop
from ._telemetry import Telemetry, TelemetryConfig
from ._unavailable import queue_full_handler
from .exceptions import SeveralLifespansError, TasksInstallationError, TasksNotInstalledError


def add_tasks(
    app: Starlette,
    *,
    worker_concurrency: int | None = None,
    retry_after: float = 1.0,
    telemetry: TelemetryConfig | None = None,
    **options: Unpack[SchedulerOptions],
) -> None:
    """
    Add background tasks to an application. Call it once, anywhere before the application starts.

    ```python
    app = FastAPI(lifespan=lifespan)
    add_tasks(app, config=TaskConfig(on_error=report), grace_period=10)
    ```

    It wraps the whole middleware stack in one more middleware, which stays outermost. That starts a
    `tasks_core.TaskScheduler` when the startup of the application is complete, and drains it before the application
    receives the shutdown message: the resources of all its lifespans are open while tasks run. Tasks that are scheduled
    during startup start when startup is complete.

    Where no lifespan runs (`httpx.ASGITransport`, `TestClient(app)` without `with`, `lifespan="off"`), each request
    waits for its own tasks instead.

    Args:
        app: A FastAPI or Starlette application. An application that is mounted in another one uses the tasks of the
            outer one. Adding tasks to it as well is harmless, and makes it answer with 503 when the queue is full.

        worker_concurrency: How many durable tasks this process runs at once, besides serving requests. Default: none,
            because a worker process runs them: `python -m tasks_core worker app.main:engine`.

        retry_after: Seconds in the header `Retry-After` of the 503 response to a request that schedules a task while
            `max_pending` tasks are waiting. A handler of the application for `TaskQueueFullError` replaces that
            response.

        telemetry: Settings for OpenTelemetry. If it has a provider when startup is complete, each attempt of a task is
            a span in the trace of the request that scheduled it, and metrics of tasks are recorded. These settings
            choose other providers than the global ones, or turn telemetry off.

        options: Those of the scheduler; `tasks_core.SchedulerOptions` has their names, types and defaults.
            `grace_period` and `shield_timeout` together must fit into the time that the server and the orchestrator
            give. With `engine_fallback="error"`, the default, a request is answered with 503 when the engine does not
            acknowledge one of its durable tasks.

    Raises:
        InvalidConfigError: an option has an invalid value.
        TasksInstallationError: *app* is no application, has tasks already, or has started.
    """
    if not isinstance(app, Starlette):
        raise TasksInstallationError(
            f"add_tasks() was given {type(app).__qualname__!r}. It takes a FastAPI or Starlette application, which has "
            "the lifespan: app = FastAPI(); app.include_router(router); add_tasks(app)"
        )
    if worker_concurrency is not None and options.get("engine") is None:
        raise InvalidConfigError(
            "worker_concurrency= needs an engine that stores the tasks to run: add_tasks(app, engine=...)"
        )
    if schedulers_of(app) is not None:
        raise TasksInstallationError(
            "add_tasks(app) was called a second time on this application. Keep one call, with all options"
        )
    if app.middleware_stack is not None:
        raise TasksInstallationError(
            "add_tasks(app) was called after the application had started. Call it where the application is created: "
            "app = FastAPI(...); add_tasks(app)"
        )
    schedulers = AppSchedulers(options, Telemetry(telemetry), worker_concurrency)
    handler = queue_full_handler(retry_after)
    if TaskQueueFullError not in app.exception_handlers:
        app.add_exception_handler(TaskQueueFullError, handler)
    build = app.build_middleware_stack

    def build_with_tasks() -> ASGIApp:
        with noting_exceptions(app):
            middleware = TasksMiddleware(build(), schedulers)
        if app.build_middleware_stack is build_with_tasks:
            return middleware
        # Another library wraps the stack as well. opentelemetry-instrumentation-fastapi then requires the outermost
        # middleware of Starlette; without this one, it logs an error and creates no spans.
        return ServerErrorMiddleware(middleware)

    app.build_middleware_stack = build_with_tasks  # type: ignore[method-assign]  # the application calls it once
    install(app, schedulers)


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
    request = _request_of(caller)
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
