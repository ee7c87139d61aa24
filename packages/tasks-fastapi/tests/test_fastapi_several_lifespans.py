"""Several lifespans of one application at the same time, and several event loops: each request finds its scheduler."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from asgi_spy import receiving, request, running, turns
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.types import Message
from tasks_core import SchedulerClosedError, Task, TaskScheduler, TaskState
from tasks_fastapi import SeveralLifespansError, Tasks, add_tasks, get_scheduler


class App(FastAPI):
    """It notes which scheduler each of its lifespans and requests has."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lifespan=self.lifetime)
        add_tasks(self, **options)
        self.in_lifespan: list[TaskScheduler] = []
        self.in_requests: list[TaskScheduler] = []
        self.in_tasks: list[TaskScheduler] = []
        self.tasks: list[Task[Any]] = []
        self.threads: list[int] = []
        self.get("/")(self.endpoint)

    @asynccontextmanager
    async def lifetime(self, _app: FastAPI) -> AsyncIterator[None]:
        self.in_lifespan.append(get_scheduler(self))
        yield

    async def endpoint(self, tasks: Tasks, connection: Request) -> None:
        self.in_requests.append(get_scheduler(connection.app))
        self.tasks.append(tasks.after_response.schedule(self.work))

    async def work(self) -> None:
        self.in_tasks.append(get_scheduler(self))
        self.threads.append(threading.get_ident())


@pytest.mark.anyio
async def test_each_request_belongs_to_the_lifespan_that_serves_it() -> None:
    """Two servers in one process, on one event loop: the state of the lifespan says which."""
    app, first, second = App(), dict[str, Any](), dict[str, Any]()
    async with running(app, state=first), running(app, state=second):
        await request(app, state=first.copy())
        await request(app, state=second.copy())
        await request(app, state=first.copy())
        one, two = app.in_lifespan
        assert one is not two
        assert app.in_requests == [one, two, one]
        await turns()
        assert app.in_tasks == [one, two, one]


@pytest.mark.anyio
async def test_the_end_of_one_lifespan_does_not_touch_the_other() -> None:
    app, first, second = App(), dict[str, Any](), dict[str, Any]()
    async with running(app, state=first):
        async with running(app, state=second):
            pass
        outer, inner = app.in_lifespan
        assert inner.closed
        assert get_scheduler(app) is outer
        await request(app, state=first.copy())
        await request(app)  # a server without lifespan state
        assert app.in_requests == [outer, outer]


@pytest.mark.anyio
async def test_a_request_after_the_end_of_its_lifespan_is_refused() -> None:
    """Its resources are closed, although another lifespan runs."""
    app, first, second = App(), dict[str, Any](), dict[str, Any]()
    async with running(app, state=first):
        async with running(app, state=second):
            pass
        answer = await request(app, state=second.copy())
        assert isinstance(answer.error, SchedulerClosedError)


@pytest.mark.anyio
async def test_without_lifespan_state_a_request_has_the_newest_that_does_not_drain() -> None:
    app, stop = App(grace_period=3600), anyio.Event()
    async with running(app), anyio.create_task_group() as group:
        ended = anyio.Event()

        async def inner() -> None:
            async with running(app):
                app.in_lifespan[1].schedule(stop.wait)
                await turns()
            ended.set()

        group.start_soon(inner)
        while len(app.in_lifespan) < 2:
            await turns()
        outer, newest = app.in_lifespan
        await request(app)
        await newest.stopping.wait()
        await request(app)
        assert app.in_requests == [newest, outer]
        stop.set()
        await ended.wait()


@pytest.mark.anyio
async def test_outside_of_all_lifespans_get_scheduler_says_so() -> None:
    app = App()
    message = "2 lifespans of the application run at the same time, each with a scheduler of its own"
    async with running(app), running(app):
        with pytest.raises(SeveralLifespansError, match=f"^{re.escape(message)}"):
            get_scheduler(app)
        with pytest.raises(SeveralLifespansError):
            await anyio.to_thread.run_sync(get_scheduler, app)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nested_test_clients(backend: Any) -> None:
    """Each has a thread and an event loop of its own."""
    app = App()
    with TestClient(app, backend=backend) as outer, TestClient(app, backend=backend) as inner:
        outer.get("/")
        inner.get("/")
        outer.get("/")
        one, two = app.in_lifespan
        assert app.in_requests == [one, two, one]
    assert [task.state for task in app.tasks] == [TaskState.SUCCEEDED] * 3
    assert app.threads[0] == app.threads[2] != app.threads[1]


