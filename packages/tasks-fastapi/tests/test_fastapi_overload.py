"""`max_pending` tasks are waiting: 503 with `Retry-After`, wherever one more is scheduled."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import pytest
from asgi_spy import Answer, request, running, turns, websocket
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tasks_core import TaskQueueFullError
from tasks_fastapi import TASK_QUEUE_FULL_RESPONSES, Tasks, add_tasks, get_scheduler, get_tasks

pytestmark = pytest.mark.anyio

BODY = b'{"detail":"Too much work is waiting. Try again later."}'


@asynccontextmanager
async def overloaded(app: Starlette) -> AsyncIterator[None]:
    """Run the application with one task that runs, and one that waits: as many as are allowed."""
    go_on = anyio.Event()
    async with running(app):
        scheduler = get_scheduler(app)
        await scheduler.schedule(go_on.wait).started.wait()
        scheduler.schedule(go_on.wait)
        await turns()
        yield
        go_on.set()


def make_app(**options: Any) -> FastAPI:
    app = FastAPI()
    add_tasks(app, max_concurrency=1, max_pending=1, **options)
    return app


def check(answer: Answer, retry_after: str = "1") -> None:
    assert answer.status == 503
    assert answer.headers["retry-after"] == retry_after
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == BODY
    assert answer.error is None


async def test_every_place_that_schedules() -> None:
    app = make_app()

    async def dependency(tasks: Tasks) -> None:
        tasks.after_route.schedule(turns)

    def dependency_in_thread(tasks: Tasks) -> None:
        tasks.schedule(turns)

    async def before_yield(tasks: Tasks) -> AsyncIterator[None]:
        tasks.after_response.schedule(turns)
        yield

    @app.get("/async")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(turns)

    @app.get("/def")
    def endpoint_in_thread(tasks: Tasks) -> None:
        tasks.after_response.schedule(turns)

    @app.get("/dependency", dependencies=[Depends(dependency)])
    @app.get("/dependency-in-thread", dependencies=[Depends(dependency_in_thread)])
    @app.get("/before-yield", dependencies=[Depends(before_yield)])
    async def nothing() -> None: ...

    paths = ["/async", "/def", "/dependency", "/dependency-in-thread", "/before-yield"]
    async with overloaded(app):
        for path in paths:
            check(await request(app, path))
    async with running(app):
        for path in paths:
            assert (await request(app, path)).status == 200
            await turns(50)


async def test_what_was_scheduled_before_is_not_for_success() -> None:
    """The request failed, so its other tasks are discarded, except those that are for an error."""
    app = FastAPI()
    add_tasks(app, max_pending=2)
    done: list[str] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(done.append, "success")
        tasks.after_response.task(when="error").schedule(done.append, "error")
        tasks.after_response.schedule(done.append, "too many")

    async with running(app):
        check(await request(app))
    assert done == ["error"]


@pytest.mark.parametrize("retry_after, header", [(0, "0"), (0.1, "1"), (1.0, "1"), (30, "30"), (30.5, "31")])
async def test_retry_after_is_in_whole_seconds(retry_after: float, header: str) -> None:
    app = make_app(retry_after=retry_after)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.schedule(turns)

    async with overloaded(app):
        check(await request(app), header)


async def test_websocket_is_told_to_come_back() -> None:
    app = make_app()

    @app.websocket("/before")
    async def before(socket: WebSocket, tasks: Tasks) -> None:
        tasks.schedule(turns)

    @app.websocket("/open")
    async def while_open(socket: WebSocket, tasks: Tasks) -> None:
        await socket.accept()
        tasks.schedule(turns)

    async with overloaded(app):
        for path in ("/before", "/open"):
            answer = await websocket(app, path, log=[])
            assert answer.error is None
            last = answer.messages[-1]
            assert (last["type"], last["code"]) == ("websocket.close", 1013)
            assert last["reason"] == "Too much work is waiting. Try again later."


async def test_websocket_that_is_closed_already() -> None:
    """The client cannot be informed, so that the error reaches the server."""
    app = make_app()

    @app.websocket("/")
    async def endpoint(socket: WebSocket, tasks: Tasks) -> None:
        await socket.accept()
        await socket.close()
        tasks.schedule(turns)

    async with overloaded(app):
        answer = await websocket(app, "/", log=[])
    expected = (
        "A task was refused after the WebSocket had been closed, so the client cannot be informed. Schedule it before "
        "`await websocket.close()`"
    )
    assert str(answer.error) == expected
    assert answer.error is not None
    assert isinstance(answer.error.__cause__, TaskQueueFullError)
    assert [message["type"] for message in answer.messages] == ["websocket.accept", "websocket.close"]


async def test_response_that_has_been_sent_already() -> None:
    app = make_app()

    async def after_yield(tasks: Tasks) -> AsyncIterator[None]:
        yield
        tasks.schedule(turns)

    @app.get("/", dependencies=[Depends(after_yield, scope="request")])
    async def endpoint() -> None: ...

    async with overloaded(app):
        answer = await request(app)
    assert answer.status == 200
    assert answer.error is not None
    assert isinstance(answer.error.__cause__, TaskQueueFullError)


@pytest.mark.parametrize("kind", [TaskQueueFullError, RuntimeError, 503])
async def test_a_handler_of_the_application_wins(kind: Any) -> None:
    app = FastAPI()

    async def handler(_request: Request, error: Exception) -> Response:
        return PlainTextResponse("mine", status_code=429)

    app.add_exception_handler(kind, handler)
    add_tasks(app, max_concurrency=1, max_pending=1)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.schedule(turns)

    async with overloaded(app):
        answer = await request(app)
    if kind is TaskQueueFullError:
        assert (answer.status, answer.body) == (429, b"mine")
    else:
        check(answer)  # a handler for something wider says nothing about this


async def test_a_handler_that_is_added_later_wins() -> None:
    app = make_app()

    @app.exception_handler(TaskQueueFullError)
    async def handler(_request: Request, error: TaskQueueFullError) -> Response:
        return JSONResponse({"waiting": True}, status_code=429)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.schedule(turns)

    async with overloaded(app):
        assert (await request(app)).status == 429


@pytest.mark.parametrize("sub_has_its_own", [True, False])
async def test_mounted_application(sub_has_its_own: bool) -> None:
    """Each application turns exceptions into responses for itself: that is how Starlette mounts."""
    app, sub = make_app(), FastAPI()
    if sub_has_its_own:
        add_tasks(sub)
    app.mount("/sub", sub)

    @sub.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.schedule(turns)

    async with overloaded(app):
        answer = await request(app, "/sub/")
    if sub_has_its_own:
        check(answer)
    else:
        assert answer.status == 500


async def test_starlette() -> None:
    async def endpoint(connection: Request) -> Response:
        get_tasks(connection).schedule(turns)
        return PlainTextResponse("text")

    app = Starlette(routes=[Route("/", endpoint)])
    add_tasks(app, max_concurrency=1, max_pending=1)
    async with overloaded(app):
        check(await request(app))


def test_schema() -> None:
    app = FastAPI()
    add_tasks(app)

    @app.post("/orders", responses=TASK_QUEUE_FULL_RESPONSES)
    async def create(tasks: Annotated[None, Depends(lambda: None)]) -> None: ...

    @app.get("/orders")
    async def read() -> None: ...

    paths = app.openapi()["paths"]["/orders"]
    documented = paths["post"]["responses"]["503"]
    assert documented["headers"]["Retry-After"]["schema"] == {"type": "integer"}
    content = documented["content"]["application/json"]
    assert content["schema"]["required"] == ["detail"]
    assert f'{{"detail":"{content["example"]["detail"]}"}}'.encode() == BODY
    assert "503" not in paths["get"]["responses"]
