"""Queues and priorities: what is refused at the call, and what a worker on a real PostgreSQL does with its slots."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import forget, hands_on, note
from core_engine import ListEngine
from core_postgres import ends, execute, postgres, queue, until, working
from tasks_core import TaskScheduler, Worker, durable
from tasks_core.engines import DurableState, EngineCapabilityError
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.engines.procrastinate._connection import WorkerConnection
from tasks_core.engines.procrastinate._sql import CLAIM, NEXT_DUE
from tasks_core.exceptions import InvalidConfigError

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio

ran: list[str] = []
gates: dict[str, anyio.Event] = {}


@durable(name="queues.hold")
async def hold(text: str) -> None:
    ran.append(text)
    await gates.setdefault(text, anyio.Event()).wait()


@pytest.fixture(autouse=True)
def empty() -> None:
    ran.clear()
    gates.clear()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=4, heartbeat=0.2)


# ---- at the call ----


@pytest.mark.parametrize("name", ["", "a b", "pay/ments", "-a", "a" * 41, "ä", 7, None])
def test_a_queue_has_a_short_plain_name(name: Any) -> None:
    with pytest.raises(InvalidConfigError, match="queue must be a name of at most 40 letters"):
        durable(queue=name)(execute)
    if name is not None:
        with pytest.raises(InvalidConfigError, match="queue must be a name of at most 40 letters"):
            note.configure(queue=name)


@pytest.mark.parametrize("priority", [101, -101, 1.0, True, "1", None])
def test_a_priority_is_in_its_range(priority: Any) -> None:
    with pytest.raises(InvalidConfigError, match="priority must be a whole number from -100 to 100"):
        durable(priority=priority)(execute)
    if priority is not None:
        with pytest.raises(InvalidConfigError, match="priority must be a whole number from -100 to 100"):
            note.configure(priority=priority)


async def test_the_call_has_the_queue_and_the_priority_of_the_function_or_its_own() -> None:
    function = durable(name="queues.urgent", queue="payments", priority=7)(note.func)
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        for chosen in (function, function.configure(queue="default", priority=0), note.configure(priority=-3), note):
            await scheduler.schedule(chosen, "x")
    assert [(call.queue, call.priority) for call in engine.calls] == [
        ("payments", 7),
        ("default", 0),
        ("default", -3),
        ("default", 0),
    ]


async def test_an_engine_without_queues_or_priorities_is_an_error_at_the_call() -> None:
    class Plain(ListEngine):
        capabilities = frozenset()

    async with TaskScheduler(engine=Plain()) as scheduler:
        with pytest.raises(EngineCapabilityError, match="with queue=, which list cannot do"):
            scheduler.schedule(note.configure(queue="payments"), "x")
        with pytest.raises(EngineCapabilityError, match="with priority=, which list cannot do"):
            scheduler.schedule(note.configure(priority=1), "x")
        await scheduler.schedule(note.configure(queue="default", priority=0), "x")
    with pytest.raises(EngineCapabilityError, match="list has one queue only"):
        Worker(Plain(), queues={"default": 1})


@pytest.mark.parametrize(
    "options, text",
    [
        ({"queues": {}}, "serves one queue at least"),
        ({"queues": {"a b": 1}}, "queue must be a name"),
        ({"queues": {"payments": 0}}, r"queues=\{'payments': 0\}: the slots of a queue must be a whole number"),
        ({"queues": {"payments": True}}, "the slots of a queue must be a whole number"),
        ({"queues": {"payments": 4}, "concurrency": 4}, "Write one of them"),
        ({"concurrency": "4"}, "concurrency must be a whole number"),
    ],
)
def test_slots_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfigError, match=text):
        Worker(ListEngine(), **options)


# ---- a worker of several queues ----


async def test_default_is_the_queue_of_the_engine(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipts = [await scheduler.schedule(note.configure(queue=name), name) for name in (queue, "default")]
        async with working(engine, concurrency=None, queues={"default": 1, queue: 1}):
            for receipt in receipts:
                await ends(receipt, DurableState.SUCCEEDED)
    names = await execute(
        postgres,
        "SELECT DISTINCT queue_name FROM procrastinate_jobs WHERE id = ANY(%s)",
        [int(receipt.id) for receipt in receipts],
    )
    assert names == [(queue,)]


async def test_each_queue_announces_its_calls(
    engine: ProcrastinateEngine, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._work.POLL", 1000.0)
    queues = {"default": 1, f"{queue}-b": 1}
    async with TaskScheduler(engine=engine) as scheduler, working(engine, concurrency=None, queues=queues):
        for name in queues:
            for text in ("a", "b"):  # the second one comes when the worker sleeps
                await ends(await scheduler.schedule(note.configure(queue=name), text), DurableState.SUCCEEDED)


async def test_one_statement_asks_for_all_queues(
    engine: ProcrastinateEngine, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle worker asks as often as one with a single queue, and a full queue makes it ask no more often."""
    monkeypatch.setattr("tasks_core.engines.procrastinate._work.POLL", 1000.0)
    asked: Counter[str] = Counter()
    queues: list[list[str]] = []
    fetch = WorkerConnection.fetch

    async def counting(self: WorkerConnection, query: Any, parameters: Any = None) -> list[Any]:
        asked[query] += 1
        if query is NEXT_DUE:
            queues.append(parameters["queues"])
        return await fetch(self, query, parameters)

    monkeypatch.setattr(WorkerConnection, "fetch", counting)
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(hold, "full")
        # Due as soon as a slot is free: while there is none, nothing may look for it.
        await scheduler.task(delay=0.01).schedule(hold, "full")
        async with working(engine, concurrency=None, queues={"default": 1, f"{queue}-b": 1, f"{queue}-c": 1}):
            await until(lambda: _is(ran == ["full"] and len(queues) > 0))
            await anyio.sleep(0.3)  # what is counted is that nothing happens
            before = asked[CLAIM]
            await ends(await scheduler.schedule(note.configure(queue=f"{queue}-b"), "x"), DurableState.SUCCEEDED)
            assert asked[CLAIM] - before <= 4
            assert before <= 6
            assert [f"{queue}-b", f"{queue}-c"] in queues
            gates["full"].set()


