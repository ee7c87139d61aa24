"""What a worker meets rarely: it is forgotten, its rows are refused, its event loop ends, its tables are away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import forget, note, unshielded
from core_postgres import Wire, ends, engine, execute, new_database, postgres, queue, until, until_logged, wire, working
from core_support import messages
from sqlalchemy.ext.asyncio import create_async_engine
from tasks_core import Receipt, Retry, Task, TaskScheduler, durable, durable_context
from tasks_core.engines import DurableCall, DurableState, EngineCapabilityError, EngineUnavailableError
from tasks_core.engines.procrastinate import ProcrastinateEngine

__all__ = ("engine", "forget", "postgres", "queue", "wire")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # all that procrastinate and psycopg know


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look again soon."""
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.RECONNECT", 0.1)
    monkeypatch.setattr("tasks_core.engines.procrastinate._work.POLL", 0.1)
    monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping.PAUSE", 0.1)


async def registrations(address: str, queue: str) -> list[int]:
    return [row[0] for row in await execute(address, "SELECT id FROM tasks_workers_v2 WHERE %s = ANY(queues)", queue)]


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[str]:
    """The address of a database for one test."""
    async with new_database(postgres, "rare") as address:
        yield address


# ---- engines that are not there ----


async def test_an_engine_that_was_not_entered_is_unavailable(queue: str) -> None:
    engine = ProcrastinateEngine("postgresql://127.0.0.1:1/none", queue=queue)
    with pytest.raises(EngineUnavailableError, match="InterfaceError"):
        await engine.submit(DurableCall(note.name, {"text": "x"}, "k"))


async def test_a_connection_that_was_not_opened_is_an_error_at_the_call(
    engine: ProcrastinateEngine, postgres: str
) -> None:
    database = create_async_engine("postgresql+psycopg://", connect_args={"conninfo": postgres})
    async with TaskScheduler(engine=engine) as scheduler:
        with pytest.raises(EngineCapabilityError, match="was given a connection that is not open"):
            scheduler.schedule(note.configure(transaction=database.connect()), "x")
    await database.dispose()


# ---- the registration of a worker ----


async def test_a_worker_that_was_deleted_registers_again(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(note, "before"), DurableState.SUCCEEDED)
        (before,) = await registrations(postgres, queue)
        await execute(postgres, "DELETE FROM procrastinate_workers WHERE id = %s", before)

        async def registered_again() -> bool:
            return await registrations(postgres, queue) not in ([], [before])

        await until(registered_again)
        await ends(await scheduler.schedule(note, "after"), DurableState.SUCCEEDED)
    assert functions.ran == ["before", "after"]


async def late(text: str) -> None:
    functions.ran.append(text)


async def test_a_function_that_is_loaded_later_is_known_to_the_worker(
    engine: ProcrastinateEngine, postgres: str, queue: str
) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(note, "known"), DurableState.SUCCEEDED)
        before = await registrations(postgres, queue)
        loaded = durable(name=queue)(late)
        await ends(await scheduler.schedule(loaded, "loaded later"), DurableState.SUCCEEDED)
        assert await registrations(postgres, queue) != before
    assert functions.ran == ["known", "loaded later"]


