"""What durable tasks emit and report: stored by a worker, read by any process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import psycopg
import pytest
from core_engine import ListEngine
from core_postgres import ends, postgres, queue, working
from tasks_core import (
    DurableTask,
    Receipt,
    RetryPolicy,
    TaskScheduler,
    TaskState,
    current_scheduler,
    durable,
    emit,
    report,
)
from tasks_core._durable import follow
from tasks_core._journal import MOST_EVENTS
from tasks_core.engines import DurableState, EngineCapabilityError, EngineUnavailableError
from tasks_core.engines.procrastinate import ProcrastinateEngine, _events, _reports
from tasks_core.engines.procrastinate._connection import WorkerConnection
from tasks_core.engines.procrastinate._events import EventSink, EventWriter
from tasks_core.engines.procrastinate._rows import Row
from tasks_core.engines.procrastinate._sql import ADD_EVENTS
from tasks_core.exceptions import ArgumentCodecError, InvalidTaskError
from tasks_core.frameworks import find_followed, follow_stored, make_followed
from tasks_core.types import TaskUpdate

__all__ = ("postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def engine(postgres: str, queue: str) -> AsyncIterator[ProcrastinateEngine]:
    async with ProcrastinateEngine(postgres, queue=queue, heartbeat=0.5) as engine:
        yield engine


def run_in_thread(value: int) -> None:
    for number in range(value):
        emit({"number": number})
    report(1.0)


class Steps:
    """What the test allows the functions below to do."""

    def __init__(self) -> None:
        self.go_on = anyio.Event()
        self.emitted = anyio.Event()
        self.failures = 0
        self.error: BaseException | None = None


steps = Steps()


@pytest.fixture(autouse=True)
def new_steps() -> None:
    global steps
    steps = Steps()


@durable
async def generate(words: int) -> None:
    for number in range(words):
        emit({"word": number})
    report({"words": words})
    await steps.go_on.wait()
    emit("last")
    steps.emitted.set()


@durable(retry=RetryPolicy(attempts=2, backoff=0))
async def fail_once() -> None:
    emit("first" if not steps.failures else "second")
    steps.failures += 1
    if steps.failures == 1:
        raise ValueError


@durable
async def in_two_waves(events: int) -> None:
    for _ in range(events):
        emit("12345")
    await steps.go_on.wait()
    for _ in range(events):
        emit("12345")


@durable
async def silent() -> None:
    pass


@durable
def from_threads(number: int) -> None:
    run_in_thread(number)


@durable
async def refused() -> None:
    try:
        report("\0")
    except Exception as error:
        steps.error = error


@durable
async def with_follow_up() -> None:
    async def follow_up() -> None:
        emit("of the follow-up")
        report("of the follow-up")

    emit("of the task")
    report("of the task")
    await current_scheduler().schedule(follow_up)


async def submitted(scheduler: TaskScheduler, function: Any, *args: Any) -> tuple[Receipt[Any], str]:
    task = scheduler.schedule(function, *args)
    assert isinstance(task, DurableTask)
    token = make_followed(task, "ann")
    return await task, token


async def followed(scheduler: TaskScheduler, receipt: Receipt[Any], after: int = 0) -> list[TaskUpdate]:
    with anyio.fail_after(30):
        return [update async for update in follow_stored(scheduler, receipt.id, after)]


def data(updates: list[TaskUpdate]) -> list[Any]:
    return [event.data for update in updates for event in update.events]


def numbers(updates: list[TaskUpdate]) -> list[int]:
    return [event.number for update in updates for event in update.events]


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True}), ("trio", {})], ids=["uvloop", "trio"])
async def test_another_process_follows_what_a_worker_emits(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, token = await submitted(scheduler, generate, 3)
        call = await find_followed(scheduler, token)
        assert call is not None
        assert (call.receipt.id, call.receipt.idempotency_key, call.owner) == (
            receipt.id,
            receipt.idempotency_key,
            "ann",
        )
        follower = follow_stored(scheduler, receipt.id, 0)
        seen: list[TaskUpdate] = []
        with anyio.fail_after(30):
            while data(seen) != [{"word": 0}, {"word": 1}, {"word": 2}] or seen[-1].progress is None:
                seen.append(await anext(follower))
        assert seen[-1].progress == {"words": 3}
        assert not seen[-1].state.finished
        steps.go_on.set()
        seen += [update async for update in follower]
        assert numbers(seen) == [1, 2, 3, 4]
        assert seen[-1].state is TaskState.SUCCEEDED
        assert (await receipt.status()).progress == {"words": 3}
        assert numbers(await followed(scheduler, receipt, 2)) == [3, 4]
        with pytest.raises(StopAsyncIteration):
            await anext(follower)


async def test_many_followers_are_one_statement(engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = engine.read_events

    async def count(wanted: Any) -> Any:
        asked.append(len(wanted))
        return await read(wanted)

    monkeypatch.setattr(ProcrastinateEngine, "read_events", lambda self, wanted: count(wanted))
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        steps.go_on.set()
        receipt, _ = await submitted(scheduler, generate, 2)
        ended: list[list[TaskUpdate]] = []

        async def follow() -> None:
            ended.append(await followed(scheduler, receipt))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(follow)
    assert [numbers(updates) for updates in ended] == [[1, 2, 3]] * 50
    assert max(asked) <= 2
    assert len(asked) < 50


async def test_numbers_go_on_in_the_next_attempt(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, _ = await submitted(scheduler, fail_once)
        updates = await followed(scheduler, receipt)
    assert (numbers(updates), data(updates)) == ([1, 2], ["first", "second"])


@pytest.mark.parametrize("anyio_backend", [("asyncio", {}), ("trio", {})], ids=["asyncio", "trio"])
async def test_plain_functions_emit(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, _ = await submitted(scheduler, from_threads, 1200)
        updates = await followed(scheduler, receipt)
    assert data(updates) == [{"number": number} for number in range(1200)]
    assert updates[-1].progress == 1.0
    assert len(updates) > 2  # 500 at once


async def test_what_a_follow_up_emits_and_reports_is_its_own(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, _ = await submitted(scheduler, with_follow_up)
        assert data(await followed(scheduler, receipt)) == ["of the task"]
        assert (await receipt.status()).progress == "of the task"


async def test_progress_is_what_the_engine_can_store(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, _ = await submitted(scheduler, refused)
        await ends(receipt, DurableState.SUCCEEDED)
    assert isinstance(steps.error, ArgumentCodecError)


async def test_a_burst_is_bounded(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        steps.go_on.set()
        receipt, _ = await submitted(scheduler, generate, MOST_EVENTS + 3000)
        updates = await followed(scheduler, receipt)
    assert numbers(updates)[-1] == MOST_EVENTS + 3001
    assert updates[0].missed == numbers(updates)[0] - 1 > 0


@pytest.mark.parametrize("bound, size", [("MOST_EVENTS", 800), ("MOST_EVENT_BYTES", 7 * 800)])
async def test_stored_events_are_bounded(
    engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch, bound: str, size: int
) -> None:
    for name, value in ((bound, size), ("_TRIM_AFTER", 100), ("_TRIM_AFTER_BYTES", 700)):
        monkeypatch.setattr(_events, name, value)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, _ = await submitted(scheduler, in_two_waves, 600)
        follower = follow_stored(scheduler, receipt.id, 0)
        with anyio.fail_after(30):
            while (await anext(follower)).after < 600:
                pass
        steps.go_on.set()
        await ends(receipt, DurableState.SUCCEEDED)
        updates = await followed(scheduler, receipt)
    assert numbers(updates)[-1] == 1200
    assert 800 <= len(numbers(updates)) <= 900
    assert updates[0].missed == 1200 - len(numbers(updates))


async def test_events_are_purged_with_their_task(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        steps.go_on.set()
        receipt, token = await submitted(scheduler, generate, 3)
        await ends(receipt, DurableState.SUCCEEDED)
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            await connection.execute("DELETE FROM procrastinate_jobs WHERE id = %s", [int(receipt.id)])
            left = await connection.execute("SELECT count(*) FROM tasks_events_v1 WHERE job_id = %s", [receipt.id])
            assert await left.fetchone() == (0,)
        assert await find_followed(scheduler, token) is None
        [last] = await followed(scheduler, receipt)
        assert (last.state, last.events) == (TaskState.DISCARDED, ())
        [other] = [update async for update in follow_stored(scheduler, "none of this engine", 0)]
        assert other.state is TaskState.DISCARDED


async def test_nothing_is_made_for_tasks_that_emit_nothing(
    engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    sink = EventWriter.sink

    def count(writer: EventWriter, row: Row) -> EventSink:
        opened.append(row.name)
        return sink(writer, row)

    monkeypatch.setattr(EventWriter, "sink", count)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(silent), DurableState.SUCCEEDED)
        assert not opened
        await ends(await scheduler.schedule(from_threads, 5), DurableState.SUCCEEDED)
    assert opened == [from_threads.name]


async def test_a_call_is_followed_from_before_it_is_stored(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        task = scheduler.schedule(generate, 1)
        assert isinstance(task, DurableTask)
        token = make_followed(task, None)
        assert make_followed(task, None) == token
        await task
        with pytest.raises(InvalidTaskError, match=r"call job\(task\) right after schedule\(\)"):
            make_followed(task, None)
        call = await find_followed(scheduler, token)
        assert call is not None
        assert call.owner is None
        assert await find_followed(scheduler, "guess") is None


async def test_a_call_in_a_transaction_is_followed(engine: ProcrastinateEngine, postgres: str) -> None:
    async with (
        TaskScheduler(engine=engine) as scheduler,
        await psycopg.AsyncConnection.connect(postgres) as connection,
    ):
        await connection.execute("SELECT 1")
        task = scheduler.schedule(generate.configure(transaction=connection), 1)
        assert isinstance(task, DurableTask)
        token = make_followed(task, "ann")
        await task
        assert await find_followed(scheduler, token) is None
        await connection.commit()
        assert await find_followed(scheduler, token) is not None


async def test_an_engine_without_events_says_so(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        task = scheduler.schedule(generate, 1)
        assert isinstance(task, DurableTask)
        with pytest.raises(EngineCapabilityError, match="stores no events"):
            make_followed(task, None)
        assert await find_followed(scheduler, "token") is None


async def test_a_worker_that_has_lost_its_call_stores_nothing_more(
    engine: ProcrastinateEngine, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = anyio.Event()
    flush = EventWriter.flush

    async def note(writer: EventWriter, row: Row) -> None:
        await flush(writer, row)
        flushed.set()

    monkeypatch.setattr(EventWriter, "flush", note)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, _ = await submitted(scheduler, generate, 1)
        with anyio.fail_after(30):
            await anext(follow_stored(scheduler, receipt.id, 0))
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            await connection.execute(
                "UPDATE procrastinate_jobs SET attempts = attempts + 1 WHERE id = %s", [int(receipt.id)]
            )
            steps.go_on.set()
            await flushed.wait()
            rows = await connection.execute(
                "SELECT event FROM tasks_events_v1 WHERE job_id = %s ORDER BY number", [int(receipt.id)]
            )
            assert await rows.fetchall() == [('{"word":0}',)]
            await connection.execute("UPDATE procrastinate_jobs SET status = 'failed' WHERE id = %s", [int(receipt.id)])


@pytest.mark.usefixtures("no_pauses")
async def test_a_batch_whose_answer_is_lost_is_stored_once(
    engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    fetch = WorkerConnection.fetch

    async def fetch_and_lose(self: WorkerConnection, query: Any, parameters: Any = None) -> list[Any]:
        rows = await fetch(self, query, parameters)
        if query is ADD_EVENTS and not lost:
            lost.append(query)
            steps.go_on.set()
            await steps.emitted.wait()  # the batch that is sent again has a new event
            raise psycopg.OperationalError("the answer is lost")
        return rows

    monkeypatch.setattr(WorkerConnection, "fetch", fetch_and_lose)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt, _ = await submitted(scheduler, generate, 5)
        updates = await followed(scheduler, receipt)
    assert lost
    assert numbers(updates) == [1, 2, 3, 4, 5, 6]
    assert data(updates) == [*({"word": number} for number in range(5)), "last"]


# ---- the writer, when the database is away or refuses ----


class Database:
    """The connection of a writer: it stores what it is sent, or raises."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.refused: set[int] = set()
        self.stored: list[tuple[int, int]] = []
        self.statements = 0
        self.gate = anyio.Event()
        self.gate.set()

    async def fetch(self, query: str, parameters: Any) -> list[Any]:
        self.statements += 1
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        if self.refused & set(parameters["ids"]):
            raise psycopg.errors.UniqueViolation
        if "positions" in parameters:
            self.stored += zip(parameters["ids"], parameters["positions"], strict=True)
        return []


