"""When the tasks of a request start: against the messages of the response, and against the exits of dependencies."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Annotated, Any, Literal

import anyio
import pytest
from asgi_spy import assert_order, note, request, running, turns
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.background import BackgroundTask
from tasks_core import Task, TaskObserver, TaskState, observe
from tasks_core.testing import release_task
from tasks_fastapi import RequestTasks, Tasks, add_tasks, get_tasks

pytestmark = pytest.mark.anyio

Scope = Literal["function", "request"]

DEPENDENCY_LEFT = ["leaving dependency", "dependency left"]
SENT = ["last byte", "last byte sent"]
RESPONSE = ["start 200", "after_route", *SENT]


class App(FastAPI):
    """An application with tasks, whose parts write into one log."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.log: list[str] = []
        add_tasks(self, **options)

    async def dependency(self) -> AsyncIterator[None]:
        """What a session is: its exit takes time, and what comes after can rely on it."""
        yield
        self.log.append("leaving dependency")
        await turns()
        self.log.append("dependency left")

    async def endpoint(self, tasks: RequestTasks) -> None:
        tasks.after_response.schedule(note, self.log, "after_response")
        tasks.after_route.schedule(note, self.log, "after_route")
        tasks.schedule(note, self.log, "now")
        self.log.append("endpoint begins")
        await turns()
        self.log.append("endpoint ends")


def endpoint_tasks_first(app: App, scope: Scope) -> Callable[..., Any]:
    async def endpoint(tasks: Tasks, _: Annotated[None, Depends(app.dependency, scope=scope)]) -> None:
        await app.endpoint(tasks)

    return endpoint


def endpoint_tasks_last(app: App, scope: Scope) -> Callable[..., Any]:
    async def endpoint(_: Annotated[None, Depends(app.dependency, scope=scope)], tasks: Tasks) -> None:
        await app.endpoint(tasks)

    return endpoint


@pytest.mark.parametrize("make", [endpoint_tasks_first, endpoint_tasks_last])
@pytest.mark.parametrize("scope", ["function", "request"])
async def test_phases_in_order(make: Callable[[App, Scope], Any], scope: Scope) -> None:
    app = App()
    app.get("/")(make(app, scope))
    async with running(app):
        assert (await request(app, log=app.log)).status == 200
    before, after = (DEPENDENCY_LEFT, []) if scope == "function" else ([], DEPENDENCY_LEFT)
    assert app.log == ["endpoint begins", "now", "endpoint ends", *before, *RESPONSE, *after, "after_response"]


@pytest.mark.parametrize("scope", ["function", "request"])
async def test_dependency_uses_tasks_before_and_after_yield(scope: Scope) -> None:
    app = App()

    async def session(tasks: Tasks) -> AsyncIterator[RequestTasks]:
        tasks.after_route.schedule(note, app.log, "after_route, from before yield")
        tasks.after_response.schedule(note, app.log, "after_response, from before yield")
        yield tasks
        tasks.after_route.schedule(note, app.log, "after_route, from after yield")
        tasks.after_response.schedule(note, app.log, "after_response, from after yield")
        await turns()
        app.log.append("dependency left")

    @app.get("/")
    async def endpoint(mine: Tasks, theirs: Annotated[RequestTasks, Depends(session, scope=scope)]) -> None:
        assert mine is theirs

    async with running(app):
        assert (await request(app, log=app.log)).status == 200
    before, after = "after_route, from before yield", "after_route, from after yield"
    response = {"after_response, from before yield", "after_response, from after yield"}
    if scope == "function":
        assert_order(app.log, "dependency left", "start 200", {before, after}, *SENT, response)
    else:
        assert_order(app.log, "start 200", before, *SENT, after, "dependency left", response)


async def test_tasks_first_asked_for_when_the_route_has_returned() -> None:
    app = App()

    async def late(connection: Request) -> AsyncIterator[None]:
        yield
        tasks = get_tasks(connection)
        tasks.after_route.schedule(note, app.log, "after_route")
        tasks.after_response.schedule(note, app.log, "after_response")
        await turns()
        app.log.append("dependency left")

    @app.get("/", dependencies=[Depends(late, scope="request")])
    async def endpoint() -> None: ...

    async with running(app):
        await request(app, log=app.log)
        await turns()
        assert app.log[-3:] == ["after_route", "dependency left", "after_response"]


async def test_tasks_first_asked_for_when_the_request_is_over() -> None:
    app = App()
    connections: list[Request] = []

    @app.get("/{status}")
    async def endpoint(connection: Request, status: int) -> Response:
        connections.append(connection)
        return PlainTextResponse(status_code=status)

    async with running(app):
        for status, when in ((200, "success"), (404, "error")):
            await request(app, f"/{status}")
            tasks = get_tasks(connections.pop())
            for phase in (tasks.after_route, tasks.after_response):
                assert await phase.task(when=when).schedule(lambda: 1) == 1  # type: ignore[arg-type]  # of a Literal
                assert phase.schedule(note, app.log, "for success").state is not (
                    TaskState.DISCARDED if status == 200 else TaskState.PENDING
                )


async def test_scheduling_into_a_phase_that_has_passed_starts_at_once() -> None:
    app = App()

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        async def follow_up() -> None:
            tasks.after_route.schedule(note, app.log, "late after_route")
            tasks.after_response.schedule(note, app.log, "late after_response")
            dropped = tasks.after_response.task(when="error").schedule(note, app.log, "never")
            assert dropped.state is TaskState.DISCARDED

        tasks.after_response.schedule(follow_up)

    async with running(app):
        await request(app, log=app.log)
        await turns()
        assert_order(app.log[-2:], {"late after_route", "late after_response"})


