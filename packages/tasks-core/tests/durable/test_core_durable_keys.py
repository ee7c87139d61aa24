"""One at a time by key, on a real PostgreSQL: whoever ends a task, and whatever transactions are open meanwhile."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import forget, note
from core_engine import ListEngine
from core_postgres import ends, execute, postgres, queue, until, working
from core_support import messages
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from tasks_core import Receipt, TaskScheduler, durable
from tasks_core.engines import DurableCall, DurableState, EngineCapabilityError
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.engines.procrastinate._sql import CLAIM
from tasks_core.exceptions import InvalidConfigError

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio

ran: list[str] = []
gates: dict[str, anyio.Event] = {}
running: Counter[str] = Counter()
most: Counter[str] = Counter()


@durable(name="keys.hold")
async def hold(text: str) -> None:
    ran.append(text)
    await gates.setdefault(text, anyio.Event()).wait()


@durable(name="keys.count")
async def count(key: str, number: int) -> None:
    running[key] += 1
    most[key] = max(most[key], running[key])
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    running[key] -= 1
    ran.append(f"{key} {number}")


@pytest.fixture(autouse=True)
def empty() -> None:
    ran.clear()
    gates.clear()
    running.clear()
    most.clear()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping.PAUSE", 0.05)


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=4, heartbeat=0.2)


async def has(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds)


# ---- at the call ----


@pytest.mark.parametrize("key", ["a\0b", "\ud800", "k" * 501])
async def test_a_key_that_cannot_be_stored_is_refused(key: str) -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(InvalidConfigError, match="key must be a text of 1 to 500 characters"):
            scheduler.task(key=key).schedule(note, "x")


async def test_a_key_is_said_to_the_target() -> None:
    with pytest.raises(
        TypeError, match=r"'key'; it is said to the target: \.task\(key=\.\.\.\)\.schedule\(note, \.\.\.\)"
    ):
        note.configure(key="k")  # type: ignore[arg-type]  # no other option
    with pytest.raises(TypeError, match=r"unexpected option 'nonsense'. It takes: idempotency_key, tr"):
        note.configure(nonsense="k")  # type: ignore[arg-type]  # no other option


async def test_an_engine_without_keys_is_an_error_at_the_call() -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(EngineCapabilityError, match="with key=, which list cannot do"):
            scheduler.task(key="k").schedule(note, "x")


async def test_a_task_that_runs_in_memory_after_all_keeps_its_key(caplog: pytest.LogCaptureFixture) -> None:
    class Away(ListEngine):
        capabilities = frozenset(("key",))

    caplog.set_level(logging.INFO, "tasks_core")
    async with TaskScheduler(engine=Away(down=True), engine_fallback="memory") as scheduler:
        keyed = scheduler.task(key="k", on_conflict="queue")
        for text in ("a", "b"):
            await keyed.schedule(hold, text)
        await has(lambda: ran == ["a"])
        await scheduler.task(key="k").schedule(hold, "c")
        gates["a"].set()
        await has(lambda: ran == ["a", "b"])
        gates["b"].set()
    assert ran == ["a", "b"]
    assert any("has its key 'keys.hold:k'" in line for line in messages(caplog))


# ---- lines ----


async def test_what_a_call_joins_or_replaces_is_logged(
    engine: ProcrastinateEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    async with TaskScheduler(engine=engine) as scheduler:
        first = await scheduler.task(key="k").schedule(note, "a")
        await scheduler.task(key="k").schedule(note, "b")
        third = await scheduler.task(key="k", on_conflict="replace").schedule(note, "c")
    joined, replaced = [line for line in messages(caplog) if "its key" in line or "same key" in line]
    assert joined.startswith("Task 'note' #")
    assert joined.endswith(f" made no new task: task {first.id} of procrastinate has its key 'k', and has not ended")
    assert replaced.startswith(f"Task {first.id} of procrastinate is cancelled before it started: Task 'note' #")
    assert replaced.endswith(" replaced it, which has the same key 'k'")
    assert third.replaced == (first.id,)


# ---- transactions ----


async def test_the_end_of_a_task_does_not_wait_for_a_transaction_that_stores_the_next(
    engine: ProcrastinateEngine, postgres: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        queued = scheduler.task(key="k", on_conflict="queue")
        head = await queued.schedule(hold, "head")
        await has(lambda: ran == ["head"])
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute("SELECT 1")
            following = await queued.schedule(note.configure(transaction=connection), "other function")
            behind = await queued.schedule(hold.configure(transaction=connection), "behind")
            gates["head"].set()
            await ends(head, DurableState.SUCCEEDED)
            assert ran == ["head"]
            await connection.commit()
        await has(lambda: ran == ["head", "behind"])
        gates["behind"].set()
        for receipt in (following, behind):
            await ends(receipt, DurableState.SUCCEEDED)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_transaction_that_is_rolled_back_leaves_the_key_free(
    engine: ProcrastinateEngine, postgres: str, driver: str
) -> None:
    database = create_async_engine(f"postgresql+{driver}://postgres@/postgres?host={postgres.rpartition('=')[2]}")
    try:
        async with TaskScheduler(engine=engine) as scheduler, working(engine):
            async with AsyncSession(database) as session:
                task = scheduler.task(key="k").schedule(note.configure(transaction=session), "gone")
                await task
                await session.rollback()
            kept = await scheduler.task(key="k").schedule(note, "kept")
            assert kept.created
            await ends(kept, DurableState.SUCCEEDED)
    finally:
        await database.dispose()
    assert functions.ran == ["kept"]


async def test_a_replacement_that_is_rolled_back_keeps_nothing_from_running(
    engine: ProcrastinateEngine, postgres: str, soon: None
) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        queued = scheduler.task(key="k", on_conflict="queue")
        head = await queued.schedule(hold, "head")
        behind = await queued.schedule(hold, "behind")
        await has(lambda: ran == ["head"])
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute("SELECT 1")
            latest = scheduler.task(key="k", on_conflict="replace")
            receipt = await latest.schedule(hold.configure(transaction=connection), "never")
            assert receipt.replaced == (behind.id,)
            gates["head"].set()
            await ends(head, DurableState.SUCCEEDED)
            await connection.rollback()
        await has(lambda: ran == ["head", "behind"])
        gates["behind"].set()
        await ends(behind, DurableState.SUCCEEDED)


# ---- operators ----


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT procrastinate_cancel_job_v1(%s, false, false)",
        "DELETE FROM procrastinate_jobs WHERE id = %s",
        "UPDATE procrastinate_jobs SET status = 'failed' WHERE id = %s",
    ],
)
async def test_whatever_ends_a_task_lets_the_next_run(
    engine: ProcrastinateEngine, postgres: str, statement: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        queued = scheduler.task(key="k", on_conflict="queue")
        receipts = [await queued.schedule(note, text) for text in ("head", "second", "third")]
        await execute(postgres, statement, int(receipts[1].id))  # that stands behind: the head stays
        await execute(postgres, statement, int(receipts[0].id))
        async with working(engine):
            await ends(receipts[2], DurableState.SUCCEEDED)
    assert functions.ran == ["third"]


async def test_a_task_that_an_operator_retries_waits_behind_the_one_that_has_its_key(
    engine: ProcrastinateEngine, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        queued = scheduler.task(key="k", on_conflict="queue")
        failed = await queued.schedule(hold, "failed")
        await execute(postgres, "UPDATE procrastinate_jobs SET status = 'failed' WHERE id = %s", int(failed.id))
        async with working(engine):
            following = await queued.schedule(hold, "following")
            await has(lambda: ran == ["following"])
            await execute(postgres, "SELECT procrastinate_retry_job_v2(%s, now(), NULL, NULL, NULL)", int(failed.id))
            await ends(await scheduler.schedule(note, "beside"), DurableState.SUCCEEDED)
            gates["following"].set()
            await has(lambda: ran == ["following", "failed"])
            gates["failed"].set()
            for receipt in (failed, following):
                await ends(receipt, DurableState.SUCCEEDED)
            alone = await queued.schedule(hold, "alone")
            await has(lambda: ran[2:] == ["alone"])
            gates["alone"].set()
            await ends(alone, DurableState.SUCCEEDED)
    assert "cannot claim" not in caplog.text


async def test_what_waits_behind_a_function_that_no_worker_knows_is_given_up_with_it(
    postgres: str, queue: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2)
    async with engine:
        receipts = await engine.submit_many(
            [DurableCall("gone", {}, f"k-{number}", key="k", on_conflict="queue") for number in range(4)]
        )
        long_ago = """UPDATE procrastinate_jobs SET args = args || '{"misfit_since": 0}' WHERE id = %s"""
        await execute(postgres, long_ago, int(receipts[0].id))
        async with working(engine):
            for receipt in receipts:
                await ends(receipt, DurableState.FAILED)
    assert caplog.text.count("has failed: no worker knew its function") == 4


# ---- many ----


async def test_a_claim_does_not_read_what_waits_behind_a_key(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    def calls(number: int) -> list[DurableCall]:
        return [
            DurableCall(note.name, {"text": str(n)}, f"{number}-{n}", key="k", on_conflict="queue")
            for n in range(number)
        ]

    async def blocks() -> int:
        explained = await execute_in_rolled_back(
            postgres,
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + CLAIM,
            {
                "queues": [queue],
                "rooms": [1],
                "free": [32],
                "names": [note.name],
                "worker": None,
                "look": 128,
                "suspects": True,
            },
        )
        plan = explained[0][0][0]["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    async with engine:
        await engine.submit_many(calls(2))
        few = await blocks()
        await engine.submit_many(calls(5_000))
        assert await blocks() < few + 200


async def execute_in_rolled_back(address: str, statement: str, parameters: dict[str, Any]) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(address) as connection:
        await connection.execute("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off")
        rows = await (await connection.execute(statement.encode(), parameters)).fetchall()
        await connection.rollback()
        return rows


async def test_one_at_a_time_for_many_keys_workers_and_submits(engine: ProcrastinateEngine, postgres: str) -> None:
    """Each call that waited for its turn runs once and in order, however submits, ends and commits overlap."""
    receipts: list[Receipt[Any]] = []

    async def submit(scheduler: TaskScheduler, key: str) -> None:
        for number in range(40):
            queued = scheduler.task(key=key, on_conflict="queue")
            if number % 3:
                receipts.append(await queued.schedule(count, key, number))
                continue
            async with await psycopg.AsyncConnection.connect(postgres) as connection:
                await connection.execute("SELECT 1")
                receipts.append(await queued.schedule(count.configure(transaction=connection), key, number))
                await anyio.sleep(0.002 * (number % 4))

    async with TaskScheduler(engine=engine) as scheduler, working(engine), working(engine):
        async with anyio.create_task_group() as group:
            for key in ("a", "b", "c"):
                group.start_soon(submit, scheduler, key)
        for receipt in receipts:
            await ends(receipt, DurableState.SUCCEEDED)
    assert set(most.values()) == {1}
    for key in ("a", "b", "c"):
        assert [line for line in ran if line.startswith(key)] == [f"{key} {number}" for number in range(40)]
    heads = await execute(postgres, "SELECT FROM tasks_heads_v1 WHERE lock LIKE %s", f'%"{count.name}"%')
    assert heads == [], "nothing is kept for a key that no task has"
