"""What is kept of an attempt that has failed."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from core_postgres import ends, postgres, queue, until, working
from tasks_core import Receipt, RetryPolicy, TaskScheduler, durable
from tasks_core.engines import DEFAULT_RETRY, AttemptRecord, DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing import TasksRecorder

__all__ = ("postgres", "queue")


def record_of(error: BaseException) -> AttemptRecord:
    return AttemptRecord.of(error, attempt=1, began=1.0, ended=2.0)


def raised(error: BaseException) -> BaseException:
    secret = "SECRET"  # noqa: F841  a local value
    try:
        raise error
    except BaseException as caught:
        return caught


def caused() -> BaseException:
    try:
        try:
            raise OSError("SECRET")
        except OSError as error:
            raise LookupError("SECRET") from error
    except LookupError as error:
        return error


def test_a_record_has_types_and_lines_and_no_message() -> None:
    record = record_of(caused())
    assert record.error == "LookupError"
    first, _, second = record.traceback.partition("\n\n")
    assert first.splitlines()[0] == "Traceback (most recent call last):"
    assert first.splitlines()[1].endswith("in caused")
    assert first.endswith('    raise OSError("SECRET")\nOSError')  # which is the source, and no message
    assert second.endswith('raise LookupError("SECRET") from error\nLookupError')


@pytest.mark.parametrize("suppressed", [True, False])
def test_the_context_of_an_error_is_part_of_its_record(suppressed: bool) -> None:
    error = ValueError()
    error.__context__ = KeyError()
    error.__suppress_context__ = suppressed
    assert ("KeyError" in record_of(raised(error)).traceback) is not suppressed


def test_a_group_lists_what_is_in_it_once() -> None:
    inner = raised(psycopg.OperationalError("SECRET"))
    group = BaseExceptionGroup("SECRET", [inner, BaseExceptionGroup("SECRET", [inner, ValueError()])])
    record = record_of(raised(group))
    assert record.error == "ExceptionGroup"
    assert record.traceback.count("psycopg.OperationalError") == 1
    assert "  |   | ValueError" in record.traceback
    assert "SECRET" not in record.traceback


def test_a_chain_that_is_a_circle_has_an_end() -> None:
    error, other = ValueError(), KeyError()
    error.__context__, other.__context__ = other, error
    assert record_of(error).traceback.count("ValueError") == 1


def test_a_chain_without_end_is_cut() -> None:
    error: BaseException = ValueError()
    for _ in range(5000):
        error, cause = ValueError(), error
        error.__cause__ = cause
    assert record_of(error).traceback.count("Traceback") == 20


def test_code_without_source_has_its_line() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  it has no message
        exec(compile("raise ValueError", "<generated>", "exec"))
    assert record_of(caught.value).traceback.endswith('File "<generated>", line 1, in <module>\nValueError')


def test_a_long_traceback_keeps_both_ends() -> None:
    def deep(levels: int) -> None:
        if not levels:
            raise ValueError
        deep(levels - 1)

    with pytest.raises(ValueError) as caught:  # noqa: PT011  it has no message
        deep(200)
    text = record_of(caught.value).traceback
    assert len(text) < 4100
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("raise ValueError\nValueError")
    assert "\n  [...]\n" in text


def test_a_record_is_restored_from_json_and_nothing_else_is() -> None:
    record = record_of(ValueError())
    assert AttemptRecord.from_json(record.as_json()) == record
    wrong: list[Any] = [None, 1, {}, record.as_json() | {"attempt": "1"}, record.as_json() | {"began": None}]
    assert [AttemptRecord.from_json(data) for data in wrong] == [None] * len(wrong)


def test_the_first_and_the_last_records_are_kept() -> None:
    records: tuple[AttemptRecord, ...] = ()
    for attempt in range(1, 30):
        records = AttemptRecord(attempt, 0.0, 0.0, "ValueError").added_to(records)
    assert [record.attempt for record in records] == [1, 2, *range(22, 30)]


@durable(name="attempts_fail", retry=None)
def fail() -> None:
    raise ValueError


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_tools_of_procrastinate_show_why_a_task_has_failed(postgres: str, queue: str) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, pool_size=2)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(fail)
        await ends(receipt, DurableState.FAILED)
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            cursor = await connection.execute("SELECT args FROM procrastinate_jobs WHERE id = %s", [receipt.id])
            row = await cursor.fetchone()
            assert row is not None
            assert row[0]["errors"][-1]["error"] == "ValueError"
            await connection.execute(
                """UPDATE procrastinate_jobs SET args = args || '{"errors": "?"}' WHERE id = %s""", [receipt.id]
            )
        assert (await receipt.status()).errors == ()


# ---- how many there are ----


@durable(name="attempts_by_default")
def by_default() -> None:
    raise ValueError


def test_a_durable_function_is_retried_unless_it_says_otherwise() -> None:
    assert by_default.retry == DEFAULT_RETRY
    assert RetryPolicy(attempts=10, backoff=10, max_delay=3600, jitter=0.1) == DEFAULT_RETRY
    assert fail.retry is None


async def stored(postgres: str, receipt: Receipt[object]) -> dict[str, object]:
    async with await psycopg.AsyncConnection.connect(postgres) as connection:
        cursor = await connection.execute("SELECT args FROM procrastinate_jobs WHERE id = %s", [receipt.id])
        row = await cursor.fetchone()
    assert row is not None
    fields: dict[str, object] = row[0]
    return fields


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_default_policy_takes_no_space_in_a_row_and_is_in_force(postgres: str, queue: str) -> None:
    engine = ProcrastinateEngine(postgres, queue=queue, pool_size=2)
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        retried, never = await scheduler.schedule(by_default), await scheduler.schedule(fail)
        assert "retry" not in await stored(postgres, retried)
        assert (await stored(postgres, never))["retry"] is None
        await ends(never, DurableState.FAILED)

        async def waits_for_its_next_attempt() -> bool:
            status = await retried.status()
            return status.state is DurableState.PENDING and len(status.errors) == 1

        await until(waits_for_its_next_attempt)
        await retried.cancel()


@pytest.mark.anyio
async def test_a_test_sees_all_attempts_of_the_default(tasks_recorder: TasksRecorder) -> None:
    async with TaskScheduler() as scheduler:
        receipt = await scheduler.schedule(by_default)
        await tasks_recorder.arun_durable()
        assert (await receipt.status()).attempts == 10
    tasks_recorder.assert_failed(by_default, ValueError)
