"""A client follows a durable task: a worker emits, and any web process serves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from asgi_spy import DISCONNECT, Answer, receiving, request, running
from core_engine import ListEngine
from core_postgres import postgres, queue, working
from fastapi import FastAPI
from starlette.types import Message
from tasks_core import Receipt, durable, emit, report
from tasks_core.engines import (
    DurableCall,
    DurableEnd,
    DurableStatus,
    EngineCapabilityError,
    EngineUnavailableError,
    FollowedCall,
)
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.exceptions import TasksError
from tasks_fastapi import Tasks, add_tasks
from tasks_fastapi.jobs import Job, MakeJob, RequestedJob, jobs_router
from tasks_testing import InMemoryEngine, record_tasks

__all__ = ("postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def engine(postgres: str, queue: str) -> AsyncIterator[ProcrastinateEngine]:
    global go_on
    go_on = anyio.Event()
    async with ProcrastinateEngine(postgres, queue=queue, heartbeat=0.5) as engine:
        yield engine


go_on = anyio.Event()


@durable
async def generate(words: int) -> str:
    for number in range(words):
        emit({"word": number})
    report(0.5)
    await go_on.wait()
    emit("last")
    return "all"


@durable(retry=None)
async def fail() -> None:
    raise ValueError("the password is 1234")


def make_app(engine: Any, **options: Any) -> FastAPI:
    """One web process of several."""
    app = FastAPI()
    add_tasks(app, engine=engine, **options)

    async def is_owner(job: RequestedJob, user: str = "ann") -> bool:
        return job.owner == user

    app.include_router(jobs_router(authorize=is_owner), prefix="/jobs")

    @app.post("/answers", status_code=202)
    async def answer(tasks: Tasks, job: MakeJob) -> Job[str]:
        return job(tasks.after_response.schedule(generate, 3), owner="ann")

    @app.post("/answers/{key}", status_code=202)
    async def answer_once(key: str, tasks: Tasks, job: MakeJob, user: str = "ann") -> Job[str]:
        return job(tasks.schedule(generate.configure(idempotency_key=key), 3), owner=user)

    @app.post("/failures", status_code=202)
    async def failure(tasks: Tasks, job: MakeJob) -> Job[None]:
        return job(tasks.schedule(fail), owner="ann")

    return app


def events(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith((":", "retry"))]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


class Reader:
    def __init__(self) -> None:
        self.text = ""
        self._came = anyio.Event()

    async def __call__(self, message: Message) -> None:
        self.text += message.get("body", b"").decode()
        self._came.set()
        self._came = anyio.Event()

    async def until(self, text: str) -> None:
        with anyio.fail_after(30):
            while text not in self.text:
                await self._came.wait()


async def read(app: FastAPI, path: str) -> tuple[int, Any]:
    answer = await request(app, path)
    return answer.status, json.loads(answer.body)


async def ended(app: FastAPI, path: str) -> list[dict[str, str]]:
    with anyio.fail_after(30):
        answer = await request(app, f"{path}/events")
    return events(answer.body.decode())


async def test_a_worker_emits_and_another_web_process_serves(engine: ProcrastinateEngine) -> None:
    one, other = make_app(engine), make_app(engine)
    async with running(one), running(other):
        accepted = await request(one, "/answers", "POST")
        path = accepted.headers["location"]
        assert (accepted.status, json.loads(accepted.body)["state"]) == (202, "pending")
        assert (await read(other, path))[1]["state"] == "pending"
        async with working(engine):
            reader, gone = Reader(), anyio.Event()

            async def receive() -> Message:
                await gone.wait()
                return DISCONNECT

            async with anyio.create_task_group() as group:

                async def follow() -> None:
                    await request(other, f"{path}/events", receive=receive, send=reader)

                group.start_soon(follow)
                await reader.until("event: progress")
                gone.set()  # the client loses its connection, and comes again to the first process
            _, job = await read(other, path)
            assert (job["state"], job["progress"]) == ("running", 0.5)
            assert [event.get("id") for event in events(reader.text) if "id" in event] == ["1", "2", "3"]
            go_on.set()
            rest = await request(one, f"{path}/events", headers=[(b"last-event-id", b"3")])
            *before, end = events(rest.body.decode())
            # The progress comes first if the worker has not stored the event yet.
            assert sorted(before, key=str) == sorted(
                [{"id": "4", "data": '"last"'}, {"event": "progress", "data": "0.5"}], key=str
            )
            assert (end["event"], end["id"], json.loads(end["data"])["state"]) == ("end", "4-end", "succeeded")


async def test_a_stream_ends_with_its_process_and_goes_on_in_the_next(engine: ProcrastinateEngine) -> None:
    async with working(engine):
        app = make_app(engine)
        reader = Reader()
        async with anyio.create_task_group() as group:
            async with running(app):
                path = (await request(app, "/answers", "POST")).headers["location"]

                async def follow() -> None:
                    await request(app, f"{path}/events", receive=receiving(), send=reader)

                group.start_soon(follow)
                await reader.until("id: 3\n")
            await reader.until("event: shutdown")
        assert '{"resume_after":3}' in reader.text
        go_on.set()
        app = make_app(engine)
        async with running(app):
            rest = await request(app, f"{path}/events", headers=[(b"last-event-id", b"3")])
            assert [event["id"] for event in events(rest.body.decode()) if "id" in event] == ["4", "4-end"]


async def test_a_job_that_failed_says_nothing_of_the_exception(engine: ProcrastinateEngine) -> None:
    app = make_app(engine)
    async with running(app), working(engine):
        path = (await request(app, "/failures", "POST")).headers["location"]
        [end] = await ended(app, path)
        job = json.loads(end["data"])
        assert (job["state"], job["error"]["title"]) == ("failed", "The job failed")
        assert "1234" not in end["data"]


async def test_foreign_and_unknown_ids_look_the_same(engine: ProcrastinateEngine) -> None:
    app = make_app(engine)
    async with running(app):
        path = (await request(app, "/answers", "POST")).headers["location"]
        foreign = await request(app, path, query_string=b"user=bob")
        unknown = await request(app, "/jobs/d-guess", query_string=b"user=bob")
        assert foreign.status == unknown.status == 404
        assert foreign.body == unknown.body


async def test_a_call_that_makes_no_new_task_has_the_job_that_there_is(engine: ProcrastinateEngine) -> None:
    go_on.set()
    app = make_app(engine)
    async with running(app), working(engine):
        first, second = [(await request(app, "/answers/17", "POST")).headers["location"] for _ in range(2)]
        assert first != second
        for path in (second, first):
            assert [event["id"] for event in await ended(app, path) if "id" in event] == ["1", "2", "3", "4", "4-end"]
            assert (await read(app, path))[1]["result"] == "all"
        foreign = await request(app, "/answers/17", "POST", query_string=b"user=bob")
        answer = await request(app, foreign.headers["location"], query_string=b"user=bob")
        assert (foreign.status, answer.status) == (202, 404)  # it is the job of ann


class AwayEngine(InMemoryEngine):
    """An engine that acknowledges nothing."""

    async def submit(self, call: DurableCall, /, *, transaction: Any = None) -> Receipt[Any]:
        raise EngineUnavailableError("away")

    async def find_followed(self, token: str, /) -> FollowedCall | None:
        raise EngineUnavailableError("away")


@pytest.mark.parametrize(
    "engine, options", [(AwayEngine(), {"engine_fallback": "memory"}), (None, {"without_engine": "memory"})]
)
async def test_a_job_that_runs_in_this_process_in_place_of_a_worker_is_followed_here(
    engine: Any, options: dict[str, Any]
) -> None:
    go_on.set()
    app = make_app(engine, **options)
    async with running(app):
        accepted = await request(app, "/answers", "POST")
        path = accepted.headers["location"]
        assert [event["id"] for event in await ended(app, path) if "id" in event] == ["1", "2", "3", "4", "4-end"]
        status, job = await read(app, path)
        assert (status, job["id"], job["result"]) == (200, json.loads(accepted.body)["id"], "all")
        assert (await request(app, path, query_string=b"user=bob")).status == 404


async def test_without_an_engine_a_call_that_makes_no_new_task_has_the_job_that_there_is() -> None:
    go_on.set()
    app = make_app(None, without_engine="memory")
    async with running(app):
        first, second = [(await request(app, "/answers/17", "POST")).headers["location"] for _ in range(2)]
        for path in (first, second):
            assert [event["id"] for event in await ended(app, path) if "id" in event] == ["1", "2", "3", "4", "4-end"]
        foreign = await request(app, "/answers/17", "POST", query_string=b"user=bob")
        answer = await request(app, foreign.headers["location"], query_string=b"user=bob")
        assert (first != second, foreign.status, answer.status) == (True, 202, 404)


async def test_an_engine_that_stores_no_events_says_so_at_the_call() -> None:
    app = make_app(ListEngine())
    async with running(app):
        answer = await request(app, "/answers", "POST")
        assert isinstance(answer.error, EngineCapabilityError)
        assert "cannot be followed: list stores no events" in str(answer.error)


class WithVerbs:
    """A receipt of an engine that stores results and cancels."""

    def __init__(self, receipt: Receipt[Any], outcome: Any) -> None:
        self._receipt = receipt
        self._outcome = outcome
        self.status = receipt.status
        self.id = receipt.id
        self.cancelled = False

    async def result(self) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    async def cancel(self) -> bool:
        self.cancelled = True
        return True


class Modest:
    """What an engine says that stores no results and cannot cancel."""

    def __init__(self, receipt: Receipt[Any]) -> None:
        self._receipt = receipt

    async def status(self, receipt_id: str, /) -> DurableStatus:
        return await self._receipt.status()

    async def ended(self, receipt_id: str, /) -> DurableEnd:
        raise EngineCapabilityError("it stores no results")

    async def cancel(self, receipt_id: str, /) -> int:
        raise EngineCapabilityError("cannot cancel")


def without_verbs(receipt: Receipt[Any]) -> Receipt[Any]:
    return replace(receipt, source=Modest(receipt))


@pytest.fixture
def receipts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What becomes of receipts: their class, and the outcome that it gives."""
    made: dict[str, Any] = {}
    find = ProcrastinateEngine.find_followed

    async def find_followed(self: ProcrastinateEngine, token: str) -> Any:
        call = await find(self, token)
        if call is None or "make" not in made:
            return call
        made["receipt"] = made["make"](call.receipt)
        return replace(call, receipt=made["receipt"])

    monkeypatch.setattr(ProcrastinateEngine, "find_followed", find_followed)
    return made


