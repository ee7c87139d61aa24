"""A client follows a task: 202 Accepted, state, progress, result, and a stream that can be resumed."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import pytest
from asgi_spy import DISCONNECT, EMPTY_BODY, Answer, receiving, request, running, turns
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient
from starlette.types import Message
from tasks_core import Task, TaskScheduler, emit, report
from tasks_core.exceptions import InvalidConfigError
from tasks_fastapi import Tasks, add_tasks, get_scheduler
from tasks_fastapi.exceptions import TasksInstallationError
from tasks_fastapi.jobs import Job, JobLinks, MakeJob, RequestedJob, jobs_router
from tasks_fastapi.jobs._followed import JobInMemory

pytestmark = pytest.mark.anyio


@dataclass
class Answered:
    text: str
    words: int


class Application:
    """An application with one kind of job, whose steps the test allows."""

    def __init__(self, **options: Any) -> None:
        self.app = FastAPI()
        self.tasks: list[Task[Any]] = []
        self.ready = anyio.Event()
        self.go_on = anyio.Event()
        self.outcome: Callable[[], Any] = lambda: Answered("all", 3)
        add_tasks(self.app, **options.pop("tasks", {}))
        self.app.include_router(jobs_router(**({"ids_are_enough": True} | options)), prefix="/jobs")

        async def generate(words: int) -> Any:
            for number in range(words):
                emit({"word": number})
            report(0.5)
            self.ready.set()
            await self.go_on.wait()
            emit({"word": "last"})
            return self.outcome()

        @self.app.post("/answers", status_code=202)
        async def answer(tasks: Tasks, job: MakeJob, words: int = 2, owner: str | None = None) -> Job[Answered]:
            self.tasks.append(tasks.schedule(generate, words))
            return job(self.tasks[-1], owner=owner)

    @asynccontextmanager
    async def started(self, query: str = "") -> AsyncIterator[str]:
        """Run the application, and start a job; the path of the job."""
        async with running(self.app):
            yield await self.post(query)
            self.go_on.set()

    async def post(self, query: str = "") -> str:
        answer = await request(self.app, "/answers", "POST", query_string=query.encode())
        assert answer.status == 202
        await self.ready.wait()
        return answer.headers["location"]

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        given = [(b"host", b"test"), *((name.replace("_", "-").encode(), v.encode()) for name, v in headers.items())]
        return await request(self.app, path, method, headers=given)


class Reader:
    """A client that reads a stream, and may be slow."""

    def __init__(self) -> None:
        self.text = ""
        self.complete = False
        self.may_read = anyio.Event()
        self.may_read.set()
        self._came = anyio.Event()

    async def __call__(self, message: Message) -> None:
        await self.may_read.wait()
        if message["type"] == "http.response.body":
            self.text += message["body"].decode()
            self.complete = not message["more_body"]
        self._came.set()
        self._came = anyio.Event()

    async def until(self, text: str) -> None:
        while text not in self.text:
            await self._came.wait()

    @property
    def events(self) -> list[dict[str, str]]:
        blocks = [block for block in self.text.split("\n\n") if block and not block.startswith(":")]
        return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks[1:]]


@asynccontextmanager
async def reading(app: FastAPI, path: str, **more: Any) -> AsyncIterator[Reader]:
    """Read a stream while the block runs, to its end or until the client goes away."""
    reader = Reader()
    gone = anyio.Event()

    async def receive() -> Message:
        await gone.wait()
        return DISCONNECT

    async def read() -> None:
        answer = await request(app, path, receive=receive, send=reader, **more)
        assert answer.error is None

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        yield reader
        gone.set()


def parsed(answer: Answer) -> list[dict[str, str]]:
    reader = Reader()
    reader.text = answer.body.decode()
    return reader.events


# ---- accepted, state, result ----


async def test_the_response_has_what_a_client_needs_to_go_on() -> None:
    application = Application()
    async with running(application.app):
        answer = await request(application.app, "/answers", "POST")
        job = json.loads(answer.body)
        assert answer.status == 202
        assert answer.headers["location"] == job["links"]["self"] == f"/jobs/{job['id']}"
        assert job["links"]["events"] == f"/jobs/{job['id']}/events"
        assert len(job["id"]) > 30
        assert (job["state"], job["progress"], job["result"], job["error"]) == ("pending", None, None, None)
        application.go_on.set()


async def test_links_have_the_prefix_of_the_proxy() -> None:
    application = Application()
    async with running(application.app):
        answer = await request(application.app, "/api/answers", "POST", root_path="/api")
        assert answer.headers["location"].startswith("/api/jobs/")
        application.go_on.set()


async def test_a_client_reads_state_progress_and_result() -> None:
    application = Application()
    async with application.started() as path:
        job = json.loads((await application.get(path)).body)
        assert (job["state"], job["progress"], job["result"], job["error"]) == ("running", 0.5, None, None)
        application.go_on.set()
        await application.tasks[0].wait()
        answer = await application.get(path)
        job = json.loads(answer.body)
        assert (job["state"], job["result"]) == ("succeeded", {"text": "all", "words": 3})
        assert job["links"]["self"] == path


async def test_a_job_that_failed_says_nothing_of_the_exception() -> None:
    def fail() -> None:
        raise ValueError("the password is 1234")

    application = Application()
    application.outcome = fail
    async with application.started() as path:
        application.go_on.set()
        await application.tasks[0].wait()
        answer = await application.get(path)
        assert json.loads(answer.body)["error"] == {
            "type": "about:blank",
            "title": "The job failed",
            "status": 500,
            "detail": None,
        }
        assert b"1234" not in answer.body
        assert json.loads(answer.body)["state"] == "failed"


async def test_a_result_that_is_no_json_is_a_problem_and_a_line(caplog: pytest.LogCaptureFixture) -> None:
    application = Application()
    application.outcome = object
    async with application.started() as path:
        application.go_on.set()
        await application.tasks[0].wait()
        job = json.loads((await application.get(path)).body)
        assert (job["state"], job["result"]) == ("succeeded", None)
        assert job["error"]["title"] == "The result cannot be given as JSON"
    assert [r.levelname for r in caplog.records if "cannot be given to its client" in r.getMessage()] == ["ERROR"]


async def test_a_client_cancels() -> None:
    application = Application()
    async with application.started() as path:
        answer = await application.get(path, "DELETE")
        assert answer.status == 202
        await application.tasks[0].wait()
        answer = await application.get(path, "DELETE")
        job = json.loads(answer.body)
        assert (answer.status, job["state"], job["error"]["title"]) == (200, "cancelled", "The job was cancelled")


async def test_a_job_that_never_started_says_so() -> None:
    application = Application(tasks={"max_concurrency": 1, "grace_period": 0})
    async with running(application.app):
        await application.post()
        second = await request(application.app, "/answers", "POST")
        scheduler = get_scheduler(application.app)
        task = application.tasks[1]
        kept = scheduler.find_kept(json.loads(second.body)["id"])
        assert kept is not None

    job = await JobInMemory(kept.id, kept.task).read(JobLinks(self="", events=""))
    assert (job.state, task.state) == ("discarded", "discarded")
    assert job.error is not None
    assert job.error.title == "The job was not started"


async def test_a_job_is_forgotten_after_its_time() -> None:
    application = Application(tasks={"follow_for": 0})
    async with application.started() as path:
        assert (await application.get(path)).status == 200
        application.go_on.set()
        await application.tasks[0].wait()
        assert (await application.get(path)).status == 404


async def test_job_needs_the_router() -> None:
    app = FastAPI()
    add_tasks(app)
    kept: list[TaskScheduler] = []

    @app.post("/answers")
    async def answer(tasks: Tasks, job: MakeJob) -> Job[None]:
        task = tasks.schedule(turns)
        kept.append(task.scheduler)
        return job(task)

    async with running(app):
        answered = await request(app, "/answers", "POST")
        assert isinstance(answered.error, TasksInstallationError)
        assert 'app.include_router(jobs_router(authorize=...), prefix="/jobs")' in str(answered.error)


# ---- who may follow ----


async def current_user(x_user: Annotated[str | None, Header()] = None) -> str:
    if x_user is None:
        raise HTTPException(401)
    return x_user


async def is_owner(job: RequestedJob, user: Annotated[str, Depends(current_user)]) -> bool:
    return job.owner == user


@pytest.mark.parametrize("options", [{}, {"authorize": turns, "ids_are_enough": True}])
async def test_the_router_is_told_who_may_follow(options: Any) -> None:
    with pytest.raises(InvalidConfigError, match="needs to know who may follow a job"):
        jobs_router(**options)


@pytest.mark.parametrize("name", ["heartbeat", "client_timeout"])
@pytest.mark.parametrize("value", [0, -1, "15", None])
async def test_seconds_are_checked(name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises(InvalidConfigError, match=f"{name} must be a number of seconds above 0"):
        jobs_router(ids_are_enough=True, **options)


async def test_each_request_is_authorized() -> None:
    application = Application(ids_are_enough=False, authorize=is_owner)
    async with application.started("owner=ann") as path:
        assert (await application.get(path, x_user="ann")).status == 200
        for method, url in [("GET", path), ("DELETE", path), ("GET", f"{path}/events")]:
            foreign = await application.get(url, method, x_user="bob")
            unknown = await application.get(url.replace(path[-4:], "guess"), method, x_user="bob")
            assert foreign.status == unknown.status == 404
            assert foreign.body == unknown.body
            assert foreign.headers == unknown.headers
            assert foreign.headers["content-type"] == "application/problem+json"
            for asked in (url, url.replace(path[-4:], "guess")):
                assert (await application.get(asked, method)).status == 401
        assert not application.tasks[0].finished


async def test_authorize_says_yes_or_no() -> None:
    async def forgets() -> None:
        pass

    application = Application(ids_are_enough=False, authorize=forgets)
    async with application.started() as path:
        answer = await application.get(path)
        assert isinstance(answer.error, TypeError)
        assert "returned 'NoneType'. It returns True or False" in str(answer.error)


async def test_another_process_says_what_to_do() -> None:
    one, other = Application(), Application()
    async with one.started() as path, running(other.app):
        for asked in (path, f"{path}/events"):
            answer = await other.get(asked)
            problem = json.loads(answer.body)
            assert (answer.status, problem["title"]) == (404, "No such job in this process")
            assert "make the task durable, or route all requests of one client to one process" in problem["detail"]


# ---- the stream ----


async def test_a_stream_has_events_progress_and_the_end() -> None:
    application = Application()
    async with application.started() as path, reading(application.app, f"{path}/events") as reader:
        await reader.until("event: progress")
        assert reader.text.startswith("retry: 1000\n\n")
        assert reader.events == [
            {"id": "1", "data": '{"word":0}'},
            {"id": "2", "data": '{"word":1}'},
            {"event": "progress", "data": "0.5"},
        ]
        application.go_on.set()
        await reader.until("event: end")
        *_, last, end = reader.events
        assert last == {"id": "3", "data": '{"word":"last"}'}
        assert (end["id"], end["event"]) == ("3-end", "end")
        assert json.loads(end["data"])["result"] == {"text": "all", "words": 3}
        await turns()
        assert reader.complete


async def test_the_headers_keep_proxies_from_storing_the_stream() -> None:
    application = Application()
    async with application.started() as path:
        application.go_on.set()
        answer = await application.get(f"{path}/events")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("at", range(4))
async def test_a_stream_that_was_cut_goes_on_without_a_gap_or_a_double(at: int) -> None:
    application = Application()
    async with application.started() as path:
        application.go_on.set()
        whole = parsed(await application.get(f"{path}/events"))
        expected = [event for event in whole if event.get("id", "0-").split("-")[0] > str(at) or "event" in event]
        assert parsed(await application.get(f"{path}/events", last_event_id=str(at))) == expected
        answer = await request(application.app, f"{path}/events", query_string=f"after={at}".encode())
        assert parsed(answer) == expected


async def test_a_browser_that_has_the_end_does_not_come_again() -> None:
    application = Application()
    async with application.started() as path:
        answer = await application.get(f"{path}/events", last_event_id="3-end")
        assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize("value", ["x", "-1", "3-ended", "9" * 20])
async def test_a_number_that_is_none_is_refused(value: str) -> None:
    application = Application()
    async with application.started() as path:
        assert (await application.get(f"{path}/events", last_event_id=value)).status == 422


async def test_a_client_that_goes_away_cancels_nothing() -> None:
    application = Application()
    async with application.started() as path:
        async with reading(application.app, f"{path}/events") as reader:
            await reader.until("event: progress")
        assert not reader.complete
        assert not application.tasks[0].finished


async def test_a_client_whose_connection_breaks_cancels_nothing() -> None:
    async def broken(message: Message) -> None:
        if message.get("body", b"").startswith(b"id: "):
            raise OSError("connection reset")

    application = Application()
    async with application.started() as path:
        answer = await request(application.app, f"{path}/events", send=broken)
        assert answer.error is None
        assert not application.tasks[0].finished


async def test_a_stream_without_events_shows_signs_of_life() -> None:
    application = Application(heartbeat=0.01)
    async with application.started("words=0") as path, reading(application.app, f"{path}/events") as reader:
        await reader.until(": heartbeat\n\n: heartbeat\n\n")
        application.go_on.set()
        await reader.until("event: end")
        assert [event.get("id") for event in reader.events] == [None, "1", "1-end"]


async def test_a_slow_client_makes_no_task_wait_and_is_told_where_to_go_on() -> None:
    application = Application()
    async with application.started() as path:
        task = application.tasks[0]
        async with reading(application.app, f"{path}/events") as reader:
            await reader.until("event: progress")
            reader.may_read = anyio.Event()
            task.emit("while the client does not read")
            await turns()
            for _ in range(10_010):
                task.emit(0)
            reader.may_read.set()
            await reader.until("event: missed")
            await turns()
            assert reader.complete
            missed = reader.events[-1]
            assert missed["id"] == "13"
            assert json.loads(missed["data"]) == {"missed": 10, "resume_after": 13}
        async with reading(application.app, f"{path}/events", headers=[(b"last-event-id", b"13")]) as reader:
            await reader.until("id: 10013\n")
            assert "missed" not in reader.text
            assert reader.events[0]["id"] == "14"


async def test_a_client_that_comes_too_late_is_told_what_it_missed_and_goes_on() -> None:
    application = Application()
    async with application.started() as path:
        for _ in range(10_000):
            application.tasks[0].emit(0)
        async with reading(application.app, f"{path}/events") as reader:
            await reader.until("id: 10002\n")
            missed, first, *_ = reader.events
            assert (missed["event"], json.loads(missed["data"])) == ("missed", {"missed": 2, "resume_after": 2})
            assert first["id"] == "3"


async def test_a_client_that_reads_nothing_loses_its_stream(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    application = Application(client_timeout=0.05)
    async with application.started() as path:
        reader = Reader()
        reader.may_read = anyio.Event()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await reader(message)

        answer = await request(application.app, f"{path}/events", receive=receiving(EMPTY_BODY), send=send)
        assert answer.error is None
        assert not reader.text
        assert "has read nothing for a while" in caplog.text


async def test_a_client_that_reads_again_is_told_where_to_go_on_and_misses_nothing() -> None:
    application = Application(client_timeout=0.05)
    async with application.started() as path:
        reader = Reader()

        async def send(message: Message) -> None:
            if b"not read" in message.get("body", b""):
                await anyio.sleep_forever()  # the connection is full, until the stream is ended
            if message["type"] == "http.response.body":
                await reader(message)

        async with anyio.create_task_group() as group:

            async def read() -> None:
                answer = await request(application.app, f"{path}/events", receive=receiving(EMPTY_BODY), send=send)
                assert answer.error is None

            group.start_soon(read)
            await reader.until("event: progress")
            application.tasks[0].emit("not read")
            await reader.until("event: slow")
        assert reader.complete
        assert reader.events[-1] == {"event": "slow", "data": '{"resume_after":2}'}
        async with reading(application.app, f"{path}/events", headers=[(b"last-event-id", b"2")]) as rest:
            await rest.until("not read")
            assert rest.events[0] == {"id": "3", "data": '"not read"'}


async def test_streams_end_when_shutdown_begins() -> None:
    application = Application(tasks={"grace_period": 0})
    async with anyio.create_task_group() as group:
        reader = Reader()

        async def read(path: str) -> None:
            await request(application.app, f"{path}/events", receive=receiving(EMPTY_BODY), send=reader)

        async with running(application.app):
            group.start_soon(read, await application.post())
            await reader.until("event: progress")
    assert reader.complete
    assert reader.events[-1] == {"event": "shutdown", "data": '{"resume_after":2}'}


async def test_a_stream_that_begins_during_shutdown_ends_at_once() -> None:
    application = Application(tasks={"grace_period": 5})
    async with anyio.create_task_group() as group:
        answers: list[Answer] = []

        async def come_late(path: str) -> None:
            await get_scheduler(application.app).stopping.wait()
            answers.append(await application.get(f"{path}/events"))
            application.go_on.set()

        async with running(application.app):
            group.start_soon(come_late, await application.post())
            await turns()
    assert parsed(answers[0]) == [{"event": "shutdown", "data": '{"resume_after":0}'}]


@pytest.mark.parametrize("broken", [False, True])
async def test_a_server_that_cancels_its_requests_lets_streams_end_with_an_event(broken: bool) -> None:
    application = Application()
    async with application.started() as path:
        reader = Reader()

        async def send(message: Message) -> None:
            if broken and b"shutdown" in message.get("body", b""):
                raise OSError("connection reset")
            await reader(message)

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def read() -> None:
                    await request(application.app, f"{path}/events", receive=receiving(EMPTY_BODY), send=send)

                group.start_soon(read)
                await reader.until("event: progress")
                scope.cancel()
        assert reader.complete is not broken
        assert ("event: shutdown" in reader.text) is not broken
        assert not application.tasks[0].finished


async def test_a_client_that_reads_nothing_does_not_hold_up_shutdown() -> None:
    application = Application(tasks={"grace_period": 0}, client_timeout=10_000)
    reader = Reader()
    async with anyio.create_task_group() as group:

        async def read(path: str) -> None:
            answer = await request(application.app, f"{path}/events", receive=receiving(EMPTY_BODY), send=reader)
            assert answer.error is None

        async with running(application.app):
            group.start_soon(read, await application.post())
            await reader.until("event: progress")
            reader.may_read = anyio.Event()
            application.tasks[0].emit("not read")
            await turns()
    assert not reader.complete
    assert "not read" not in reader.text


# ---- the schema ----


def test_the_schema_has_the_routes() -> None:
    with TestClient(Application().app) as client:
        schema = client.get("/openapi.json").json()
    paths = schema["paths"]
    assert paths["/answers"]["post"]["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/Job_Answered_"
    )
    assert set(paths["/jobs/{job_id}"]) == {"get", "delete"}
    assert set(paths["/jobs/{job_id}"]["get"]["responses"]) == {"200", "404", "422"}
    assert set(paths["/jobs/{job_id}"]["delete"]["responses"]) == {"200", "202", "404", "422"}
    events = paths["/jobs/{job_id}/events"]["get"]
    assert {p["name"] for p in events["parameters"]} == {"job_id", "last-event-id", "after"}
    assert set(events["responses"]) == {"200", "204", "404", "422"}
    assert set(events["responses"]["200"]["content"]) == {"text/event-stream"}
    assert "application/problem+json" in events["responses"]["404"]["content"]
    job = schema["components"]["schemas"]["Job_Answered_"]["properties"]
    assert set(job) == {"id", "state", "progress", "result", "error", "links"}
    assert schema["components"]["schemas"]["TaskState"]["enum"][0] == "pending"
