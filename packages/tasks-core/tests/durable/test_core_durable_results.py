"""What a durable task returned, in the process that waits for it."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import psycopg
import pytest
from core_engine import ListEngine
from core_postgres import Wire, engine, postgres, queue, wire, working
from tasks_core import Receipt, TaskScheduler, Worker, durable
from tasks_core.engines import DurableCall, DurableState, DurableStatus, StoredResult
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.exceptions import (
    ArgumentCodecError,
    EngineCapabilityError,
    EngineUnavailableError,
    ResultNotStoredError,
    TaskCancelledError,
    UnknownTaskError,
)
from tasks_testing import InMemoryEngine

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ("engine", "postgres", "queue", "wire")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@durable(name="results_unannotated")
async def unannotated():  # type: ignore[no-untyped-def]  # whose result is not stored
    return threading.current_thread()


@durable(name="results_nothing")
def nothing() -> None: ...


@durable(name="results_never")
def never() -> NoReturn:
    raise NotImplementedError


@durable(name="results_odd")
def odd() -> threading.Thread:
    return threading.current_thread()


@durable(name="results_of_other_type")
def other_type() -> int:
    return "SECRET"  # type: ignore[return-value]  # as code without a type checker may


@durable(name="results_hidden")
def hidden() -> Decimal:
    return 7  # type: ignore[return-value]  # JSON; the name exists for type checkers only


@durable(name="results_maybe")
def maybe(value: str | None) -> str | None:
    return value


@durable(name="results_nul")
def nul() -> str:
    return "a\0"


@durable(name="results_pairs")
def pairs() -> Any:
    return {1: 2}


async def result_of(engine: Any, function: Any, *args: Any) -> Any:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt: Receipt[Any] = await scheduler.schedule(function, *args)
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(Worker(engine).run, stop)
            await engine.ended(receipt.id)
            stop.set()
        return await receipt.result()


@pytest.mark.parametrize(
    "function, args, result",
    [(unannotated, (), None), (nothing, (), None), (maybe, ("a",), "a"), (maybe, (None,), None), (hidden, (), 7)],
)
async def test_a_result_is_stored_by_the_annotation(function: Any, args: tuple[Any, ...], result: object) -> None:
    assert await result_of(InMemoryEngine(), function, *args) == result


@pytest.mark.parametrize(
    "function, args, problem",
    [
        (odd, (), "annotated to return Thread, which JSON cannot carry"),
        (other_type, (), "returned a str, which JSON cannot carry"),
        (pairs, (), "returned a dict, which JSON does not restore as the same value"),
        (nul, (), "a text with a NUL character"),
        (maybe, ("a" * 70_000,), "more than 64 KiB"),
        (maybe, ("é" * 40_000,), "more than 64 KiB"),
    ],
)
async def test_a_result_that_json_cannot_carry_is_an_error_for_who_asks(
    function: Any, args: tuple[Any, ...], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    with pytest.raises(ResultNotStoredError, match=problem) as caught:
        await result_of(InMemoryEngine(), function, *args)
    assert "SECRET" not in str(caught.value)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Task {function.name!r} has succeeded, and its result is not stored: ")


async def test_a_worker_says_once_that_results_of_a_function_are_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    engine = InMemoryEngine()
    async with TaskScheduler(engine=engine) as scheduler, anyio.create_task_group() as group:
        stop = anyio.Event()
        group.start_soon(Worker(engine).run, stop)
        for _ in range(2):
            receipt = await scheduler.schedule(odd)
            with pytest.raises(ResultNotStoredError):
                await receipt.result(timeout=20)
        stop.set()
    assert len(caplog.records) == 1


def test_a_function_that_never_returns_has_no_result_to_store() -> None:
    assert never.result_codec.encode("x") is None
    with pytest.raises(ArgumentCodecError, match="return annotation does not allow"):
        never.result_codec.decode(StoredResult("x"))


def test_a_result_that_another_release_has_stored_may_not_fit() -> None:
    with pytest.raises(ArgumentCodecError, match="other_type: its return annotation does not allow the result"):
        other_type.result_codec.decode(StoredResult("seven"))


async def test_a_receipt_without_an_engine_has_no_result() -> None:
    receipt: Receipt[None] = Receipt("list", "1", "k")
    assert await receipt.status() == DurableStatus(DurableState.UNKNOWN, 0)
    with pytest.raises(EngineCapabilityError, match="list does not say how a task has ended"):
        await receipt.result()
    with pytest.raises(EngineCapabilityError, match="list cannot cancel"):
        await receipt.cancel()


# ---- PostgreSQL ----


async def test_another_process_reads_a_result_by_the_id(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(maybe, "a")
        other = engine.receipt(receipt.id)
        assert await other.result(timeout=20) == "a"
        assert (other.idempotency_key, other.created) == ("", False)


async def test_a_result_of_a_function_that_is_not_imported(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(maybe, "a")
        await receipt.result(timeout=20)
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute(
                """UPDATE procrastinate_jobs SET args = args || '{"name": "elsewhere"}' WHERE id = %s""", [receipt.id]
            )
        with pytest.raises(UnknownTaskError, match="'elsewhere'"):
            await receipt.result()


async def test_a_function_without_a_result_adds_nothing_to_its_row(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(unannotated)
        assert await receipt.result(timeout=20) is None
    async with await psycopg.AsyncConnection.connect(postgres) as connection:
        cursor = await connection.execute("SELECT args FROM procrastinate_jobs WHERE id = %s", [receipt.id])
        row = await cursor.fetchone()
    assert row is not None
    assert row[0].keys() == {"args", "name", "key"}


async def test_a_row_that_an_operator_has_changed_has_no_result(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(maybe, "a")
        await receipt.result(timeout=20)
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute(
                """UPDATE procrastinate_jobs SET args = args || '{"result": [1]}' WHERE id = %s""", [receipt.id]
            )
        assert await receipt.result() is None


async def test_who_waits_hears_of_an_outage_and_may_wait_again(engine: ProcrastinateEngine, wire: Wire) -> None:
    errors: list[Exception] = []

    async def wait(receipt: Receipt[str | None]) -> None:
        try:
            await receipt.result(timeout=20)
        except EngineUnavailableError as error:
            errors.append(error)

    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(maybe, "a")
        async with anyio.create_task_group() as group:
            group.start_soon(wait, receipt)
            group.start_soon(wait, receipt)
            await anyio.wait_all_tasks_blocked()
            await wire.cut()
        assert len({id(error) for error in errors}) == 2
        await wire.mend()
        async with working(engine):
            assert await receipt.result(timeout=20) == "a"


async def test_who_waits_for_a_database_that_does_not_answer_hears_of_it(
    engine: ProcrastinateEngine, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks_core.engines.procrastinate._engine._LOOK_LIMIT", 0.2)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(maybe, "a")
        wire.delay(b"args->'result' AS result")
        with pytest.raises(EngineUnavailableError, match="TimeoutError"):
            await receipt.result(timeout=20)
        assert wire.delayed.is_set()
        wire.released.set()
        monkeypatch.undo()
        async with working(engine):
            assert await receipt.result(timeout=20) == "a"


async def test_one_statement_serves_all_who_wait(engine: ProcrastinateEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = engine._ends

    async def count(numbers: Any) -> Any:
        looks.append(len(numbers))
        return await look(numbers)

    monkeypatch.setattr(ProcrastinateEngine, "_ends", lambda _self, numbers: count(numbers))
    async with TaskScheduler(engine=engine) as scheduler:
        receipts = [await scheduler.schedule(maybe, str(number)) for number in range(20)]
        async with working(engine), anyio.create_task_group() as group:
            for receipt in receipts:
                group.start_soon(receipt.result, 20)
    assert max(looks) == 20
    assert len(looks) < 20


async def test_a_task_that_an_operator_has_cancelled_has_no_result(engine: ProcrastinateEngine, postgres: str) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(maybe, "a")
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute("SELECT procrastinate_cancel_job_v1(%s, false, false)", [int(receipt.id)])
        with pytest.raises(TaskCancelledError):
            await receipt.result(timeout=20)


async def test_a_caller_that_gives_up_leaves_the_others_waiting(engine: ProcrastinateEngine) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(maybe, "a")
        results: list[str | None] = []

        async def wait() -> None:
            results.append(await replace(receipt).result(timeout=20))

        impatient = anyio.CancelScope()

        async def give_up() -> None:
            with impatient:
                await receipt.result()

        async with anyio.create_task_group() as group:
            group.start_soon(give_up)  # it looks for both
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            impatient.cancel()
            async with working(engine):
                while not results:
                    await anyio.sleep(0.01)
    assert results == ["a"]


async def test_a_stored_call_of_a_list_engine_is_run_as_ever() -> None:
    engine = ListEngine()
    engine.calls.append(DurableCall(maybe.name, {"value": "a"}, "k"))
    async with engine, anyio.create_task_group() as group:
        stop = anyio.Event()
        group.start_soon(Worker(engine).run, stop)
        with anyio.fail_after(10):
            while f"done {maybe.name}" not in engine.log:
                await anyio.sleep(0.005)
        stop.set()
