"""What operators ask of the engine on PostgreSQL, beyond the contract of engines."""

from __future__ import annotations

import json
import logging
from typing import Any

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import flaky, forget, note, shielded
from core_postgres import Wire, ends, execute, new_database, postgres, queue, until, wire, working
from tasks_core import TaskScheduler
from tasks_core.engines import (
    DEFAULT_QUEUE,
    AttemptRecord,
    DurableState,
    EngineError,
    EngineUnavailableError,
    OperableEngine,
    QueueStatistics,
)
from tasks_core.engines.procrastinate import ProcrastinateEngine, _operate
from tasks_core.engines.procrastinate._sql import NEXT_DUE

__all__ = ("forget", "postgres", "queue", "wire")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=4, heartbeat=0.2)


async def _insert_failed(address: str, queue: str, count: int, name: str = "many", **fields: Any) -> list[str]:
    """Store rows of tasks that have failed, and return their ids in ascending order."""
    stored = {"name": name, "key": "k", "args": {}, **fields}
    rows = await execute(
        address,
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, attempts)"
        " SELECT %s, 'tasks_core.run', %s, 'failed', 1 FROM generate_series(1, %s) RETURNING id",
        queue,
        json.dumps(stored),
        count,
    )
    return [str(row[0]) for row in rows]


def test_has_the_methods_for_operators(engine: ProcrastinateEngine) -> None:
    assert isinstance(engine, OperableEngine)


async def _default(engine: ProcrastinateEngine) -> QueueStatistics:
    """Return the numbers of the default queue. Other queues may have tasks of other tests."""
    return next(one for one in await engine.statistics() if one.queue == DEFAULT_QUEUE)


# ---- looking ----


