"""`current_tasks()`: the tasks of the request that is served, or open phases where there is no request."""

import asyncio
import gc
import logging
import re
import threading
import weakref
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest
from asgi_spy import http_scope, note, request, running, turns, websocket
from fastapi import Depends, FastAPI, Request, Response, WebSocket
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from tasks_core import Task, TaskObserver, TaskPhase, TaskScheduler, TaskState, current_scheduler, observe
from tasks_fastapi import (
    ApplicationOrigin,
    RequestOrigin,
    RequestTasks,
    Tasks,
    TasksNotInstalledError,
    add_tasks,
    current_tasks,
    get_scheduler,
    get_tasks,
)

pytestmark = pytest.mark.anyio


async def test_everything_that_a_request_calls_has_its_tasks() -> None:
    app = FastAPI()
    seen: dict[str, RequestTasks] = {}

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, connection: Request, call_next: Any) -> Response:
            seen["middleware"] = current_tasks()
            response: Response = await call_next(connection)
            return response

    async def dependency() -> AsyncIterator[None]:
        seen["dependency"] = current_tasks()
        yield
        seen["exit"] = current_tasks()

    def plain() -> None:
        seen["plain dependency"] = current_tasks()

    async def task() -> None:
        seen["task"] = current_tasks()

    def task_in_thread() -> None:
        seen["task in thread"] = current_tasks()

    @app.get("/", dependencies=[Depends(dependency), Depends(plain)])
    async def endpoint(tasks: Tasks) -> None:
        seen["endpoint"] = tasks
        assert current_scheduler() is get_scheduler(app)
        await tasks.schedule(task)
        await tasks.schedule(task_in_thread)
        seen["thread"] = await anyio.to_thread.run_sync(current_tasks)
        async with anyio.create_task_group() as group:
            group.start_soon(in_group)

    async def in_group() -> None:
        seen["group"] = current_tasks()

    add_tasks(app)
    app.add_middleware(Passing)
    async with running(app):
        assert (await request(app)).error is None
    assert len(seen) == 9
    assert set(seen.values()) == {seen["endpoint"]}


async def test_a_plain_endpoint() -> None:
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    @app.get("/")
    def endpoint() -> None:
        current_tasks().after_response.schedule(note, log, "after_response")

    async with running(app):
        await request(app, log=log)
    assert log == ["start 200", "last byte", "last byte sent", "after_response"]


async def test_requests_at_the_same_time_have_their_own() -> None:
    app = FastAPI()
    add_tasks(app)
    barrier: list[str] = []
    seen: list[tuple[RequestTasks, RequestTasks]] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        barrier.append("arrived")
        while len(barrier) < 5:
            await turns()
        seen.append((tasks, current_tasks()))

    async with running(app), anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(request, app)
    assert all(one is two for one, two in seen)
    assert len({tasks for tasks, _ in seen}) == 5


async def test_websocket() -> None:
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        assert current_tasks() is tasks
        current_tasks().after_response.schedule(note, log, "after_response")
        await socket.accept()
        await socket.close()

    async with running(app):
        await websocket(app, "/", log=log)
    assert log == ["accept", "close", "after_response"]


async def test_a_task_of_a_request_that_has_ended() -> None:
    """Its phases have passed, so that tasks start at once; those for another outcome are discarded."""
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)
    go_on = anyio.Event()

    async def late() -> None:
        await go_on.wait()
        await current_tasks().after_response.schedule(note, log, "late")
        discarded = current_tasks().after_response.task(when="error").schedule(note, log, "never")
        await discarded.wait()
        assert discarded.state is TaskState.DISCARDED

    @app.get("/")
    async def endpoint() -> None:
        current_tasks().after_response.schedule(late)

    async with running(app):
        await request(app)
        go_on.set()
    assert log == ["late"]


async def everything(log: list[str], name: str) -> None:
    """A service that does not know who calls it."""
    tasks = current_tasks()
    for phase in (tasks, tasks.after_route, tasks.after_response):
        await phase.schedule(note, log, name)
    await tasks.add_task(note, log, name)


