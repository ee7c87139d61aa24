"""Phases seen through every kind of middleware, added before and after `add_tasks()`: outermost is outermost."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgi_spy import note, request, running, turns
from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tasks_fastapi import Tasks, add_tasks, get_tasks

pytestmark = pytest.mark.anyio

PHASES = ["start 200", "after_route", "last byte", "last byte sent", "dependency left", "after_response"]


def check_phases(log: list[str]) -> None:
    """Check them, whenever the dependency is left: with a middleware, versions of Starlette differ in that."""
    said = [text for text in log if text != "some bytes"]
    assert said[:2] == PHASES[:2]
    assert [text for text in said if text != "dependency left"] == [
        text for text in PHASES if text != "dependency left"
    ]
    assert said[-1] == "after_response"
    assert said.count("dependency left") == 1


class PassingOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)


class Buffering:
    """Sends nothing until the application has returned, and then takes its time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, keep)
        for message in messages:
            await turns()
            await send(message)


class Lingering:
    """Does something of its own when the response is out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        await turns()


def make_app(log: list[str], install: Callable[[FastAPI], None]) -> FastAPI:
    app = FastAPI()

    async def dependency() -> AsyncIterator[None]:
        yield
        await turns()
        log.append("dependency left")

    install(app)

    @app.get("/", dependencies=[Depends(dependency, scope="request")])
    async def endpoint(tasks: Tasks) -> Response:
        tasks.after_response.schedule(note, log, "after_response")
        tasks.after_route.schedule(note, log, "after_route")
        return PlainTextResponse("x" * 2000)

    @app.get("/stream")
    async def stream(tasks: Tasks) -> Response:
        tasks.after_response.schedule(note, log, "after_response")
        tasks.after_route.schedule(note, log, "after_route")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 1000
                await turns()

        return StreamingResponse(chunks())

    return app


def with_middleware(*kinds: Any, first: bool) -> Callable[[FastAPI], None]:
    def install(app: FastAPI) -> None:
        if not first:
            add_tasks(app)
        for kind in kinds:
            app.add_middleware(kind)
        if first:
            add_tasks(app)

    return install


@pytest.mark.parametrize("first", [True, False], ids=["middleware first", "add_tasks first"])
@pytest.mark.parametrize(
    "kinds",
    [
        (),
        (PassingOn,),
        (PassingOn, PassingOn),
        (GZipMiddleware,),
        (Lingering,),
        (PassingOn, Lingering, GZipMiddleware),
    ],
    ids=lambda kinds: "+".join(kind.__name__ for kind in kinds) or "none",
)
async def test_phases_through_middleware(kinds: tuple[Any, ...], first: bool) -> None:
    log: list[str] = []
    app = make_app(log, with_middleware(*kinds, first=first))
    async with running(app):
        answer = await request(app, log=log, headers=[(b"accept-encoding", b"gzip")])
    assert answer.status == 200
    assert (answer.headers.get("content-encoding") == "gzip") == (GZipMiddleware in kinds)
    check_phases(log)


@pytest.mark.parametrize("first", [True, False], ids=["middleware first", "add_tasks first"])
@pytest.mark.parametrize("kinds", [(Buffering,), (PassingOn, Buffering), (Buffering, GZipMiddleware)])
async def test_phases_through_a_middleware_that_buffers(kinds: tuple[Any, ...], first: bool) -> None:
    """The dependency is left, then the first byte goes out: `after_response` waits for the last one all the same."""
    log: list[str] = []
    app = make_app(log, with_middleware(*kinds, first=first))
    async with running(app):
        assert (await request(app, log=log)).status == 200
    sent = [text for text in log if text != "some bytes"]
    assert sent == ["dependency left", "start 200", "after_route", "last byte", "last byte sent", "after_response"]


@pytest.mark.parametrize("kinds", [(), (PassingOn,), (GZipMiddleware,), (Buffering,)])
async def test_streaming_through_middleware(kinds: tuple[Any, ...]) -> None:
    log: list[str] = []
    app = make_app(log, with_middleware(*kinds, first=True))
    async with running(app):
        assert len((await request(app, "/stream", log=log)).body) == 3000
    assert log[:2] == ["start 200", "after_route"]
    assert log[2:-3] == ["some bytes"] * 3
    assert log[-3:] == ["last byte", "last byte sent", "after_response"]


async def test_middleware_that_schedules() -> None:
    log: list[str] = []
    app = make_app(log, lambda app: add_tasks(app))

    @app.middleware("http")
    async def middleware(connection: Request, call_next: Any) -> Any:
        get_tasks(connection).after_response.schedule(note, log, "before the endpoint")
        response = await call_next(connection)
        get_tasks(connection).after_response.schedule(note, log, "after the endpoint")
        return response

    async with running(app):
        await request(app)
        await turns()
        assert sorted(log[-3:]) == ["after the endpoint", "after_response", "before the endpoint"]


async def test_middleware_that_fails_after_the_response() -> None:
    log: list[str] = []

    class Fails(Lingering):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().__call__(scope, receive, send)
            if scope["type"] == "http":
                raise RuntimeError("too late")

    app = make_app(log, with_middleware(Fails, first=False))
    async with running(app):
        answer = await request(app, log=log)
    assert isinstance(answer.error, RuntimeError)
    assert log == PHASES[:-1]  # the client knows nothing of it, but it is an error