async def test_error_and_traceback_are_shown_and_found(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with engine:
        errors: list[object] = [
            {"attempt": 1, "began": 0, "ended": 86400.0, "error": "ConnectionError", "traceback": "line 1"},
            "of another release",
            {"attempt": 2, "began": 1.0, "ended": 2.0, "error": "KeyError: 'Order'", "traceback": ""},
        ]
        [old] = await _insert_failed(postgres, queue, 1, errors="of another release", headers=["nonsense"])
        [one] = await _insert_failed(postgres, queue, 1, errors=errors)
        page = await engine.find(error="keyerror: 'order")
        assert [(task.id, task.error) for task in page.tasks] == [(one, "KeyError: 'Order'")]
        shown = await engine.show(one)
        assert shown is not None
        assert shown.errors == (
            AttemptRecord(1, 0, 86400.0, "ConnectionError", "line 1"),
            AttemptRecord(2, 1.0, 2.0, "KeyError: 'Order'"),
        )
        other = await engine.show(old)
        assert other is not None
        assert (other.errors, other.headers, other.events) == ((), {}, ())


async def test_filter_that_fits_few_rows_reads_on_in_bounded_steps(
    engine: ProcrastinateEngine, postgres: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_operate, "_LOOK_MOST", 2_000)
    async with engine:
        [rare] = await _insert_failed(postgres, queue, 1, "rare")
        await _insert_failed(postgres, queue, 1_500)
        page = await engine.find(name="rare", state=DurableState.FAILED)
        assert [task.id for task in page.tasks] == [rare]
        assert page.after is None
        await _insert_failed(postgres, queue, 1_500)
        page = await engine.find(name="rare", state=DurableState.FAILED)
        assert page.tasks == ()
        assert page.after is not None, "the bound was reached, and there is more"
        page = await engine.find(name="rare", state=DurableState.FAILED, after=page.after)
        assert [task.id for task in page.tasks] == [rare]
        assert await engine.retry(name="rare", dry_run=True) == 1


async def test_text_that_postgresql_cannot_have_is_an_error_of_the_call(engine: ProcrastinateEngine) -> None:
    async with engine:
        with pytest.raises(EngineError, match="refused the statement: DataError") as error:
            await engine.find(name="a\0")
        assert not isinstance(error.value, EngineUnavailableError), "it would fail again"


async def test_age_is_that_of_the_submit(postgres: str, queue: str) -> None:
    # In a database of its own: earlier tests leave rows that are younger than the rows after them.
    async with (
        new_database(postgres, "ages") as address,
        TaskScheduler(engine=(engine := ProcrastinateEngine(address, queue=queue))) as scheduler,
    ):
        receipts = [await scheduler.schedule(note, text) for text in ("a", "b", "c")]
        for receipt in receipts[:2]:
            await execute(
                address, "UPDATE procrastinate_events SET at = now() - interval '2 h' WHERE job_id = %s", receipt.id
            )
        page = await engine.find(older_than=3600.0, queue=DEFAULT_QUEUE)
        assert [task.id for task in page.tasks] == [receipts[1].id, receipts[0].id]
        numbers = await _default(engine)
        assert numbers.oldest_waiting is not None
        assert 7200 <= numbers.oldest_waiting < 7300


async def test_oldest_age_counts_from_the_moment_when_a_delayed_task_was_due(
    engine: ProcrastinateEngine, postgres: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.task(delay=3600).schedule(note, "late")
        await scheduler.task(delay=3600).schedule(note, "not yet")
        await execute(
            postgres,
            "UPDATE procrastinate_jobs SET scheduled_at = now() - interval '60 s' WHERE id = %s",
            int(receipt.id),
        )
        numbers = await _default(engine)
        assert (numbers.waiting, numbers.delayed) == (1, 1)
        assert numbers.oldest_waiting is not None
        assert 60 <= numbers.oldest_waiting < 70


async def test_oldest_age_is_that_of_the_longest_wait_of_all_names_and_priorities(
    engine: ProcrastinateEngine, postgres: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipts = [await scheduler.schedule(note, text) for text in ("a", "b")]
        receipts.append(await scheduler.schedule(shielded, "c"))
        await execute(postgres, "UPDATE procrastinate_jobs SET priority = -1 WHERE id = %s", int(receipts[1].id))
        for receipt, minutes in zip(receipts, (1, 3, 2), strict=True):
            await execute(
                postgres,
                "UPDATE procrastinate_events SET at = now() - make_interval(mins => %s) WHERE job_id = %s",
                minutes,
                int(receipt.id),
            )
        numbers = await _default(engine)
        assert numbers.waiting == 3
        assert numbers.oldest_waiting is not None
        assert 180 <= numbers.oldest_waiting < 190


async def test_numbers_are_those_of_each_queue(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(note.configure(queue="operated"), "a")
        await scheduler.schedule(note, "b")
        page = await engine.find(queue="operated")
        assert [(task.id, task.queue) for task in page.tasks] == [(receipt.id, "operated")]
        assert [task.queue for task in (await engine.find(queue=DEFAULT_QUEUE)).tasks] == [DEFAULT_QUEUE]
        assert (await _default(engine)).waiting == 1
        await engine.discard(queue="operated", state=DurableState.CANCELLED)
        assert await engine.cancel(queue="operated") == 1
        await engine.discard(queue="operated", state=DurableState.CANCELLED)


async def test_silent_worker_is_a_problem(engine: ProcrastinateEngine, postgres: str, queue: str) -> None:
    async with engine, working(engine):

        async def has_worker() -> bool:
            numbers = await _default(engine)
            return numbers.workers_alive == 1

        await until(has_worker)
        await execute(
            postgres,
            "WITH dead AS (INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 h')"
            " RETURNING id) INSERT INTO tasks_workers_v2 SELECT id, ARRAY[%s], '{}' FROM dead",
            queue,
        )
        health = await engine.health()
        assert "Queue 'default': 1 workers give no sign of life" in health.problems
        assert not health.healthy


async def test_rate_is_that_of_the_events_that_were_read(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    """A busy queue has more events in a minute than the statement reads."""
    async with engine:
        ids = await _insert_failed(postgres, queue, 2_500)
        await execute(
            postgres,
            "INSERT INTO procrastinate_events (job_id, type, at)"
            " SELECT id, 'failed', now() - interval '4 s' FROM unnest(%s::bigint[]) AS id",
            [int(one) for one in ids],
        )
        numbers = await _default(engine)
        assert 300 < numbers.ended_per_second <= 500, "2,000 in 4 s, and not in a minute"


async def test_slow_answer_is_a_problem(engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.5])
    monkeypatch.setattr(_operate, "perf_counter", lambda: next(moments))
    async with engine:
        health = await engine.health()
    assert health.reachable
    assert "PostgreSQL took 1.5 s to answer" in health.problems


async def test_engine_that_is_away_says_so(wire: Wire, queue: str) -> None:
    engine = ProcrastinateEngine(wire.address, queue=queue, pool_size=2, heartbeat=0.2)
    async with engine:
        await wire.cut()
        with pytest.raises(EngineUnavailableError):
            await engine.statistics()
        health = await engine.health()
        assert not health.reachable
        assert not health.healthy
        assert "PostgreSQL did not acknowledge" in health.problems[0]
        await wire.mend()

        async def is_reachable() -> bool:
            return (await engine.health()).reachable

        await until(is_reachable)


async def test_tasks_of_another_queue_are_left_alone(postgres: str, queue: str) -> None:
    own = ProcrastinateEngine(postgres, queue=queue, pool_size=2)
    other = ProcrastinateEngine(postgres, queue=f"{queue}-other", pool_size=2)
    async with own, TaskScheduler(engine=other) as scheduler:
        receipt = await scheduler.schedule(note, "a")
        assert await own.show(receipt.id) is None
        assert await own.cancel(receipt.id) == 0
        assert await own.cancel(name=note.name) == 0
        assert (await own.find(queue=DEFAULT_QUEUE)).tasks == ()
        assert (await own.find(queue=f"{queue}-other")).tasks != (), "but an operator may name it"
        await own.pause(queue=f"{queue}-other")
        assert [(pause.queue, pause.name) for pause in await other.pauses()] == [(DEFAULT_QUEUE, None)]
        assert await own.pauses() == ()


# ---- verbs ----


async def test_verb_acts_in_batches_and_tells_how_far_it_is(
    engine: ProcrastinateEngine, postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    async with engine:
        ids = await _insert_failed(postgres, queue, 1_200)
        told: list[int] = []
        assert await engine.discard(name="many", dry_run=True, on_progress=told.append) == 1_200
        assert await engine.discard(name="many", on_progress=told.append) == 1_200
        assert told == [500, 1_000, 1_200] * 2
        assert (await engine.find(queue=DEFAULT_QUEUE)).tasks == ()
    lines = [record.getMessage() for record in caplog.records if "by an operator" in record.getMessage()]
    assert len(lines) == 1_200
    assert f"Task 'many', key k, job {ids[0]}, queue default, is deleted, by an operator" in lines


async def test_task_that_was_given_up_runs_again(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(note, "again")
        await execute(
            postgres,
            "UPDATE procrastinate_jobs SET status = 'failed',"
            ' args = args || \'{"given_up": "5 workers died", "deaths": [1], "returns": 5}\' WHERE id = %s',
            int(receipt.id),
        )
        assert await engine.retry(receipt.id) == 1
        async with working(engine):
            await ends(receipt, DurableState.SUCCEEDED)
    assert functions.ran == ["again"]


async def test_retry_of_a_row_that_an_operator_has_written(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with engine:
        [one] = await _insert_failed(postgres, queue, 1, returns="many")
        assert await engine.retry(one) == 1
        [[fields]] = await execute(postgres, "SELECT args FROM procrastinate_jobs WHERE id = %s", int(one))
        assert fields["returns"] == 0


async def test_every_end_and_return_is_an_event(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(note, "a")
        await engine.cancel(receipt.id)
        await engine.retry(receipt.id)
        shown = await engine.show(receipt.id)
    assert shown is not None
    assert [event.type for event in shown.events] == ["deferred", "cancelled", "retried"]


async def test_claims_sleep_while_all_that_is_due_is_paused(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    """Otherwise the next call would be due at once, again and again."""
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.task(delay=0.001).schedule(note, "a")
        parameters = {"queues": [queue], "names": [note.name]}
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            [[due]] = await (await connection.execute(NEXT_DUE, parameters)).fetchall()
            assert due is not None
            await engine.pause(name=note.name)
            [[due]] = await (await connection.execute(NEXT_DUE, parameters)).fetchall()
            assert due is None


async def test_pauses_and_resumes_are_logged(engine: ProcrastinateEngine, caplog: pytest.LogCaptureFixture) -> None:
    async with engine:
        for _ in range(2):
            await engine.pause(queue=DEFAULT_QUEUE)
        await engine.pause(queue=DEFAULT_QUEUE, name="charge")
        await engine.resume(queue=DEFAULT_QUEUE)
        for _ in range(2):
            await engine.resume(queue=DEFAULT_QUEUE, name="charge")
    assert [record.getMessage() for record in caplog.records if "operator" in record.getMessage()] == [
        "Queue 'default': all functions are paused, by an operator",
        "Queue 'default': 'charge' is paused, by an operator",
        "Queue 'default': all functions are resumed, by an operator",
        "Queue 'default': 'charge' is resumed, by an operator",
    ]


async def test_purge_without_an_age_keeps_what_the_engine_keeps(postgres: str, queue: str) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, keep_finished=0.0)
    keeping = ProcrastinateEngine(postgres, queue=queue)  # its worker deletes nothing by itself
    async with TaskScheduler(engine=engine) as scheduler:
        done, failed = await scheduler.schedule(note, "a"), await scheduler.schedule(flaky, 9, "KeyError")
        async with working(keeping):
            await ends(failed, DurableState.FAILED)
            await ends(done, DurableState.SUCCEEDED)
        await engine.purge()
        assert (await done.status()).state is DurableState.UNKNOWN
        assert (await failed.status()).state is DurableState.FAILED


async def test_engine_on_trio_asks_through_its_thread(postgres: str, queue: str) -> None:
    def ask() -> list[str]:
        async def main() -> list[str]:
            async with ProcrastinateEngine(postgres, queue=queue, pool_size=2) as engine:
                return [numbers.queue for numbers in await engine.statistics()]

        return anyio.run(main, backend="trio")

    assert DEFAULT_QUEUE in await anyio.to_thread.run_sync(ask)
