"""`add_tasks()`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp
from tasks_core import SchedulerOptions, TaskQueueFullError
from tasks_core.exceptions import InvalidConfigError
from tasks_core.frameworks import Telemetry
from tasks_core.types import TelemetryConfig

from ._asgi import TasksMiddleware
from ._handlers import noting_exceptions
from ._provider import Dependencies
from ._schedulers import AppSchedulers, install, schedulers_of
from ._unavailable import queue_full_handler
from .exceptions import TasksInstallationError


def add_tasks(
    app: Starlette,
    *,
    worker_concurrency: int | Mapping[str, int] | None = None,
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

        worker_concurrency: How many durable tasks this process runs at once, besides serving requests; or how many of
            each queue: `{"payments": 4, "default": 8}`. Default: none, because a worker process runs them:
            `python -m tasks_fastapi worker app.main:app`.

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
    without_engine = options.get("engine") is None and options.get("without_engine") != "memory"
    if worker_concurrency is not None and without_engine:
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
    options.setdefault("provider", Dependencies(app))
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
