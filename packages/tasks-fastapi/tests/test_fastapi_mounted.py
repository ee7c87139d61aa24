"""Applications mounted in another one: the tasks of a request are those of the outermost application that has any."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_spy import note, request, running, websocket
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from tasks_fastapi import Tasks, TasksNotInstalledError, add_tasks, get_scheduler, get_tasks

pytestmark = pytest.mark.anyio

RESPONSE = ["start 200", "after_route", "last byte", "last byte sent", "dependency left", "after_response"]


def fastapi_sub(log: list[str]) -> FastAPI:
    sub = FastAPI()

    async def dependency() -> AsyncIterator[None]:
        yield
        log.append("dependency left")

    @sub.get("/", dependencies=[Depends(dependency, scope="request")])
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_route.schedule(note, log, "after_route")
        tasks.after_response.schedule(note, log, "after_response")

    @sub.get("/missing")
    async def missing(tasks: Tasks) -> None:
        tasks.after_response.task(when="error").schedule(note, log, "error")
        raise HTTPException(404)

    @sub.websocket("/ws")
    async def connection(socket: WebSocket, tasks: Tasks) -> None:
        await socket.accept()
        tasks.after_response.schedule(note, log, "after_response")
        await socket.close()

    return sub


def starlette_sub(log: list[str]) -> Starlette:
    async def endpoint(connection: Request) -> Response:
        tasks = get_tasks(connection)
        tasks.after_route.schedule(note, log, "after_route")
        tasks.after_response.schedule(note, log, "after_response")
        return PlainTextResponse("text")

    return Starlette(routes=[Route("/", endpoint)])


@pytest.mark.parametrize("outer_kind", [FastAPI, Starlette])
@pytest.mark.parametrize("make_sub", [fastapi_sub, starlette_sub])
@pytest.mark.parametrize("sub_has_its_own", [False, True])
async def test_mounted(
    outer_kind: type[Starlette], make_sub: Callable[[list[str]], Starlette], sub_has_its_own: bool
) -> None:
    log: list[str] = []
    app, sub = outer_kind(), make_sub(log)
    add_tasks(app)
    if sub_has_its_own:
        add_tasks(sub)
    app.mount("/sub", sub)
    async with running(app):
        assert (await request(app, "/sub/", log=log)).status == 200
        assert get_scheduler(app).statistics().scheduled == 2, "the tasks are those of the outer application"
    assert log == [text for text in RESPONSE if text != "dependency left" or make_sub is fastapi_sub]


async def test_mounted_in_a_mounted_application() -> None:
    log: list[str] = []
    app = Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/b", fastapi_sub(log))]))])
    add_tasks(app)
    async with running(app):
        assert (await request(app, "/a/b/", log=log)).status == 200
        assert (await request(app, "/a/b/missing")).status == 404
    assert sorted(log) == sorted([*RESPONSE, "error"])


async def test_websocket_of_a_mounted_application() -> None:
    log: list[str] = []
    app = FastAPI()
    add_tasks(app)
    app.mount("/sub", fastapi_sub(log))
    async with running(app):
        await websocket(app, "/sub/ws", log=log)
    assert log == ["accept", "close", "after_response"]


async def test_only_the_mounted_application_has_tasks() -> None:
    """The lifespan of a mounted application does not run, so its tasks are bound to the request."""
    log: list[str] = []
    app, sub = FastAPI(), fastapi_sub(log)
    add_tasks(sub)
    app.mount("/sub", sub)

    @app.get("/outer")
    async def outer(tasks: Tasks) -> None: ...

    async with running(app):
        assert (await request(app, "/sub/", log=log)).status == 200
        assert log == RESPONSE  # complete, although the outer application still runs
        assert isinstance((await request(app, "/outer")).error, TasksNotInstalledError)


async def test_a_mounted_application_whose_lifespan_the_outer_one_runs() -> None:
    """The outer one has no tasks: then those of the inner one live as long as its lifespan."""
    log: list[str] = []
    sub = fastapi_sub(log)
    add_tasks(sub)

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with running(sub):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/sub", sub)
    async with running(app):
        assert (await request(app, "/sub/", log=log)).status == 200
        assert get_scheduler(sub).statistics().scheduled == 2
    assert log == RESPONSE
