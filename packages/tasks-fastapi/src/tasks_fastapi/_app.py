"""Putting tasks into an application, and getting at them from there."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp
from tasks_core import (
    Clock,
    Engine,
    EngineFallback,
    InvalidConfigError,
    SchedulerNotStartedError,
    TaskConfig,
    TaskQueueFullError,
    TaskScheduler,
)

from ._asgi import Installation, TasksMiddleware
from ._overload import answer_with_503
from ._request import SCOPE_KEY, RequestOrigin, RequestTasks
from ._telemetry import Telemetry, TelemetryConfig
from .exceptions import TasksInstallationError, TasksNotInstalledError

_STATE_KEY = "tasks_fastapi"


def add_tasks(
    app: Starlette,
    *,
    config: TaskConfig | None = None,
    grace_period: float = 5.0,
    shield_timeout: float | None = None,
    max_concurrency: int | None = None,
    max_pending: int | None = None,
    max_threads: int = 40,
    clock: Clock | None = None,
    engine: Engine | None = None,
    engine_fallback: EngineFallback = "error",
    worker_concurrency: int | None = None,
    retry_after: float = 1.0,
    telemetry: TelemetryConfig | None = None,
) -> None:
    """
    Give an application background tasks. Call it once, anywhere before the application starts.

    ```python
    app = FastAPI(lifespan=lifespan)
    add_tasks(app, config=TaskConfig(on_error=report), grace_period=10)
    ```

    It puts one layer around the whole middleware stack, whatever is added to that later. The layer starts a
    `tasks_core.TaskScheduler` when the application has started up, and drains it before the application hears of
    shutdown: the resources of all its lifespans are open while tasks run. What is scheduled during startup starts when
    that is complete.

    Where no lifespan runs (`httpx.ASGITransport`, `TestClient(app)` without `with`, `lifespan="off"`), each request
    waits for its own tasks instead.

    Args:
        app: A FastAPI or Starlette application. One that is mounted in another uses the tasks of the outer one; adding
            tasks to it as well is harmless, and lets it answer with 503, too.

        config: What tasks inherit when `.task(...)` does not say otherwise.

        grace_period: Seconds at shutdown for all tasks to finish. With `shield_timeout`, it must fit into the time that
            the server and the orchestrator give.

        shield_timeout: Seconds for shielded tasks after that (`None`: as long as they need).

        max_concurrency: How many tasks run at once; the others wait, in the order of scheduling (`None`: no limit).

        max_pending: How many tasks may wait to start; then `schedule()` raises `TaskQueueFullError` (`None`: no limit).

        max_threads: How many plain functions run at once, each in a thread.

        clock: Where all waits come from.

        engine: What keeps durable tasks. It is entered and left with the scheduler.

        engine_fallback: What becomes of a durable task when the engine does not acknowledge it within 5 seconds:
            `"error"`, the response is 503; `"memory"`, it runs in this process like any other task.

        worker_concurrency: How many durable tasks this process runs at once by itself, next to serving requests.
            Default: none; a worker process does: `python -m tasks_core worker app.main:engine`.

        retry_after: When `max_pending` tasks are waiting, a request that schedules another is answered with 503, and
            this many seconds in `Retry-After`; unless the application has a handler of its own for
            `TaskQueueFullError`.

        telemetry: Where OpenTelemetry has a provider when the application has started up, each attempt of a task is a
            span in the trace of the request that scheduled it, and tasks are counted and measured. These settings
            choose other providers than the global ones, or turn it off.

    Raises:
        InvalidConfigError: an option has a value that it cannot have.
        TasksInstallationError: the application has tasks already, or has started.
    """
    if worker_concurrency is not None and engine is None:
        raise InvalidConfigError(
            "worker_concurrency= needs an engine whose tasks it could run: add_tasks(app, engine=...)"
        )
    if hasattr(app.state, _STATE_KEY):
        raise TasksInstallationError(
            "add_tasks(app) was called a second time on this application. Keep one call, with all options"
        )
    if app.middleware_stack is not None:
        raise TasksInstallationError(
            "add_tasks(app) was called after the application had started. Call it where the application is made: "
            "app = FastAPI(...); add_tasks(app)"
        )
    installation = Installation(
        {
            "config": config,
            "grace_period": grace_period,
            "shield_timeout": shield_timeout,
            "max_concurrency": max_concurrency,
            "max_pending": max_pending,
            "max_threads": max_threads,
            "clock": clock,
            "engine": engine,
            "engine_fallback": engine_fallback,
        },
        Telemetry(telemetry),
        worker_concurrency,
    )
    handler = answer_with_503(retry_after)
    if TaskQueueFullError not in app.exception_handlers:
        app.add_exception_handler(TaskQueueFullError, handler)
    build = app.build_middleware_stack

    def build_with_tasks() -> ASGIApp:
        layer = TasksMiddleware(build(), installation)
        if app.build_middleware_stack is build_with_tasks:
            return layer
        # Somebody wraps the stack in turn. opentelemetry-instrumentation-fastapi then looks for Starlette's outermost
        # middleware, and does nothing, with an error in the log, unless it finds that.
        return ServerErrorMiddleware(layer)

    app.build_middleware_stack = build_with_tasks  # type: ignore[method-assign]  # what the application calls once
    setattr(app.state, _STATE_KEY, installation)


def get_scheduler(app: Starlette) -> TaskScheduler:
    """
    Return the scheduler of an application, for code outside of a request: lifespans, consumers, other threads.

    Raises:
        TasksNotInstalledError: `add_tasks(app)` was not called on this very application.
        SchedulerNotStartedError: the application does not run (no lifespan is between its beginning and its end).
    """
    installation: Installation | None = getattr(app.state, _STATE_KEY, None)
    if installation is None:
        raise _not_installed()
    if installation.scheduler is None:
        raise SchedulerNotStartedError(
            "get_scheduler(app) needs a running application: the scheduler lives from the beginning of the lifespan to "
            "its end. In a test write: with TestClient(app): ..."
        )
    return installation.scheduler


def get_tasks(connection: HTTPConnection) -> RequestTasks:
    """
    Return the tasks of a request or a WebSocket, where there is no dependency injection: `get_tasks(request)`.

    Raises:
        TasksNotInstalledError: `add_tasks(app)` was not called on the application that serves the request.
    """
    request: RequestOrigin | None = connection.scope.get(SCOPE_KEY)
    if request is None:
        raise _not_installed()
    return request.tasks


def _not_installed() -> TasksNotInstalledError:
    return TasksNotInstalledError(
        "This application has no tasks. Add them where it is made: "
        "from tasks_fastapi import add_tasks; app = FastAPI(...); add_tasks(app)"
    )
