"""Durable tasks under the recorder: no engine, the same way through JSON, and runs when the test says so."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import flaky, note, plain, untyped
from fastapi import FastAPI
from starlette.testclient import TestClient
from tasks_core import ArgumentCodecError, DurableState, EngineUnavailableError, TaskScheduler
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import TasksRecorder, call

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for record in (functions.ran, functions.contexts, functions.reported):
        record.clear()


@pytest.fixture
def client(tasks_recorder: TasksRecorder) -> Iterator[TestClient]:
    app = FastAPI()
    add_tasks(app, engine=ProcrastinateEngine("postgresql://nowhere.invalid/none"), embed_worker=2)

    @app.post("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(note, "hello")
        tasks.after_response.task(when="error").schedule(note, "error")

    with TestClient(app) as client:
        yield client


def test_what_is_handed_over_is_recorded_without_a_server(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.post("/").status_code == 200
    tasks_recorder.after_response.assert_ran(call(note, "hello"), times=1)
    assert [(c.name, c.args) for c in tasks_recorder.durable_calls] == [(note.name, {"text": "hello"})]
    assert functions.ran == []


def test_runs_when_the_test_says_so(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/")
    tasks_recorder.run_durable()
    tasks_recorder.run_durable()
    assert functions.ran == ["hello"]
    assert functions.contexts[0].key == tasks_recorder.durable_calls[0].key


def test_runs_each_twice_with_the_same_key(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/")
    tasks_recorder.run_durable(times=2)
    assert functions.ran == ["hello", "hello"]
    assert len({context.key for context in functions.contexts}) == 1


def test_engine_that_is_away_can_be_played(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(note, EngineUnavailableError("away"))
    assert client.post("/").status_code == 503
    assert tasks_recorder.durable_calls[0].args == {"text": "error"}


@pytest.mark.anyio
async def test_on_an_event_loop(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(plain, 1)
        again = await scheduler.task(key="k").schedule(note, "x")
        twice = await scheduler.task(key="k").schedule(note, "x")
        assert (again.created, twice.created, twice.id) == (True, False, again.id)
        assert (await receipt.status()).state is DurableState.WAITING
        await tasks_recorder.arun_durable()
        assert (await receipt.status()).state is DurableState.SUCCEEDED
        with pytest.raises(ArgumentCodecError):
            scheduler.schedule(untyped, {1})
        with pytest.raises(RuntimeError, match="arun_durable"):
            tasks_recorder.run_durable()


@pytest.mark.anyio
async def test_failures_are_retried_and_the_last_one_is_a_failed_task(tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.expect_failure(flaky.name)
    async with TaskScheduler() as scheduler:
        receipts = [await scheduler.schedule(flaky, failures) for failures in (2, 9)]
        with anyio.fail_after(10):
            await tasks_recorder.arun_durable()
        states = [await receipt.status() for receipt in receipts]
    assert [(state.state, state.attempts) for state in states] == [
        (DurableState.SUCCEEDED, 3),
        (DurableState.FAILED, 3),
    ]
    assert functions.reported == [(flaky.name, 3, "ConnectionResetError")]