def row(number: int) -> Row:
    options = ProcrastinateEngine("")._work_options
    return Row.read(options, number, 0, {"name": "generate", "key": "k", "args": {}}, 0.0, "tasks", 0)


@asynccontextmanager
async def writing(database: Database, stopping: anyio.Event | None = None) -> AsyncIterator[EventWriter]:
    connection: Any = database
    writer = EventWriter(connection, stopping or anyio.Event())
    task = asyncio.create_task(writer.run())
    try:
        with anyio.fail_after(30):
            yield writer
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reports, "RECONNECT", 0.0)
    monkeypatch.setattr(_reports, "LAST_WORDS", 0.0)


@pytest.mark.usefixtures("no_pauses")
async def test_events_wait_for_a_database_that_is_away() -> None:
    database = Database()
    database.errors = [psycopg.OperationalError("away")] * 3
    async with writing(database) as writer:
        sink = writer.sink(row(1))
        sink.emit(b"1")
        sink.emit(b"2")
        await writer.flush(row(1))
        await writer.flush(row(1))  # nothing more waits
    assert database.stored == [(1, 1), (1, 2)]


@pytest.mark.usefixtures("no_pauses")
async def test_while_the_database_is_away_the_oldest_events_are_dropped() -> None:
    database = Database()
    database.gate = anyio.Event()
    async with writing(database) as writer:
        sink = writer.sink(row(1))
        for _ in range(MOST_EVENTS + 3):
            sink.emit(b"1")
        database.gate.set()
        await writer.flush(row(1))
    assert database.stored[0] == (1, 4)
    assert database.stored[-1] == (1, MOST_EVENTS + 3)
    assert len(database.stored) == MOST_EVENTS