async def test_a_call_that_killed_a_worker_takes_a_slot_of_its_queue(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        for text in ("suspect", "second"):
            await scheduler.schedule(hold, text)
        other = await scheduler.schedule(note.configure(queue=f"{queue}-b"), "other")
        await execute(
            postgres,
            "UPDATE procrastinate_jobs SET args = args || '{\"deaths\": [1]}'"
            " WHERE queue_name = %s AND args->'args'->>'text' = 'suspect'",
            queue,
        )
        async with working(engine, concurrency=None, queues={"default": 1, f"{queue}-b": 1}):
            await ends(other, DurableState.SUCCEEDED)
            assert ran == ["suspect"]
            gates["suspect"].set()
            await until(lambda: _is(ran == ["suspect", "second"]))
            gates["second"].set()


async def test_what_a_dead_worker_had_is_found_in_each_queue(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(note.configure(queue=f"{queue}-b"), "x")
        await execute(postgres, "UPDATE procrastinate_jobs SET status = 'doing' WHERE id = %s", int(receipt.id))
        async with working(engine, concurrency=None, queues={"default": 1, f"{queue}-b": 1}):
            await ends(receipt, DurableState.SUCCEEDED)


async def test_rows_are_deleted_in_each_queue(postgres: str, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping.PAUSE", 0.05)
    engine = ProcrastinateEngine(postgres, queue=queue, keep_finished=0.0)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(note.configure(queue=f"{queue}-b"), "x")
        async with working(engine, concurrency=None, queues={"default": 1, f"{queue}-b": 1}):
            await ends(receipt, DurableState.UNKNOWN)
    assert functions.ran == ["x"]


async def test_a_queue_that_no_worker_serves_is_a_warning(
    engine: ProcrastinateEngine,
    postgres: str,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping.PAUSE", 0.05)
    caplog.set_level(logging.WARNING, "tasks_core")
    forgotten, served, foreign = f"{queue}-forgotten", f"{queue}-served", f"{queue}-foreign"

    def lines() -> list[str]:
        return [line for line in caplog.messages if line.startswith("No worker serves") and queue in line]

    async with TaskScheduler(engine=engine) as scheduler:
        for name in (forgotten, served):
            for function in (note, hands_on):
                await scheduler.schedule(function.configure(queue=name), "x")
        row = await scheduler.schedule(note.configure(queue=foreign), "x")  # of a function that is another's
        await execute(
            postgres, 'UPDATE procrastinate_jobs SET args = args || \'{"name": "other"}\' WHERE id = %s', int(row.id)
        )
        await execute(
            postgres,
            "WITH worker AS (INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id)"
            " INSERT INTO tasks_workers_v2 SELECT id, ARRAY[%s], '{}' FROM worker",
            served,
        )
        monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping.MISSED", 1000)
        async with working(engine, concurrency=None, queues={"default": 1}):
            await until(lambda: _is(bool(lines())))
            await anyio.sleep(0.3)  # several rounds
        assert lines() == [
            f"No worker serves the queue {forgotten!r}, where calls of {hands_on.name!r}, {note.name!r} wait. "
            f"Run one: python -m tasks_core worker ... --queue {forgotten}=4"
        ]


async def _is(value: bool) -> bool:
    return value
