"""The outermost ASGI layer: the lifespan of the scheduler, and the phases of each request."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from contextlib import AsyncExitStack, ExitStack
from math import inf
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tasks_core import TaskScheduler, Worker

from ._request import SCOPE_KEY, RequestOrigin, WebSocketOrigin
from ._telemetry import Telemetry

logger = logging.getLogger("tasks_fastapi")


class Installation:
    """
    What `add_tasks()` leaves on an application.

    The scheduler lives as long as a lifespan does; an application may have one lifespan after another, in tests.
    """

    __slots__ = ("_embed_worker", "_options", "bound_requests_told", "scheduler", "serving", "telemetry")

    def __init__(self, options: dict[str, Any], telemetry: Telemetry, worker_concurrency: int | None) -> None:
        self._options = options
        self._embed_worker = worker_concurrency
        self.telemetry = telemetry
        self.scheduler: TaskScheduler | None = None
        self.serving: TaskScheduler | None = None  # the same, for new requests: not while it drains
        self.bound_requests_told = False
        self.new_scheduler()  # so that a wrong option is an error now, at the call of add_tasks()
        if worker_concurrency is not None:
            self._new_worker(worker_concurrency)

    def new_scheduler(self, **options: Any) -> TaskScheduler:
        """Make a scheduler with the options that `add_tasks()` was given, and these."""
        return TaskScheduler(**{**self._options, **options})

    def stop_serving(self) -> None:
        """Bind the requests that still come to their own tasks."""
        self.serving = None

    def start_worker(self, scheduler: TaskScheduler) -> None:
        """Run durable tasks in this process as well, if `add_tasks()` was told so."""
        if self._embed_worker is not None and scheduler.engine is self._options["engine"]:
            worker = self._new_worker(self._embed_worker)
            scheduler.task(name="durable worker", shield=True).schedule(worker.run, scheduler.stopping)

    def _new_worker(self, concurrency: int) -> Worker:
        return Worker(
            self._options["engine"],
            concurrency=concurrency,
            grace_period=self._options["grace_period"],
            shield_timeout=self._options["shield_timeout"],
        )


_KINDS: dict[str, type[RequestOrigin]] = {"http": RequestOrigin, "websocket": WebSocketOrigin}


class TasksMiddleware:
    """
    Wraps the whole middleware stack of an application.

    Being outermost is the point: only here is "the last byte was sent" true of the client and not of some middleware,
    and only here is every dependency, background task and middleware done when the call returns.
    """

    __slots__ = ("_installation", "app")

    app: ASGIApp
    """What is wrapped. FastAPI follows attributes of this name to see which middleware is there."""

    def __init__(self, app: ASGIApp, installation: Installation) -> None:
        self.app = app
        self._installation = installation

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Returns what is to be awaited, in place of awaiting it: one frame less around every request.
        kind = _KINDS.get(scope["type"])
        if kind is None or SCOPE_KEY in scope:
            if scope["type"] == "lifespan":
                return self._lifespan(scope, receive, send)
            return self.app(scope, receive, send)  # an application mounted in another one has the tasks of that
        scheduler = self._installation.serving
        if scheduler is None:
            return self._bound_to_request(kind, scope, receive, send)
        return kind(scheduler, scope, send).serve(self.app, scope, receive)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the scheduler inside the lifespans of the application: what they have opened is open while tasks run."""
        scheduler = self._installation.new_scheduler()

        async def receive_and_drain() -> Message:
            async with AsyncExitStack() as stack:
                # An exception is the server going away: like shutdown, it reaches the application after the tasks.
                stack.push_async_exit(scheduler)
                stack.callback(self._installation.stop_serving)
                message = await receive()
                if message["type"] != "lifespan.shutdown":
                    stack.pop_all()
            return message

        async def resume_and_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                watching.enter_context(self._installation.telemetry.watch(scheduler))  # configured by now
                scheduler.resume()
                self._installation.start_worker(scheduler)
            elif message["type"] == "lifespan.startup.failed":
                await scheduler.aclose()
            await send(message)

        await scheduler.start(paused=True)
        self._installation.scheduler = self._installation.serving = scheduler
        watching = ExitStack()
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_exit(scheduler)  # for an application that ends without a word
                try:
                    await self.app(scope, receive_and_drain, resume_and_send)
                finally:
                    if scheduler.closed:
                        # The end must not take another turn of the loop. uvicorn would call a lifespan that it cancels
                        # there "unsupported", and hypercorn would go on to serve when startup has failed.
                        stack.pop_all()
        finally:
            watching.close()
            self._installation.stop_serving()
            self._installation.scheduler = None

    async def _bound_to_request(self, kind: type[RequestOrigin], scope: Scope, receive: Receive, send: Send) -> None:
        """Without a lifespan nobody else would wait for the tasks, so the request does."""
        scheduler = self._installation.new_scheduler(grace_period=inf)
        with self._installation.telemetry.watch(scheduler):
            async with scheduler:
                try:
                    await kind(scheduler, scope, send).serve(self.app, scope, receive)
                finally:
                    self._tell_once(scheduler)

    def _tell_once(self, scheduler: TaskScheduler) -> None:
        if not self._installation.bound_requests_told and scheduler.statistics().scheduled:
            self._installation.bound_requests_told = True
            logger.info(
                "No lifespan of the application is running: tasks are bound to their requests, "
                "and a request ends when its tasks have ended"
            )
