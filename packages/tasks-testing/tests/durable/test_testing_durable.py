"""Durable tasks under the recorder: no engine, the same way through JSON, and runs when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import flaky, hands_on, note, plain, untyped
from fastapi import FastAPI
from pydantic import AfterValidator
from starlette.testclient import TestClient
from tasks_core import DurableFunction, RetryPolicy, TaskScheduler, cron, durable, durable_context
from tasks_core._durable.registry import registry
from tasks_core.engines import DurableState, EngineUnavailableError
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.exceptions import ArgumentCodecError
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import Call, TasksRecorder, call, call_like, record_tasks

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")


HIGHEST = 9


def check_number(number: int) -> int:
    if number > HIGHEST:
        raise ValueError
    return number


@durable
async def take(number: Annotated[int, AfterValidator(check_number)]) -> None: ...


@durable(name="hangs")
async def hangs() -> None:
    await anyio.sleep_forever()


@durable(name="hangs_shielded", shield=True)
async def hangs_shielded() -> None:
    await anyio.sleep_forever()


@durable
async def half_way() -> None:
    await durable_context().report_progress(50)


async def follow_up() -> None: ...


@durable(retry=RetryPolicy(attempts=2, backoff=0))
async def leave_more_behind(attempts: int) -> None:
    scheduler = durable_context().scheduler
    await scheduler.schedule(follow_up)
    await scheduler.schedule(note, "handed over by a run")
    if durable_context().attempt < attempts:
        raise ConnectionError


@durable(name="hangs_in_its_second_attempt", retry=RetryPolicy(attempts=2, backoff=0))
async def hangs_in_its_second_attempt() -> None:
    if durable_context().attempt == 1:
        raise ConnectionError
    functions.waiting["second attempt"].set()
    await anyio.sleep_forever()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    for record in (functions.ran, functions.contexts, functions.reported, functions.waiting):
        record.clear()


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    add_tasks(app, engine=ProcrastinateEngine("postgresql://nowhere.invalid/none"), worker_concurrency=2)

    @app.post("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(note, "hello")
        tasks.after_response.task(when="error").schedule(note, "error")

    @app.post("/hangs")
    async def hang(tasks: Tasks) -> None:
        tasks.schedule(hangs)

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
    assert functions.contexts[0].idempotency_key == tasks_recorder.durable_calls[0].idempotency_key


def test_runs_each_twice_with_the_same_key(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/")
    tasks_recorder.run_durable(times=2)
    assert functions.ran == ["hello", "hello"]
    assert len({context.idempotency_key for context in functions.contexts}) == 1


def test_engine_that_is_away_can_be_played(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(note, EngineUnavailableError("away"))
    assert client.post("/").status_code == 503
    assert tasks_recorder.durable_calls[0].args == {"text": "error"}


@pytest.mark.anyio
async def test_on_an_event_loop(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(plain, 1)
        again = await scheduler.schedule(note.configure(idempotency_key="k"), "x")
        twice = await scheduler.schedule(note.configure(idempotency_key="k"), "x")
        assert (again.created, twice.created, twice.id) == (True, False, again.id)
        assert (await receipt.status()).state is DurableState.PENDING
        await tasks_recorder.arun_durable()
        assert (await receipt.status()).state is DurableState.SUCCEEDED
        with pytest.raises(ArgumentCodecError):
            scheduler.schedule(untyped, {1})
        with pytest.raises(RuntimeError, match="arun_durable"):
            tasks_recorder.run_durable()


@pytest.mark.anyio
async def test_an_attempt_that_is_delivered_again_is_a_retry(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(flaky, 2)
        await tasks_recorder.arun_durable()
    task = tasks_recorder.one(flaky.name)
    assert (task.state, task.attempts, task.result) == ("succeeded", 3, None)
    assert [(event.kind, event.attempt, event.detail) for event in task.events] == [
        ("scheduled", 0, ""),
        ("started", 1, ""),
        ("retrying", 1, "in 0 s (skipped)"),
        ("started", 2, ""),
        ("retrying", 2, "in 0 s (skipped)"),
        ("started", 3, ""),
        ("succeeded", 3, ""),
    ]
    assert (await receipt.status()).attempts == 3


@pytest.mark.anyio
async def test_an_attempt_of_what_may_run_on_may_do_so_too(tasks_recorder: TasksRecorder) -> None:
    functions.waiting["second attempt"] = anyio.Event()
    tasks_recorder.allow_running(hangs_in_its_second_attempt.name)
    async with TaskScheduler() as scheduler, anyio.create_task_group() as group:
        await scheduler.schedule(hangs_in_its_second_attempt)
        group.start_soon(tasks_recorder.arun_durable)
        await functions.waiting["second attempt"].wait()
        await tasks_recorder.adrain()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_failure_for_good_is_one_failed_task(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(flaky, 9)
        await tasks_recorder.arun_durable()
    task = tasks_recorder.assert_failed(flaky, ConnectionResetError, times=1)
    assert (task.name, task.attempts) == (flaky.name, 3)
    assert ((await receipt.status()).state, (await receipt.status()).attempts) == (DurableState.FAILED, 3)
    assert functions.reported == [(flaky.name, 3, "ConnectionResetError")]


RUN = flaky.name
HANDED_OVER = "flaky"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target, meant",
    [
        (flaky, [HANDED_OVER, RUN]),
        (call(flaky, 9), [HANDED_OVER, RUN]),
        (call_like(flaky, failures=9), [HANDED_OVER, RUN]),
        (flaky.func, [HANDED_OVER, RUN]),
        (RUN, [RUN]),
        (call(flaky, 8), []),
        (note, []),
    ],
)
async def test_a_durable_function_and_its_name_are_targets(
    target: Callable[..., Any] | Call[Any] | str, meant: list[str]
) -> None:
    with record_tasks(failures="ignore") as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(flaky, 9)
            await recorder.adrain()
            await recorder.arun_durable()
    assert [task.name for task in recorder.of(target)] == meant


@pytest.mark.anyio
@pytest.mark.parametrize("target", [flaky, call(flaky, 9), RUN, None])
async def test_a_failure_for_good_can_be_expected(target: Callable[..., Any] | Call[Any] | str | None) -> None:
    with record_tasks() as recorder:
        recorder.expect_failure(target, ConnectionResetError)
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(flaky, 9)
            await recorder.arun_durable()


async def fail_for_good(recorder: TasksRecorder) -> str:
    """Return where the task that fails was handed over, as messages show it."""
    async with TaskScheduler() as scheduler:
        path, _, line = scheduler.schedule(flaky, 9).where.rpartition(":")
        await recorder.adrain()
        await recorder.arun_durable()
    return f"{Path(path).relative_to(Path.cwd())}:{line}"


@pytest.mark.anyio
async def test_the_hint_about_a_failure_works_when_it_is_pasted() -> None:
    hint = "tasks_recorder.assert_failed(flaky, ConnectionResetError)"
    recording = record_tasks()
    where = await fail_for_good(recording.__enter__())
    with pytest.raises(AssertionError) as failure:
        recording.__exit__(None, None, None)
    assert str(failure.value).startswith(
        "1 background task failed, and the test does not expect it\n"
        f"  #2 {RUN}: flaky(9)  durable  failed, scheduled at {where}\n"
    )
    assert f"\n  hint: where it should fail, write {hint};\n" in str(failure.value)

    with record_tasks() as tasks_recorder:
        await fail_for_good(tasks_recorder)
        exec(hint, {"tasks_recorder": tasks_recorder, "flaky": flaky})


@pytest.mark.anyio
async def test_attempts_of_a_run_can_be_made_to_fail(tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(RUN, ConnectionError("down"), times=2)
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(flaky, 0)
        await tasks_recorder.arun_durable(times=2)
    assert [(task.attempts, task.state) for task in tasks_recorder.of(RUN)] == [(3, "succeeded"), (1, "succeeded")]
    assert functions.ran == ["flaky", "flaky"]


@pytest.mark.anyio
async def test_what_was_not_run_is_told_so(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(plain, 1)
        with pytest.raises(
            AssertionError,
            match=r"^durable: expected plain\(1\) to have run, it did not\n"
            r"  closest:  #1 plain\(1\)  -  succeeded  in another phase\n"
            r"  hint: it was submitted, and has not been run: tasks_recorder\.run_durable\(\)$",
        ):
            tasks_recorder.durable_runs.assert_ran(call(plain, 1))
        await tasks_recorder.arun_durable()
    assert tasks_recorder.durable_runs.assert_ran(plain, times=1).phase == "durable"
    assert tasks_recorder.durable_runs.calls == [call(plain, 1)]


@pytest.mark.anyio
async def test_what_is_held_is_run(tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.hold()
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(note, "x")
        await tasks_recorder.arun_durable()
    tasks_recorder.assert_ran(note.name, times=1)


@pytest.mark.anyio
async def test_a_run_may_schedule_what_is_a_task_of_its_own(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(leave_more_behind, 2)
        await tasks_recorder.arun_durable()
    assert tasks_recorder.one(leave_more_behind.name).attempts == 2
    assert [task.name for task in tasks_recorder.of(follow_up)] == ["follow_up", "follow_up"]
    assert tasks_recorder.of(note.name).calls == [call(note, "handed over by a run")] * 2


@pytest.mark.anyio
async def test_progress_is_kept(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(half_way)
        await tasks_recorder.arun_durable()
    assert (await receipt.status()).progress == 50


@pytest.mark.anyio
async def test_a_transaction_may_be_anything(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(note.configure(transaction=object()), "x")
    assert len(tasks_recorder.durable_calls) == 1


STUCK = (
    r"run_durable\(\) waited 0\.05 s, and a durable task has not ended\n"
    r"  #2 hangs: hangs\(\)  cancelled, scheduled at .*test_testing_durable\.py:\d+$"
)


@pytest.mark.anyio
@pytest.mark.parametrize("function", [hangs, hangs_shielded])
async def test_a_run_that_hangs_is_told(function: DurableFunction[[], Any, None]) -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            receipt = await scheduler.schedule(function)
            with pytest.raises(AssertionError, match="^a" + STUCK.replace("hangs", function.__name__)):
                await recorder.arun_durable(times=2, timeout=0.05)
            assert (await receipt.status()).state is DurableState.PENDING
            recorder.stub(function.name)
            await recorder.arun_durable()
        assert [task.state for task in recorder.durable_runs] == ["cancelled", "succeeded"]


def test_a_run_that_hangs_is_told_without_an_event_loop(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/hangs")
    with pytest.raises(AssertionError, match="^" + STUCK):
        tasks_recorder.run_durable(timeout=0.05)


@pytest.mark.anyio
async def test_arguments_that_do_not_arrive_are_an_error(
    tasks_recorder: TasksRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(take, 5)
        monkeypatch.setattr(f"{__name__}.HIGHEST", 4)
        with pytest.raises(ExceptionGroup) as failure:
            await tasks_recorder.arun_durable()
    assert isinstance(failure.value.exceptions[0], ArgumentCodecError)


def test_keys_and_priorities_hold_in_the_recorder(tasks_recorder: TasksRecorder) -> None:
    async def main() -> None:
        async with TaskScheduler() as scheduler:
            queued = scheduler.task(key="k", on_conflict="queue")
            for text in ("first", "second"):
                await queued.schedule(note, text)
            joined = await scheduler.task(key="k").schedule(note, "joins")
            assert (joined.created, joined.id) == (False, "1")
            for text in ("replaced", "latest"):
                await scheduler.task(key="other", on_conflict="replace", delay=5).schedule(note, text)
            await scheduler.schedule(note.configure(priority=5, queue="urgent"), "urgent")

    anyio.run(main)
    assert [(recorded.key, recorded.on_conflict) for recorded in tasks_recorder.durable_calls[:2]] == [
        ("k", "queue")
    ] * 2
    assert tasks_recorder.durable_calls[-1].queue == "urgent"
    tasks_recorder.run_durable()
    assert functions.ran == ["urgent", "first", "second", "latest"]


def test_a_key_and_its_line_are_brought_back_for_each_cut(tasks_recorder: TasksRecorder) -> None:
    async def main() -> None:
        async with TaskScheduler() as scheduler:
            queued = scheduler.task(key="k", on_conflict="queue")
            for text in ("first", "second"):
                await queued.schedule(hands_on, text)

    def check() -> None:
        texts = [entry for entry in functions.ran if isinstance(entry, str)]
        assert list(dict.fromkeys(texts)) == ["first", "second"]

    anyio.run(main)
    tasks_recorder.run_durable(cut="everywhere", restore=functions.ran.clear, check=check)
    anyio.run(main)
    assert tasks_recorder.durable_calls[-1].key == "k"
    tasks_recorder.run_durable()
    check()


# ---- periodic functions ----


@pytest.fixture
def nightly() -> Iterator[DurableFunction[[], Any, Any]]:
    async def nightly() -> None:
        functions.ran.append(durable_context().idempotency_key)

    yield durable(name="nightly", periodic=cron("0 3 * * *"))(nightly)
    del registry._functions["nightly"]


@pytest.mark.tasks_recorder(virtual_time=True)
def test_an_occurrence_is_run_in_virtual_time(
    tasks_recorder: TasksRecorder, nightly: DurableFunction[[], Any, Any]
) -> None:
    assert tasks_recorder.periodic_functions["nightly"] is nightly
    first = tasks_recorder.run_occurrence(nightly)
    assert first == datetime(2000, 1, 1, 3, tzinfo=UTC)
    assert tasks_recorder.clock.now == 3 * 3600

    async def second() -> datetime:
        return await tasks_recorder.arun_occurrence(nightly)

    assert anyio.run(second) == first + timedelta(days=1)
    assert functions.ran == ["nightly 2000-01-01T03:00:00+00:00", "nightly 2000-01-02T03:00:00+00:00"]
    assert [run.state for run in tasks_recorder.durable_runs] == ["succeeded", "succeeded"]


def test_an_occurrence_is_run_at_once_while_time_is_real(
    tasks_recorder: TasksRecorder, nightly: DurableFunction[[], Any, Any]
) -> None:
    first = tasks_recorder.run_occurrence(nightly)
    assert first > datetime.now(UTC)

    async def second() -> datetime:
        return await tasks_recorder.arun_occurrence(nightly)

    assert anyio.run(second) == first + timedelta(days=1)
    assert len(functions.ran) == 2


def test_what_has_no_occurrence_is_refused(
    tasks_recorder: TasksRecorder, nightly: DurableFunction[[], Any, Any]
) -> None:
    with pytest.raises(ValueError, match=r"is not periodic. Pass a function with @durable\(periodic="):
        tasks_recorder.run_occurrence(note)

    class Over:
        jitter = 0.0

        def next_after(self, previous: datetime | None, now: datetime) -> datetime | None:
            return None

    nightly.periodic = Over()
    with pytest.raises(ValueError, match="has no further occurrence"):
        tasks_recorder.run_occurrence(nightly)
