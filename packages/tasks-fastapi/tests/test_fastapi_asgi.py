"""What the outermost layer makes of applications that are at odds with the response they began."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

import anyio
import pytest
from asgi_spy import EMPTY_BODY, Spy, http_scope, note, receiving, request, running
from core_durable_functions import note as durable_note
from core_engine import ListEngine
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tasks_core import DurableTask, Outcome, PhaseInfo, TaskObserver, TaskState, observe
from tasks_fastapi import RequestOrigin, add_tasks, get_tasks

pytestmark = pytest.mark.anyio

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"all of it"}


def made_of(answer: ASGIApp, **options: Any) -> Starlette:
    """An application that answers with *answer*, and nothing around it but the tasks."""

    class Answers:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await (self.app if scope["type"] == "lifespan" else answer)(scope, receive, send)

    app = Starlette()
    add_tasks(app, **options)
    app.add_middleware(Answers)
    return app


async def test_a_response_whose_last_byte_failed_is_cut_off_also_if_the_application_goes_on() -> None:
    log: list[str] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = get_tasks(HTTPConnection(scope))
        tasks.after_response.schedule(note, log, "success")
        tasks.after_response.task(when="error").schedule(note, log, "error")
        await send(START)
        with suppress(OSError):
            await send(BODY)

    async def send(message: Message) -> None:
        if message is BODY:
            raise OSError("connection lost")

    app = made_of(answer)
    async with running(app):
        assert (await request(app, send=send)).error is None
    assert log == ["error"]


async def test_a_last_byte_that_comes_after_the_end_changes_nothing() -> None:
    late: list[Send] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        late.append(send)
        await send(START)

    app = made_of(answer)
    async with running(app):
        scope = http_scope()
        await app(scope, receiving(EMPTY_BODY), Spy())
        origin = get_tasks(HTTPConnection(scope)).origin
        assert isinstance(origin, RequestOrigin)
        assert (origin.outcome, origin.final_outcome) == ("error", "error")
        await late[0](BODY)
        assert (origin.outcome, origin.final_outcome) == ("error", "error")


async def test_observers_see_the_exception_that_left_the_application_until_the_end() -> None:
    seen: list[tuple[str, BaseException | None]] = []
    origins: list[RequestOrigin] = []

    class Watches(TaskObserver):
        def origin_event(self, origin: object, event: str) -> None:
            assert isinstance(origin, RequestOrigin)
            seen.append((event, origin.error))
            origins.append(origin)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        raise failure

    failure = LookupError("nothing there")
    app = made_of(answer)
    async with running(app):
        with observe(Watches()):
            assert (await request(app)).error is failure
    assert seen[0] == ("request_started", None)
    assert seen[-1] == ("request_finished", failure)
    assert origins[0].error is None


async def test_a_durable_task_that_is_asked_for_when_the_response_has_begun_leaves_at_once() -> None:
    engine = ListEngine()
    states: list[TaskState] = []

    async def late(connection: HTTPConnection) -> AsyncIterator[None]:
        yield
        task = get_tasks(connection).after_response.schedule(durable_note, "late")
        with anyio.move_on_after(2):
            await task.wait()
        states.append(task.state)

    app = FastAPI()
    add_tasks(app, engine=engine)

    @app.get("/")
    async def endpoint(_: Annotated[None, Depends(late, scope="request")]) -> None: ...

    async with running(app):
        assert (await request(app)).status == 200
    assert states == [TaskState.SUCCEEDED]


async def test_a_durable_task_in_a_transaction_is_handed_over_also_if_there_is_no_response() -> None:
    engine = ListEngine()
    tasks: list[DurableTask] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        task: Any = get_tasks(HTTPConnection(scope)).schedule(durable_note.configure(transaction="t"), "x")
        tasks.append(task)

    app = made_of(answer, engine=engine)
    async with running(app):
        await request(app)
        with anyio.move_on_after(2):
            await tasks[0].wait()
        assert tasks[0].state is TaskState.SUCCEEDED


class Events(TaskObserver):
    """The events of phases and of the request that observers receive."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def phase_opened(self, phase: PhaseInfo, outcome: Outcome) -> None:
        self.seen.append(f"{phase.name}: {outcome}")

    def origin_event(self, origin: object, event: str) -> None:
        self.seen.append(event)


async def test_observers_hear_of_phases_that_are_over_when_somebody_asks_for_tasks() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        get_tasks(HTTPConnection(scope))
        await send(BODY)

    events, scope = Events(), http_scope()
    app = made_of(answer)
    async with running(app):
        with observe(events):
            await app(scope, receiving(EMPTY_BODY), Spy())
            during = [event for event in events.seen if event.startswith("after_")]
            events.seen.clear()
            get_tasks(HTTPConnection(scope))  # made anew: the request is over, and keeps nothing
    assert during == ["after_route: success", "after_response: success"]
    assert events.seen == ["after_route: success", "after_response: success"]


async def test_a_response_that_begins_twice_ends_the_route_once() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(START)
        await send(BODY)

    events = Events()
    app = made_of(answer)
    async with running(app):
        with observe(events):
            await request(app)
    assert events.seen.count("route_returned") == 1


async def test_what_an_application_sends_after_its_response_was_replaced_is_ignored() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        get_tasks(HTTPConnection(scope)).after_response.schedule(durable_note, "x")
        try:
            await send(START)
        except Exception:
            await send({**START, "status": 418})
            await send(BODY)

    app = made_of(answer, engine=ListEngine(down=True))
    async with running(app):
        answered = await request(app)
    assert (answered.status, answered.error) == (503, None)
    assert [message["type"] for message in answered.messages] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("more", [[], [LookupError("something else")]])
async def test_the_replaced_response_explains_a_group_unless_there_is_more_in_it(more: list[Exception]) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        get_tasks(HTTPConnection(scope)).after_response.schedule(durable_note, "x")
        try:
            await send(START)
        except Exception as error:
            group = ExceptionGroup("of a task group", [error, *more])
            raise group from None

    app = made_of(answer, engine=ListEngine(down=True))
    async with running(app):
        answered = await request(app)
    assert answered.status == 503
    assert isinstance(answered.error, ExceptionGroup) == bool(more)