@pytest.mark.usefixtures("no_pauses")
async def test_one_task_does_not_keep_the_events_of_others_from_being_stored(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()
    database.refused = {2}
    database.gate = anyio.Event()
    async with writing(database) as writer:
        sinks = [writer.sink(row(number)) for number in (1, 2, 3)]
        for sink in sinks:
            sink.emit(b"1")
        sinks[1].report(b"0.5")
        database.gate.set()
        for number in (1, 2, 3):
            await writer.flush(row(number))
    assert sorted(database.stored) == [(1, 1), (3, 1)]
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        "Task 'generate', key k, job 2, queue default, attempt 1, has emitted what could not be stored, and is dropped"
    ]


@pytest.mark.usefixtures("no_pauses")
async def test_a_worker_that_is_stopped_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()
    database.errors = [psycopg.OperationalError("away")] * 100
    stopping = anyio.Event()
    async with writing(database, stopping) as writer:
        writer.sink(row(1)).emit(b"1")
        stopping.set()
        await writer.flush(row(1))
    assert not database.stored
    assert "What 1 tasks emitted at last could not be stored (OperationalError)" in caplog.text


async def test_progress_is_stored_once_in_a_while_and_at_the_end() -> None:
    database = Database()
    async with writing(database) as writer:
        sink = writer.sink(row(1))
        sink.report(b"1")
        await writer.flush(row(1))
        before = database.statements
        for number in range(100):
            sink.report(b"%d" % number)
            await asyncio.sleep(0)
        await writer.flush(row(1))
        assert database.statements <= before + 2
        assert sink.progress is None