async def test_without_a_request_all_phases_are_open() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_tasks().after_response.schedule(note, log, "at startup")
        scheduler = get_scheduler(app)
        async with anyio.create_task_group() as group:

            async def consume() -> None:
                await scheduler.schedule(turns)
                await everything(log, "consumer")

            group.start_soon(consume)
            yield
        # The drain is over.

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)
    async with running(app):
        scheduler = get_scheduler(app)
        await scheduler.schedule(everything, log, "task")
        after_commit = TaskPhase(scheduler, "after_commit", origin="a session")
        after_commit.open()
        await after_commit.schedule(everything, log, "phase of another origin")
        while log.count("consumer") < 4:
            await turns()
    assert sorted(log) == ["at startup", *["consumer"] * 4, *["phase of another origin"] * 4, *["task"] * 4]


async def test_the_origin_without_a_request_is_told_to_observers() -> None:
    origins: list[object] = []

    class Origins(TaskObserver):
        def task_scheduled(self, task: Task[Any], /) -> None:
            origins.append(None if task.phase is None else task.phase.origin)

    async with TaskScheduler() as scheduler:
        with observe(Origins()):
            current_tasks().after_response.schedule(turns)
    (origin,) = origins
    assert isinstance(origin, ApplicationOrigin)
    assert origin.scheduler is scheduler


async def test_a_coroutine_that_outlives_its_request() -> None:
    """`asyncio.create_task()` in an endpoint: the request is not kept for it, but the application is there."""
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)
    go_on = anyio.Event()
    async with anyio.create_task_group() as group:

        async def detached() -> None:
            await go_on.wait()
            await everything(log, "detached")

        @app.get("/")
        async def endpoint() -> None:
            group.start_soon(detached)

        async with running(app):
            await request(app)
            gc.collect()
            go_on.set()
            while len(log) < 4:
                await turns()
    assert log == ["detached"] * 4


MESSAGE = (
    "current_tasks() was called outside of a request, of a task and of a lifespan of an application with tasks. Add "
    "tasks where the application is created: add_tasks(app). Elsewhere, write: get_scheduler(app).schedule(...)"
)


async def test_outside_of_all_it_is_an_error_with_the_line_to_write() -> None:
    app = FastAPI()
    errors: list[str] = []

    @app.get("/")
    async def endpoint() -> None:
        with pytest.raises(TasksNotInstalledError) as caught:
            current_tasks()
        errors.append(str(caught.value))

    with pytest.raises(TasksNotInstalledError, match=f"^{re.escape(MESSAGE)}$"):
        current_tasks()
    await request(app)  # add_tasks() was not called
    assert errors == [MESSAGE]
    add_tasks(installed := FastAPI())
    async with running(installed):
        with pytest.raises(TasksNotInstalledError):
            current_tasks()
        failed: list[BaseException] = []

        def in_thread() -> None:
            try:
                current_tasks()
            except TasksNotInstalledError as error:
                failed.append(error)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert len(failed) == 1


async def test_a_request_inside_of_a_task_and_a_task_inside_of_a_request() -> None:
    outer, inner = FastAPI(), FastAPI()
    add_tasks(outer)
    add_tasks(inner)
    seen: list[tuple[TaskScheduler, object]] = []

    @inner.get("/")
    async def endpoint(tasks: Tasks) -> None:
        assert current_tasks() is tasks
        seen.append((current_scheduler(), tasks.origin))

    async def call_the_other() -> None:
        before = current_tasks()
        await request(inner)
        assert current_tasks() is before

    @outer.get("/")
    async def calls() -> None:
        await current_tasks().schedule(call_the_other)

    async with running(outer), running(inner):
        assert (await request(outer)).error is None
        assert [scheduler for scheduler, _ in seen] == [get_scheduler(inner)]


async def test_no_request_is_kept_alive() -> None:
    """Copies of the context are: in a timer of the event loop, in a task that is delayed."""
    app = FastAPI()
    add_tasks(app, grace_period=0)
    requests: list[weakref.ref[object]] = []

    @app.get("/")
    async def endpoint() -> None:
        requests.append(weakref.ref(current_tasks().origin))
        get_scheduler(app).task(delay=3600).schedule(turns)
        if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
            asyncio.get_running_loop().call_later(3600, print)

    async with running(app):
        gc.collect()
        gc.disable()
        try:
            await request(app)
            await turns()
            assert requests[0]() is None
        finally:
            gc.enable()