async def test_the_same_tasks_for_everyone_in_a_request() -> None:
    app = App()

    async def dependency(tasks: Tasks) -> RequestTasks:
        return tasks

    @app.get("/")
    async def endpoint(
        connection: Request, tasks: Tasks, again: Tasks, other: Annotated[RequestTasks, Depends(dependency)]
    ) -> None:
        assert tasks is again is other is get_tasks(connection)
        app.log.append("checked")

    async with running(app):
        await request(app)
    assert app.log == ["checked"]


@pytest.mark.parametrize("phase", ["after_route", "after_response"])
async def test_a_blocked_task_does_not_delay_the_response(phase: str) -> None:
    app = App()
    release = anyio.Event()
    tasks_of: list[Task[Any]] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks_of.append(getattr(tasks, phase).schedule(release.wait))

    async with running(app):
        with anyio.fail_after(5):
            assert (await request(app)).status == 200
            await tasks_of[0].started.wait()
        assert tasks_of[0].state is TaskState.RUNNING
        release.set()


class Holder(TaskObserver):
    def hold_task(self, task: Task[Any]) -> bool:
        return True


@pytest.mark.parametrize("phase", ["after_route", "after_response"])
async def test_a_held_task_does_not_delay_the_response(phase: str) -> None:
    app = App()
    held: list[Task[Any]] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        held.append(getattr(tasks, phase).schedule(note, app.log, "held"))

    async with running(app):
        with observe(Holder()), anyio.fail_after(5):
            assert (await request(app)).status == 200
            await turns()
        assert held[0].state is TaskState.PENDING
        release_task(held[0])
        await held[0]


async def test_background_tasks_of_the_framework_run_before_after_response() -> None:
    app = App()

    async def slow() -> None:
        await turns()
        app.log.append("background")

    @app.get("/")
    async def endpoint(tasks: Tasks, background: BackgroundTasks) -> None:
        tasks.after_response.schedule(note, app.log, "after_response")
        background.add_task(slow)

    @app.get("/own")
    async def endpoint_with_own(tasks: Tasks) -> Response:
        tasks.after_response.schedule(note, app.log, "after_response")
        return PlainTextResponse("text", background=BackgroundTask(slow))

    for path in ("/", "/own"):
        app.log.clear()
        async with running(app):
            assert (await request(app, path, log=app.log)).status == 200
        assert app.log == ["start 200", *SENT, "background", "after_response"]


async def test_a_failing_background_task_of_the_framework_is_an_error_after_the_response() -> None:
    app = App()

    async def boom() -> None:
        raise RuntimeError("boom")

    @app.get("/")
    async def endpoint(tasks: Tasks) -> Response:
        tasks.after_route.schedule(note, app.log, "after_route")
        tasks.after_response.schedule(note, app.log, "never")
        tasks.after_response.task(when="error").schedule(note, app.log, "after_response")
        return PlainTextResponse("text", background=BackgroundTask(boom))

    async with running(app):
        assert isinstance((await request(app, log=app.log)).error, RuntimeError)
    assert app.log == [*RESPONSE, "after_response"]


# ---- from threads ----


async def test_endpoint_in_a_thread() -> None:
    app = App()

    @app.get("/")
    def endpoint(tasks: Tasks) -> None:
        started = threading.Event()
        tasks.after_response.schedule(note, app.log, "after_response")
        tasks.after_route.schedule(note, app.log, "after_route")
        tasks.schedule(started.set)
        assert started.wait(5)
        app.log.append("endpoint ends")

    async with running(app):
        assert (await request(app, log=app.log)).status == 200
    assert app.log == ["endpoint ends", *RESPONSE, "after_response"]


async def test_a_thread_that_outlives_its_request() -> None:
    app = App()
    over = threading.Event()
    threads: list[threading.Thread] = []

    @app.get("/")
    def endpoint(tasks: Tasks, connection: Request) -> None:
        def work() -> None:
            assert over.wait(5)
            for mine in (tasks, get_tasks(connection)):
                mine.after_route.schedule(note, app.log, "after_route")
                mine.after_response.schedule(note, app.log, "after_response")

        threads.append(threading.Thread(target=work))
        threads[0].start()

    async with running(app):
        await request(app)
        over.set()
        await anyio.to_thread.run_sync(threads[0].join)
    assert sorted(app.log) == ["after_response"] * 2 + ["after_route"] * 2


async def test_generator_dependency_in_a_thread() -> None:
    app = App()

    def session(tasks: Tasks) -> Iterator[None]:
        tasks.after_response.schedule(note, app.log, "from before yield")
        yield
        tasks.after_response.schedule(note, app.log, "from after yield")

    @app.get("/", dependencies=[Depends(session)])
    def endpoint() -> None: ...

    async with running(app):
        await request(app, log=app.log)
    assert_order(app.log, "start 200", *SENT, {"from before yield", "from after yield"})


# ---- context ----

user: ContextVar[str] = ContextVar("user", default="nobody")


@pytest.mark.parametrize("phase", ["immediate", "after_route", "after_response"])
async def test_context_variables_are_those_at_the_call(phase: str) -> None:
    app = App()

    async def tell() -> None:
        app.log.append(user.get())

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        user.set("ann")
        (tasks if phase == "immediate" else getattr(tasks, phase)).schedule(tell)
        user.set("bob")

    async with running(app):
        await request(app)
    assert app.log == ["ann"]