async def test_the_result_is_that_of_the_receipt(
    engine: ProcrastinateEngine, receipts: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(engine)
    go_on.set()
    async with running(app), working(engine):
        path = (await request(app, "/answers", "POST")).headers["location"]
        await ended(app, path)
        receipts["make"] = lambda receipt: WithVerbs(receipt, {"text": "all"})
        assert (await read(app, path))[1]["result"] == {"text": "all"}
        receipts["make"] = without_verbs
        assert (await read(app, path))[1]["result"] is None
        receipts["make"] = lambda receipt: WithVerbs(receipt, TasksError("it is not stored"))
        _, job = await read(app, path)
        assert (job["result"], job["error"]["title"]) == (None, "The result cannot be given as JSON")
        assert "it is not stored" in caplog.text
        receipts["make"] = lambda receipt: WithVerbs(receipt, EngineUnavailableError("away"))
        answer: Answer = await request(app, path)
        assert isinstance(answer.error, EngineUnavailableError)


async def test_a_job_is_cancelled_by_its_receipt(engine: ProcrastinateEngine, receipts: dict[str, Any]) -> None:
    app = make_app(engine)
    async with running(app):
        path = (await request(app, "/answers", "POST")).headers["location"]
        receipts["make"] = lambda receipt: WithVerbs(receipt, None)
        answer = await request(app, path, "DELETE")
        assert (answer.status, receipts["receipt"].cancelled) == (202, True)
        receipts["make"] = without_verbs
        answer = await request(app, path, "DELETE")
        assert (answer.status, json.loads(answer.body)["title"]) == (501, "The engine of this job cancels no tasks")


async def test_a_job_is_followed_in_a_test_without_a_database() -> None:
    go_on.set()
    app = make_app(ListEngine())
    with record_tasks() as recorder:
        async with running(app):
            path = (await request(app, "/answers", "POST")).headers["location"]
            await anyio.to_thread.run_sync(recorder.run_durable)
            assert [event.get("id") for event in await ended(app, path) if "id" in event] == [
                "1",
                "2",
                "3",
                "4",
                "4-end",
            ]
            assert (await read(app, path))[1]["progress"] == 0.5
    assert recorder.durable_runs.one(generate).emitted[-1] == "last"