class Retrying:
    """A middleware that calls the application a second time, with the same scope."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except ConnectionError:
            await self.app(scope, receive, send)


async def test_a_scope_that_is_served_twice() -> None:
    """The second time it is another request, with phases and an outcome of its own."""
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)
    attempts: list[int] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        attempts.append(1)
        number = len(attempts)
        tasks.after_response.schedule(note, log, f"success {number}")
        tasks.after_response.task(when="error").schedule(note, log, f"error {number}")
        if number == 1:
            raise ConnectionError
        await turns()
        log.append("endpoint returns")

    async with running(app):
        assert (await request(Retrying(app))).status == 500
        # The 500 of the first attempt was sent by ServerErrorMiddleware before the second one.
        await turns()
    assert log == ["error 1", "endpoint returns", "success 2"]


class Cascade:
    """Ask one application after another until one answers with another status than 404."""

    def __init__(self, *apps: ASGIApp) -> None:
        self.apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Any] = []

        async def keep(message: Any) -> None:
            messages.append(message)

        for app in self.apps:
            messages.clear()

            await app(scope, receive, keep)
            if messages[0]["status"] != 404:
                break
        for message in messages:
            await send(message)


async def test_a_cascade_of_applications() -> None:
    log: list[str] = []
    first, second = FastAPI(), FastAPI()
    add_tasks(first)
    add_tasks(second)

    @second.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(note, log, "ran")

    async with running(first), running(second):
        assert (await request(Cascade(first, second))).status == 200
    assert log == ["ran"]


async def test_waiting_for_what_starts_after_the_response_is_refused() -> None:
    app = FastAPI()
    add_tasks(app)
    errors: list[str] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        for phase in (tasks.after_route, tasks.after_response):
            task = phase.schedule(turns)
            with pytest.raises(RuntimeError) as caught:
                await task
            errors.append(str(caught.value))
        await tasks.schedule(turns)  # one that has started can be waited for

    with anyio.fail_after(5):
        async with running(app):
            assert (await request(app)).error is None
        assert (await request(app)).error is None
    assert len(errors) == 4
    assert "was awaited by the code that after_response waits for, before after_response opened" in errors[1]


def test_a_finalizer_may_use_the_phase_that_is_being_created(caplog: pytest.LogCaptureFixture) -> None:
    """The garbage collector runs anywhere, also while the phases of a request are created."""
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)

    thresholds = [0]

    class Cyclic:
        def __init__(self, tasks: RequestTasks) -> None:
            self.me = self
            self.tasks = tasks

        def __del__(self) -> None:
            self.tasks.after_response.schedule(log.append, "from a finalizer")

    @app.get("/")
    async def endpoint(connection: Request) -> None:
        tasks = get_tasks(connection)
        before = gc.get_threshold()
        gc.disable()
        gc.collect(0)
        thresholds.append(thresholds[-1] + 1)
        Cyclic(tasks)
        gc.set_threshold(thresholds[-1])  # with one of them, the collector runs in the middle of it
        gc.enable()
        try:
            tasks.after_response.schedule(log.append, "from the endpoint")
        finally:
            gc.set_threshold(*before)

    async def serve() -> None:
        async with running(app):
            for _ in range(30):
                assert (await request(app)).error is None

    def run() -> None:
        asyncio.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    with caplog.at_level(logging.ERROR):
        thread.start()
        thread.join(30)
    assert not thread.is_alive()
    assert sorted(log) == ["from a finalizer"] * 30 + ["from the endpoint"] * 30


class Pause:
    """Gives control back to the code that drives the coroutine."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def test_a_request_that_the_garbage_collector_closes() -> None:
    """It does so in another context than that of the request; the phases open all the same."""
    ran: list[str] = []

    async def endpoint(scope: Scope, _receive: Receive, _send: Send) -> None:
        get_tasks(Request(scope)).after_response.task(when="error").schedule(note, ran, "error")
        await Pause()

    async def nothing(*_: Any) -> Any: ...

    async with TaskScheduler() as scheduler:
        origin = RequestOrigin(scheduler, http_scope(), nothing)
        serving = origin.serve(endpoint, http_scope(), nothing)
        copy_context().run(serving.send, None)
        copy_context().run(serving.close)
    assert origin.finished
    assert ran == ["error"]