def test_nested_test_clients_that_end_one_after_the_other() -> None:
    app = App()
    with TestClient(app) as outer:
        with TestClient(app) as inner:
            inner.get("/")
        outer.get("/")
        assert app.in_requests == app.in_lifespan[::-1]
        assert get_scheduler(app) is app.in_lifespan[0]


def test_a_client_that_goes_on_after_its_lifespan_has_bound_requests() -> None:
    app = App()
    client = TestClient(app)
    with client:
        client.get("/")
    assert client.get("/").status_code == 200
    assert [task.state for task in app.tasks] == [TaskState.SUCCEEDED] * 2
    assert app.in_requests[1] not in app.in_lifespan


def test_a_request_on_another_event_loop_is_bound_to_its_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """
    The lifespan runs on one event loop and the requests on another one of the same thread.

    pytest-asyncio does that with fixtures of a session and tests with an event loop of their own.
    """
    app, state = App(), dict[str, Any]()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with running(app, state=state):
            started.set()
            await stop.wait()

    async def serve(**more: Any) -> None:
        for _ in range(2):
            assert (await request(app, **more)).error is None

    try:
        lifespan = first.create_task(live())
        first.run_until_complete(started.wait())
        with caplog.at_level(logging.INFO, "tasks_fastapi"):
            second.run_until_complete(serve())
            assert [task.state for task in app.tasks] == [TaskState.SUCCEEDED] * 2
            second.run_until_complete(serve(state=state))
        assert [task.state for task in app.tasks] == [TaskState.SUCCEEDED] * 4
        assert all(scheduler is not app.in_lifespan[0] for scheduler in app.in_requests)
        first.run_until_complete(serve())
        assert app.in_requests[4:] == app.in_lifespan * 2
        stop.set()
        first.run_until_complete(lifespan)
    finally:
        first.close()
        second.close()
    (line,) = [record for record in caplog.records if record.name == "tasks_fastapi"]
    assert line.levelno == logging.WARNING
    here, there = f"{type(second).__name__} {id(second):#x}", f"{type(first).__name__} {id(first):#x}"
    assert re.fullmatch(
        f"A request runs on {here} in MainThread, and the scheduler of the application on {there} in MainThread: tasks "
        "are bound to their requests, and a request ends when its tasks have ended. Run the lifespan and the requests "
        "on one event loop",
        line.getMessage(),
    )


@pytest.mark.anyio
async def test_applications_with_one_lifespan_state_do_not_mix() -> None:
    """A dispatcher starts two applications with the scope of one lifespan."""
    one, two = App(), App()
    state = dict[str, Any]()
    async with running(one, state=state), running(two, state=state):
        await request(one, state=state.copy())
        await request(two, state=state.copy())
    assert one.in_requests == one.in_lifespan
    assert two.in_requests == two.in_lifespan


@pytest.mark.anyio
async def test_get_scheduler_of_a_mounted_application_and_with_a_new_state() -> None:
    outer, mounted = App(), FastAPI()
    found: list[TaskScheduler] = []

    @mounted.get("/")
    async def endpoint(connection: Request, tasks: Tasks) -> None:
        found.append(get_scheduler(connection.app))
        await tasks.schedule(in_task, connection.app)

    async def in_task(app: FastAPI) -> None:
        found.append(get_scheduler(app))

    outer.mount("/inner", mounted)
    async with running(outer):
        outer.state = type(outer.state)()
        assert (await request(outer, "/inner/")).error is None
        assert get_scheduler(outer) is outer.in_lifespan[0]
    assert found == outer.in_lifespan * 2


@pytest.mark.anyio
async def test_get_scheduler_in_a_bound_request_is_that_of_the_request() -> None:
    app = App()
    await request(app)
    assert len(app.in_requests) == 1
    assert app.in_tasks == app.in_requests


@pytest.mark.anyio
async def test_a_server_without_lifespan_state() -> None:
    app = App()
    found: list[TaskScheduler] = []

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            await request(app)
            found.append(get_scheduler(app))

    await app({"type": "lifespan"}, receiving({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}), send)
    assert app.in_requests == found == app.in_lifespan
