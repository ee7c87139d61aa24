"""Phases of every kind of response, and of the ASGI extensions by which a response may end."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asgi_spy import note, request, running, turns
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from tasks_core import TaskObserver, observe
from tasks_fastapi import Tasks, add_tasks, get_tasks

pytestmark = pytest.mark.anyio


def make_app(log: list[str], response: Response) -> FastAPI:
    app = FastAPI()
    add_tasks(app)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def endpoint(tasks: Tasks) -> Response:
        tasks.after_response.schedule(note, log, "after_response")
        tasks.after_route.schedule(note, log, "after_route")
        return response

    return app


async def events() -> AsyncIterator[str]:
    for number in range(3):
        yield f"data: {number}\n\n"
        await turns()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "response, status, parts",
    [
        (Response(status_code=204), 204, 0),
        (JSONResponse({"a": 1}), 200, 0),
        (HTMLResponse("<p>"), 200, 0),
        (RedirectResponse("/elsewhere"), 307, 0),
        (FileResponse(__file__), 200, None),
        (StreamingResponse(events(), media_type="text/event-stream"), 200, 3),
        (JSONResponse({}, background=BackgroundTask(turns)), 200, 0),
    ],
    ids=["empty", "json", "html", "redirect", "file", "events", "background"],
)
async def test_response(method: str, response: Response, status: int, parts: int | None) -> None:
    log: list[str] = []
    app = make_app(log, response)
    async with running(app):
        assert (await request(app, method=method, log=log)).status == status
    assert log[:2] == [f"start {status}", "after_route"]
    assert log[-3:] == ["last byte", "last byte sent", "after_response"]
    between = log[2:-3]
    assert between == ["some bytes"] * len(between)
    assert parts is None or len(between) in (parts, 0)


async def test_file_sent_by_the_server() -> None:
    """`http.response.pathsend`: the server opens the file itself."""
    log: list[str] = []
    app = make_app(log, FileResponse(__file__))
    async with running(app):
        answer = await request(app, log=log, extensions={"http.response.pathsend": {}})
    assert Path(answer.messages[-1]["path"]) == Path(__file__)
    assert log == ["start 200", "after_route", "pathsend", "after_response"]


START: Message = {"type": "http.response.start", "status": 200, "headers": []}
START_WITH_TRAILERS: Message = {**START, "trailers": True}
BODY: Message = {"type": "http.response.body", "body": b"x"}
MORE_BODY: Message = {**BODY, "more_body": True}
TRAILERS: Message = {"type": "http.response.trailers", "headers": []}
MORE_TRAILERS: Message = {**TRAILERS, "more_trailers": True}
ZERO_COPY: Message = {"type": "http.response.zerocopysend", "file": 0}
MORE_ZERO_COPY: Message = {**ZERO_COPY, "more_body": True}
PATH: Message = {"type": "http.response.pathsend", "path": "/"}
PUSH: Message = {"type": "http.response.push", "path": "/", "headers": []}
EARLY_HINT: Message = {"type": "http.response.early_hint", "links": []}


class Sent(TaskObserver):
    """Notes after which message the response was complete."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.complete_after: list[int] = []

    def origin_event(self, origin: object, event: str) -> None:
        if event == "response_sent":
            self.complete_after.append(len(self.messages))


@pytest.mark.parametrize(
    "messages, complete_after",
    [
        ([START, BODY], 2),
        ([START, MORE_BODY, BODY], 3),
        ([START, MORE_BODY], None),
        ([START], None),
        ([EARLY_HINT, START, PUSH, BODY], 4),
        ([START_WITH_TRAILERS, BODY, TRAILERS], 3),
        ([START_WITH_TRAILERS, BODY, MORE_TRAILERS, TRAILERS], 4),
        ([START_WITH_TRAILERS, BODY], None),
        ([START_WITH_TRAILERS, BODY, MORE_TRAILERS], None),
        ([START, ZERO_COPY], 2),
        ([START, MORE_ZERO_COPY, ZERO_COPY], 3),
        ([START, MORE_ZERO_COPY, BODY], 3),
        ([START, PATH], 2),
        ([START_WITH_TRAILERS, PATH, TRAILERS], 3),
        ([START_WITH_TRAILERS, PATH], None),
        ([START, BODY, BODY], 2),  # the second one is against the protocol, and changes nothing
    ],
)
async def test_when_a_response_is_complete(messages: list[Message], complete_after: int | None) -> None:
    log: list[str] = []
    sent: list[Message] = []
    observer = Sent(sent)

    class Plain:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            tasks = get_tasks(Request(scope))
            tasks.after_response.task(when="success").schedule(note, log, "success")
            tasks.after_response.task(when="error").schedule(note, log, "error")
            for message in messages:
                await send(message)

    async def send(message: Message) -> None:
        await turns()
        sent.append(message)

    app = Starlette(routes=[Route("/", Plain())])
    add_tasks(app)
    async with running(app):
        with observe(observer):
            await request(app, send=send)
    assert sent == messages
    assert observer.complete_after == ([] if complete_after is None else [complete_after])
    assert log == ["error" if complete_after is None else "success"]


class Timeline(TaskObserver):
    def __init__(self) -> None:
        self.events: list[str] = []

    def origin_event(self, origin: Any, event: str) -> None:
        self.events.append(f"{event} {origin.status}")


async def test_what_observers_are_told_about_a_request() -> None:
    timeline = Timeline()
    app = make_app([], JSONResponse({}, status_code=201))
    async with running(app):
        with observe(timeline):
            await request(app)
    assert timeline.events == [
        "request_started 0",
        "route_returned 201",
        "response_started 201",
        "response_sent 201",
        "request_finished 201",
    ]


async def test_what_observers_are_told_about_a_request_without_a_response() -> None:
    class Silent:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    timeline = Timeline()
    app = Starlette(routes=[Route("/", Silent())])
    add_tasks(app)
    async with running(app):
        with observe(timeline):
            await request(app)
    assert timeline.events == ["request_started 0", "route_returned 0", "request_finished 0"]