async def test_a_progress_value_that_comes_while_another_is_stored_is_not_lost() -> None:
    database = Database()
    database.gate = anyio.Event()
    async with writing(database) as writer:
        sink = writer.sink(row(1))
        sink.report(b"1")
        while not database.statements:
            await asyncio.sleep(0.01)
        sink.report(b"2")
        database.gate.set()
        await writer.flush(row(1))
        assert sink.progress is None
        assert database.statements == 2


async def test_a_thread_that_emits_after_the_end_of_the_worker_is_not_heard() -> None:
    sinks: list[EventSink] = []

    def elsewhere() -> None:
        async def make() -> None:
            connection: Any = Database()
            sinks.append(EventWriter(connection, anyio.Event()).sink(row(1)))

        asyncio.run(make())

    await anyio.to_thread.run_sync(elsewhere)
    sinks[0].emit(b"1")


async def test_followers_wait_for_an_engine_that_is_away(
    engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [EngineUnavailableError("away"), EngineUnavailableError("away")]
    read = ProcrastinateEngine.read_events
    monkeypatch.setattr(follow, "_PAUSE_AFTER_ERROR", 0.0)

    async def read_events(self: ProcrastinateEngine, wanted: Any) -> Any:
        if errors:
            raise errors.pop()
        return await read(self, wanted)

    monkeypatch.setattr(ProcrastinateEngine, "read_events", read_events)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        steps.go_on.set()
        receipt, _ = await submitted(scheduler, generate, 1)
        assert numbers(await followed(scheduler, receipt)) == [1, 2]
    assert len([r for r in caplog.records if "cannot be read, which is tried again" in r.getMessage()]) == 1


async def test_nothing_is_read_for_followers_that_come_during_shutdown(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt, _ = await submitted(scheduler, generate, 1)

        async def come_late() -> None:
            await scheduler.stopping.wait()
            with anyio.move_on_after(0.01) as scope:
                await anext(follow_stored(scheduler, receipt.id, 0))
            assert scope.cancelled_caught

        task = scheduler.schedule(come_late)
    assert task.state is TaskState.SUCCEEDED


async def test_a_follower_that_comes_while_others_are_served_is_served_next(
    engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, second = anyio.Event(), anyio.Event()
    read = ProcrastinateEngine.read_events

    async def read_events(self: ProcrastinateEngine, wanted: Any) -> Any:
        if not asked.is_set():
            asked.set()
            await second.wait()
            await anyio.wait_all_tasks_blocked()
        return await read(self, wanted)

    monkeypatch.setattr(ProcrastinateEngine, "read_events", read_events)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        steps.go_on.set()
        receipt, _ = await submitted(scheduler, generate, 1)
        seen: list[list[int]] = []

        async def follow(after: int) -> None:
            seen.append(numbers(await followed(scheduler, receipt, after)))

        async with anyio.create_task_group() as group:
            group.start_soon(follow, 0)
            await asked.wait()
            group.start_soon(follow, 1)
            await anyio.lowlevel.checkpoint()
            second.set()
    assert sorted(seen) == [[1, 2], [2]]


async def test_a_delivery_that_is_cancelled_while_its_events_are_stored_is_reported(
    engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(writer: EventWriter, row: Row) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(EventWriter, "flush", cancelled)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(silent), DurableState.SUCCEEDED)
