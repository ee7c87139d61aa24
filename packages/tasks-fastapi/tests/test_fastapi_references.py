"""When a request is over and its tasks have ended, nothing of it is kept, and no cycle waits for the collector."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from asgi_spy import EMPTY_BODY, Spy, http_scope, receiving, running, turns
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send
from tasks_core import TaskObserver, observe
from tasks_fastapi import TaskConfig, add_tasks, get_scheduler, get_tasks

pytestmark = pytest.mark.anyio


class Payload:
    """An argument of a task, and a local variable of an endpoint."""

    async def work(self) -> None: ...

    async def fail(self) -> None:
        raise ValueError("boom")


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def handled(_task: object, _error: Exception) -> bool:
    """Not a plain function: its thread would keep the exception for a moment after the task has ended."""
    return True


class Endpoint:
    """A bare ASGI application: what the framework around it keeps is not the question here."""

    def __init__(self, behaviour: Callable[[Any, Send], Any], alive: list[weakref.ref[Any]]) -> None:
        self.behaviour = behaviour
        self.alive = alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        payload = Payload()
        tasks = get_tasks(Request(scope))
        self.alive.append(weakref.ref(payload))
        tasks.schedule(payload.work)
        tasks.after_route.schedule(payload.work)
        tasks.after_response.task(when="always").schedule(payload.work)
        tasks.after_response.task(when="always").schedule(payload.fail)
        tasks.after_response.task(when="error").schedule(payload.work)
        await self.behaviour(scope, send)


async def answers(_scope: Scope, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


async def fails_before(_scope: Scope, _send: Send) -> None:
    raise RuntimeError("before the response")


async def fails_during(_scope: Scope, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("during the response")


async def fails_after(scope: Scope, send: Send) -> None:
    await answers(scope, send)
    raise RuntimeError("after the response")


async def asks_again_when_it_is_over(scope: Scope, send: Send) -> None:
    async def ask_again() -> None:
        get_tasks(Request(scope)).after_response.schedule(turns)

    get_tasks(Request(scope)).after_response.schedule(ask_again)
    await answers(scope, send)


class Gone(Spy):
    """The client goes when the response has begun."""

    async def __call__(self, message: Message) -> None:
        await super().__call__(message)
        if self.answer.body:
            raise OSError("gone")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("lifespan", [True, False])
@pytest.mark.parametrize("send_type", [Spy, Gone])
@pytest.mark.parametrize("behaviour", [answers, fails_before, fails_during, fails_after, asks_again_when_it_is_over])
async def test_nothing_is_kept(
    behaviour: Callable[[Any, Send], Any], send_type: type[Spy], lifespan: bool, observed: bool
) -> None:
    alive: list[weakref.ref[Any]] = []
    app = Starlette(routes=[])
    app.router.default = Endpoint(behaviour, alive)
    add_tasks(app, config=TaskConfig(on_error=handled))

    async def one_request() -> None:
        send = send_type()
        alive.append(weakref.ref(send))
        with suppress(RuntimeError, OSError):
            await app(http_scope(), receiving(EMPTY_BODY), send)
        await turns(50)

    async def requests() -> None:
        await one_request()
        await one_request()

    subscription = observe(TaskObserver()) if observed else None
    if lifespan:
        async with running(app):
            await requests()
            await until_nothing_runs(app)
            assert [reference() for reference in alive] == [None] * 4
    else:
        await requests()
        assert [reference() for reference in alive] == [None] * 4
    if subscription is not None:
        subscription.close()


async def until_nothing_runs(app: Starlette) -> None:
    while True:
        statistics = get_scheduler(app).statistics()
        if not statistics.pending + statistics.running + statistics.retrying:
            break
        await turns()
    await turns()


@pytest.mark.usefixtures("no_collector")
async def test_nothing_is_kept_of_a_request_without_tasks() -> None:
    app = Starlette(routes=[])

    async def plain(scope: Scope, _receive: Receive, send: Send) -> None:
        await answers(scope, send)

    app.router.default = plain
    add_tasks(app)
    async with running(app):
        send = Spy()
        alive = weakref.ref(send)
        await app(http_scope(), receiving(EMPTY_BODY), send)
        del send
        assert alive() is None