async def test_a_late_answer_about_an_old_registration_does_not_end_the_new_one(
    engine: ProcrastinateEngine, postgres: str, queue: str, wire: Wire
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        wire.delay(b"SET last_heartbeat", answer=False)
        async with working(engine):
            await wire.delayed.wait()
            [before] = await registrations(postgres, queue)
            await execute(postgres, "DELETE FROM procrastinate_workers WHERE id = %s", before)
            loaded = durable(name=f"{queue}-later")(late)  # for which the worker registers anew
            await ends(await scheduler.schedule(loaded, "loaded later"), DurableState.SUCCEEDED)
            [after] = await registrations(postgres, queue)
            assert after != before
            beat = wire.watch(b"SET last_heartbeat")
            wire.released.set()  # the heartbeat finds no registration
            await beat.wait()
            beat.clear()
            await beat.wait()
            await ends(await scheduler.schedule(note, "after"), DurableState.SUCCEEDED)
            assert await registrations(postgres, queue) == [after]
    assert functions.ran == ["loaded later", "after"]


# ---- progress ----


@durable
async def reports_in_vain() -> None:
    try:
        await durable_context().report_progress({"done": 1})
    except psycopg.Error as error:
        functions.ran.append(type(error).__name__)


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.args ? 'progress' THEN RAISE EXCEPTION 'no progress'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON procrastinate_jobs FOR EACH ROW EXECUTE FUNCTION refuse()
"""


async def test_progress_that_the_database_refuses_is_an_error_of_the_task(database: str, queue: str) -> None:
    engine = ProcrastinateEngine(database, queue=queue, pool_size=1)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await connection.execute(REFUSE)
        await ends(await scheduler.schedule(reports_in_vain), DurableState.SUCCEEDED)
    assert functions.ran == ["RaiseException"]


@durable
async def reports_later() -> None:
    functions.waiting["progress"].set()
    await functions.released["progress"].wait()
    await durable_context().report_progress({"done": 1})


async def test_progress_waits_for_a_database_that_is_away(
    engine: ProcrastinateEngine, postgres: str, queue: str, wire: Wire
) -> None:
    functions.waiting["progress"], functions.released["progress"] = anyio.Event(), anyio.Event()
    direct = ProcrastinateEngine(postgres, queue=queue, pool_size=1)
    async with TaskScheduler(engine=direct) as scheduler, working(engine):
        receipt = await scheduler.schedule(reports_later)
        await functions.waiting["progress"].wait()
        await wire.cut()
        functions.released["progress"].set()
        await anyio.sleep(0.5)
        assert (await receipt.status()).progress is None
        await wire.mend()
        await ends(receipt, DurableState.SUCCEEDED)
        assert (await receipt.status()).progress == {"done": 1}


# ---- reports that the database refuses ----


async def note_and_retry(task: Task[Any], error: Exception) -> Retry:
    functions.ran.append("never again")
    return Retry(1e300)  # which no column can have


@durable(retry=None, on_error=note_and_retry)
async def never_again() -> None:
    await functions.released["never again"].wait()
    raise ValueError


@durable
async def once(text: str) -> None:
    await functions.released[text].wait()
    functions.ran.append(text)


@pytest.mark.parametrize("together", [False, True])
async def test_a_report_that_the_database_refuses_does_not_keep_the_others_from_being_stored(
    together: bool,
    engine: ProcrastinateEngine,
    postgres: str,
    queue: str,
    wire: Wire,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._reports.LAST_WORDS", 0.5)
    refused = "that could not be stored, and is tried again"

    async def end(text: str) -> None:
        """Have a task end, and its report wait until it can be stored."""
        functions.released[text].set()

        async def ran() -> bool:
            return text in functions.ran

        await until(ran)
        await anyio.wait_all_tasks_blocked()

    for text in ("first", "never again", "last"):
        functions.released[text] = anyio.Event()
    direct = ProcrastinateEngine(postgres, queue=queue, pool_size=1)
    async with TaskScheduler(engine=direct) as scheduler, working(engine):
        receipts = [await scheduler.schedule(once, "first"), await scheduler.schedule(once, "last")]
        for receipt in [*receipts, await scheduler.schedule(never_again)]:
            await ends(receipt, DurableState.RUNNING)
        if together:
            await wire.cut()
            for text in functions.released:
                await end(text)
            await wire.mend()
        else:
            await end("never again")
            await until_logged(caplog, refused)
            await end("last")
            await end("first")
        for receipt in receipts:
            await ends(receipt, DurableState.SUCCEEDED)
        await until_logged(caplog, refused)
    assert "has ended and is delivered again: its end could not be stored" in caplog.text


# ---- the end of the event loop ----


async def test_a_delivery_that_is_cancelled_through_the_event_loop_is_delivered_again(
    engine: ProcrastinateEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(unshielded, "x")
        await functions.waiting["x"].wait()
        functions.released["x"].set()
        for native in asyncio.all_tasks():
            if native.get_name() == f"tasks {unshielded.name}":
                native.cancel()
        await ends(receipt, DurableState.SUCCEEDED)
        assert (await receipt.status()).attempts == 1, "what was put back is no attempt"
    assert "is back in the queue: the event loop of its worker ends" in caplog.text


# ---- a worker that died while its task was to be cancelled ----


async def test_a_task_that_was_to_be_cancelled_when_its_worker_died_is_cancelled(
    engine: ProcrastinateEngine, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.task(delay=3600).schedule(note, "x")
        await die(postgres, receipt)
        await execute(postgres, "SELECT procrastinate_cancel_job_v1(%s, true, false)", int(receipt.id))
        async with working(engine):
            await ends(receipt, DurableState.CANCELLED)
            await until_logged(caplog, "is cancelled, as was asked for: the worker that ran it died")
    assert functions.ran == []


async def die(address: str, receipt: Receipt[Any]) -> None:
    """Do to the database what a worker does that takes a task, and is killed."""
    [(worker,)] = await execute(address, "SELECT worker_id FROM procrastinate_register_worker_v1()")
    statement = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour' WHERE id = %s"
    await execute(address, statement, worker)
    statement = "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s, scheduled_at = NULL WHERE id = %s"
    await execute(address, statement, worker, int(receipt.id))


# ---- housekeeping ----


async def test_what_was_deleted_has_a_line(database: str, queue: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    engine = ProcrastinateEngine(database, queue=queue)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(note, "x"), DurableState.SUCCEEDED)
    async with working(ProcrastinateEngine(database, queue=queue, keep_finished=0.0)):
        await until_logged(caplog, "Deleted 1 tasks that had been kept for their time")


async def test_what_was_deleted_has_a_line_although_another_worker_goes_on(
    database: str, queue: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._housekeeping._BREATH", 2.0)
    caplog.set_level(logging.INFO, "tasks_core")
    engine = ProcrastinateEngine(database, queue=queue)
    async with TaskScheduler(engine=engine) as scheduler:
        async with working(engine):
            receipt = await scheduler.schedule(note, "x")
            await ends(receipt, DurableState.SUCCEEDED)
        async with (
            await psycopg.AsyncConnection.connect(database, autocommit=True) as other,
            working(ProcrastinateEngine(database, queue=queue, keep_finished=0.0)),
        ):
            await ends(receipt, DurableState.UNKNOWN)
            await other.execute("SELECT pg_advisory_lock(7459620184)")  # before the next batch
            await until_logged(caplog, "Deleted 1 tasks that had been kept for their time")


async def test_tables_that_are_away_for_a_while_are_missed_once(
    database: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ProcrastinateEngine(database, queue=queue, pool_size=1, heartbeat=0.1)
    beats = "The heartbeat of the worker fails, and is tried again"
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        await ends(await scheduler.schedule(note, "before"), DurableState.SUCCEEDED)
        await execute(database, "ALTER TABLE procrastinate_workers RENAME TO away")
        await execute(database, "ALTER TABLE procrastinate_events RENAME TO gone")
        await until_logged(caplog, beats)
        await until_logged(caplog, "Housekeeping failed, and is tried again")
        await anyio.sleep(0.5)
        assert messages(caplog).count(beats) == 1
        await execute(database, "ALTER TABLE gone RENAME TO procrastinate_events")
        await execute(database, "ALTER TABLE away RENAME TO procrastinate_workers")
        await ends(await scheduler.schedule(note, "after"), DurableState.SUCCEEDED)
    assert functions.ran == ["before", "after"]
