"""The outermost ASGI middleware: it runs the scheduler in the lifespan, and opens the phases of each request."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from contextlib import AsyncExitStack, ExitStack
from math import inf

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tasks_core import SchedulerOptions, ShutdownOptions, TaskScheduler, Worker
from tasks_core.engines import engine_of

from ._request import SCOPE_KEY, RequestOrigin, WebSocketOrigin
from ._telemetry import Telemetry

logger = logging.getLogger("tasks_fastapi")


class AppSchedulers:
    """
    Creates the schedulers of one application, and holds the one of the lifespan that runs.

    `add_tasks()` stores it in `app.state`. In tests, an application has one lifespan after another.
    """

    __slots__ = ("_options", "_worker_concurrency", "logged_bound_requests", "scheduler", "serving", "telemetry")

    def __init__(self, options: SchedulerOptions, telemetry: Telemetry, worker_concurrency: int | None) -> None:
        TaskScheduler.check_options(**options)
        if worker_concurrency is not None:
            Worker.check_options(concurrency=worker_concurrency)
        self._options = options
        self._worker_concurrency = worker_concurrency
        self.telemetry = telemetry
        self.scheduler: TaskScheduler | None = None
        self.serving: TaskScheduler | None = None  # the same; `None` while it drains
        self.logged_bound_requests = False

    def new_scheduler(self, grace_period: float | None = None) -> TaskScheduler:
        """Create a scheduler with the options of `add_tasks()`; *grace_period* replaces theirs."""
        options = self._options.copy()
        if grace_period is not None:
            options["grace_period"] = grace_period
        return TaskScheduler(**options)

    def stop_serving(self) -> None:
        """Bind the requests that arrive from now on to their own tasks."""
        self.serving = None

    def start_worker(self, scheduler: TaskScheduler) -> None:
        """Run durable tasks in this process as well, if `worker_concurrency` asks for it."""
        engine = self._options.get("engine")
        if self._worker_concurrency is not None and engine is not None and engine_of(scheduler) is engine:
            bounds: ShutdownOptions = {}
            if "grace_period" in self._options:
                bounds["grace_period"] = self._options["grace_period"]
            if "shield_timeout" in self._options:
                bounds["shield_timeout"] = self._options["shield_timeout"]
            worker = Worker(engine, concurrency=self._worker_concurrency, **bounds)
            scheduler.task(name="durable worker", shield=True).schedule(worker.run, scheduler.stopping)


_KINDS: dict[str, type[RequestOrigin]] = {"http": RequestOrigin, "websocket": WebSocketOrigin}


class TasksMiddleware:
    """
    Wraps the whole middleware stack of an application.

    It must be the outermost one: only there is the last byte sent to the server and not to another middleware, and only
    there are all dependencies, background tasks and middlewares finished when the call returns.
    """

    __slots__ = ("_schedulers", "app")

    app: ASGIApp
    """The wrapped application. FastAPI follows attributes of this name to find the middlewares."""

    def __init__(self, app: ASGIApp, schedulers: AppSchedulers) -> None:
        self.app = app
        self._schedulers = schedulers

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine function: each request has one frame less.
        kind = _KINDS.get(scope["type"])
        if kind is None or SCOPE_KEY in scope:
            if scope["type"] == "lifespan":
                return self._lifespan(scope, receive, send)
            return self.app(scope, receive, send)  # it is mounted in an application with tasks, and uses those
        scheduler = self._schedulers.serving
        if scheduler is None:
            return self._bound_to_request(kind, scope, receive, send)
        return kind(scheduler, scope, send).serve(self.app, scope, receive)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the scheduler inside the lifespans of the application: their resources are open while tasks run."""
        scheduler = self._schedulers.new_scheduler()

        async def receive_and_drain() -> Message:
            async with AsyncExitStack() as stack:
                # An exception means that the server ends: like shutdown, it reaches the application after the drain.
                stack.push_async_exit(scheduler)
                stack.callback(self._schedulers.stop_serving)
                message = await receive()
                if message["type"] != "lifespan.shutdown":
                    stack.pop_all()
            return message

        async def resume_and_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                telemetry.enter_context(
                    self._schedulers.telemetry.observe(scheduler)
                )  # startup has configured the providers
                scheduler.resume()
                self._schedulers.start_worker(scheduler)
            elif message["type"] == "lifespan.startup.failed":
                await scheduler.aclose()
            await send(message)

        await scheduler.start(paused=True)
        self._schedulers.scheduler = self._schedulers.serving = scheduler
        telemetry = ExitStack()
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_exit(scheduler)  # for an application that returns without a message
                try:
                    await self.app(scope, receive_and_drain, resume_and_send)
                finally:
                    if scheduler.closed:
                        # The return must not take another turn of the event loop. Otherwise uvicorn logs a lifespan
                        # that it cancels there as "unsupported", and hypercorn serves although startup has failed.
                        stack.pop_all()
        finally:
            telemetry.close()
            self._schedulers.stop_serving()
            self._schedulers.scheduler = None

    async def _bound_to_request(self, kind: type[RequestOrigin], scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that waits for its own tasks, because without a lifespan nothing else does."""
        scheduler = self._schedulers.new_scheduler(grace_period=inf)
        with self._schedulers.telemetry.observe(scheduler):
            async with scheduler:
                try:
                    await kind(scheduler, scope, send).serve(self.app, scope, receive)
                finally:
                    self._log_bound_request_once(scheduler)

    def _log_bound_request_once(self, scheduler: TaskScheduler) -> None:
        if not self._schedulers.logged_bound_requests and scheduler.statistics().scheduled:
            self._schedulers.logged_bound_requests = True
            logger.info(
                "No lifespan of the application is running: tasks are bound to their requests, "
                "and a request ends when its tasks have ended"
            )
