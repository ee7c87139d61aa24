"""The part of a server, played by hand: it drives an ASGI application and notes what the application says, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskStatus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

EMPTY_BODY: Message = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT: Message = {"type": "http.disconnect"}


async def turns(number: int = 10) -> None:
    """Run everything that can run, so that a task that starts too early is noticed."""
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


def assert_order(log: list[str], *steps: str | set[str]) -> None:
    """Check that *log* is these *steps*; a set in any order, as tasks that start together have it on trio."""
    rest = list(log)
    for step in steps:
        expected = {step} if isinstance(step, str) else step
        assert set(rest[: len(expected)]) == expected, f"expected {expected} where {rest} begins, in {log}"
        del rest[: len(expected)]
    assert not rest, f"did not expect {rest} at the end of {log}"


async def note(log: list[str], text: str) -> None:
    """A task that leaves a trace."""
    log.append(text)


@dataclass
class Answer:
    """What an application said to one request, and how its call ended."""

    messages: list[Message] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int:
        return next((m["status"] for m in self.messages if m["type"] == "http.response.start"), 0)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    @property
    def headers(self) -> dict[str, str]:
        start = next(m for m in self.messages if m["type"] == "http.response.start")
        return {name.decode(): value.decode() for name, value in start["headers"]}


class Spy:
    """The `send` of one request. Each message takes many turns of the loop: time enough to do something too early."""

    def __init__(self, log: list[str] | None = None) -> None:
        self.log = [] if log is None else log
        self.answer = Answer()

    async def __call__(self, message: Message) -> None:
        text = describe(message)
        self.log.append(text)
        await turns()
        self.answer.messages.append(message)
        if text == "last byte":
            self.log.append("last byte sent")


def describe(message: Message) -> str:
    """Name a message as tests expect it in the log."""
    match message:
        case {"type": "http.response.start", "status": status}:
            return f"start {status}"
        case {"type": "http.response.body", "more_body": True}:
            return "some bytes"
        case {"type": "http.response.body"}:
            return "last byte"
        case {"type": kind}:
            return str(kind).removeprefix("http.response.").removeprefix("websocket.")
    raise AssertionError(message)


def http_scope(path: str = "/", method: str = "GET", **more: Any) -> Scope:
    """What a server says of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        **more,
    }


def receiving(*messages: Message) -> Receive:
    """Make a `receive` that gives these messages, and then nothing ever again."""
    rest = iter(messages)

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        for message in rest:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    return receive


async def request(
    app: ASGIApp,
    path: str = "/",
    method: str = "GET",
    *,
    log: list[str] | None = None,
    receive: Receive | None = None,
    send: Send | None = None,
    **more: Any,
) -> Answer:
    """Send one request, and return when the application has returned. Its exception is kept, as a server does."""
    spy = Spy(log)
    try:
        await app(http_scope(path, method, **more), receive or receiving(EMPTY_BODY), send or spy)
    except Exception as error:
        spy.answer.error = error
    return spy.answer


async def websocket(app: ASGIApp, path: str, *incoming: str, log: list[str], code: int | None = 1000) -> Answer:
    """Connect, send these texts, and close the connection with *code* (`None`: keep it open)."""
    messages: list[Message] = [{"type": "websocket.connect"}]
    messages += [{"type": "websocket.receive", "text": text} for text in incoming]
    if code is not None:
        messages.append({"type": "websocket.disconnect", "code": code, "reason": ""})
    spy = Spy(log)
    scope = http_scope(path, type="websocket", scheme="ws", subprotocols=[], extensions={"websocket.http.response": {}})
    del scope["method"]
    try:
        await app(scope, receiving(*messages), spy)
    except Exception as error:
        spy.answer.error = error
    return spy.answer


@asynccontextmanager
async def running(
    app: ASGIApp, log: list[str] | None = None, *, state: dict[str, Any] | None = None
) -> AsyncIterator[None]:
    """
    Run the lifespan of an application around the block: startup, then shutdown, as a server does.

    A server passes a copy of *state* with each request: `request(app, state=state.copy())`.
    """
    shared = {} if state is None else state
    spoken: list[str] = [] if log is None else log
    stop = anyio.Event()

    async def live(*, task_status: TaskStatus[None]) -> None:
        async def receive() -> Message:
            if "asked to start" not in begun:
                begun.append("asked to start")
                return {"type": "lifespan.startup"}
            await stop.wait()
            spoken.append("shutdown")
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            spoken.append(message["type"].removeprefix("lifespan."))
            if message["type"] == "lifespan.startup.complete":
                await turns()
                task_status.started()

        begun: list[str] = []
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": shared}, receive, send)

    async with anyio.create_task_group() as group:
        await group.start(live)
        try:
            yield
        finally:
            stop.set()
