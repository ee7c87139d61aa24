"""The outermost ASGI middleware: it runs the scheduler in the lifespan, and opens the phases of each request."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from contextlib import AsyncExitStack, ExitStack
from math import inf
from weakref import ref

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tasks_core.frameworks import CURRENT, AfterShutdown

from ._request import SCOPE_KEY, RequestOrigin, WebSocketOrigin
from ._schedulers import AppSchedulers

logger = logging.getLogger("tasks_fastapi")

_TOO_LATE = (
    "it was scheduled in the exit of the lifespan, after the tasks were drained. Work that belongs to the end is a "
    "service that is started before `yield`: get_scheduler(app).service(say_goodbye, grace=2), which begins with "
    "`await scheduler.stopping.wait()`"
)

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
        if kind is None:
            if scope["type"] == "lifespan":
                return self._lifespan(scope, receive, send)
            return self.app(scope, receive, send)
        outer: RequestOrigin | None = scope.get(SCOPE_KEY)
        # The scope of a request that has finished is served a second time by a middleware that tries again, or that
        # tries one application after another.
        if outer is not None and not outer.finished:
            return self.app(scope, receive, send)  # it is mounted in an application with tasks, and uses those
        scheduler = self._schedulers.find(scope)
        if scheduler is None:
            return self._bound_to_request(kind, scope, receive, send)
        return kind(scheduler, scope, send).serve(self.app, scope, receive)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the scheduler inside the lifespans of the application: their resources are open while tasks run."""
        scheduler = self._schedulers.create()
        exiting = AfterShutdown(scheduler, _TOO_LATE)

        async def receive_and_drain() -> Message:
            async with AsyncExitStack() as stack:
                # An exception means that the server ends: like shutdown, it reaches the application after the drain.
                stack.push_async_exit(scheduler)
                try:
                    message = await receive()
                except BaseException as error:
                    logger.warning(
                        "The lifespan of the application ends although the server has not shut it down (%s): its tasks "
                        "have no grace period, and requests that follow are bound to their own tasks. A task group or "
                        "a timeout around `yield` ends it like this",
                        type(error).__name__,
                    )
                    raise
                if message["type"] != "lifespan.shutdown":
                    stack.pop_all()
            if scheduler.closed:
                CURRENT.set(ref(exiting))  # for the exit of the lifespan, which follows in this context
            return message

        async def resume_and_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                telemetry.enter_context(
                    self._schedulers.telemetry.observe(scheduler)
                )  # startup has configured the providers
                scheduler.resume()
                self._schedulers.measure_queues(scheduler)
                self._schedulers.start_worker(scheduler)
            elif message["type"] == "lifespan.startup.failed":
                await scheduler.aclose()
            await send(message)

        await scheduler.start(paused=True)
        with self._schedulers.running(scheduler, scope), ExitStack() as telemetry:
            async with AsyncExitStack() as stack:
                stack.push_async_exit(scheduler)  # for an application that returns without a message
                try:
                    await self.app(scope, receive_and_drain, resume_and_send)
                finally:
                    if scheduler.closed:
                        # The return must not take another turn of the event loop. Otherwise uvicorn logs a lifespan
                        # that it cancels there as "unsupported", and hypercorn serves although startup has failed.
                        stack.pop_all()

    async def _bound_to_request(self, kind: type[RequestOrigin], scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that waits for its own tasks, because without a lifespan nothing else does."""
        scheduler = self._schedulers.create(grace_period=inf)
        with self._schedulers.telemetry.observe(scheduler):
            async with scheduler:
                try:
                    await kind(scheduler, scope, send).serve(self.app, scope, receive)
                finally:
                    if scheduler.statistics().scheduled:
                        self._schedulers.log_bound_request()
