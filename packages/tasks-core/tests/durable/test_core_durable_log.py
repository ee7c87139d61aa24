"""What the log says of durable tasks: enough to find them, and nothing alarming in an ordinary deploy."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import core_durable_functions as functions
import psycopg
import pytest
from core_durable_functions import flaky, forget, unshielded
from core_postgres import ends, postgres, queue, until, working
from tasks_core import Receipt, TaskScheduler, Worker, durable
from tasks_core.engines import CallLabel, DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_testing import InMemoryEngine

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@durable(name="deployed")
async def deployed() -> None:
    functions.ran.append("begun")
    await anyio.sleep_forever()


def records_of(caplog: pytest.LogCaptureFixture, receipt: Receipt[Any]) -> list[logging.LogRecord]:
    return [record for record in caplog.records if f"job {receipt.id}, " in record.getMessage()]


def worst(caplog: pytest.LogCaptureFixture) -> int:
    """Return the highest level of the lines, except those about queues of other tests in the same database."""
    return max(record.levelno for record in caplog.records if "No worker serves" not in record.getMessage())


def fields(record: logging.LogRecord, *names: str) -> list[Any]:
    return [getattr(record, f"task_{name}") for name in names]


def test_label_names_the_call() -> None:
    label = CallLabel("charge", "charge-17", "4", "payments", 2)
    assert str(label) == "Task 'charge', key charge-17, job 4, queue payments, attempt 2,"
    assert label.fields == {
        "task_name": "charge",
        "task_key": "charge-17",
        "task_receipt_id": "4",
        "task_queue": "payments",
        "task_attempt": 2,
    }
    label = CallLabel("charge", "charge-17", "4", "payments")
    assert str(label) == "Task 'charge', key charge-17, job 4, queue payments,"
    assert "task_attempt" not in label.fields


async def test_every_line_about_a_durable_task_says_which_one(
    postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(flaky.configure(idempotency_key=f"flaky {queue}"), 9, "ConnectionResetError")
        async with working(engine):
            await ends(receipt, DurableState.FAILED)
        await engine.retry(receipt.id)
    records = records_of(caplog, receipt)
    texts = [record.getMessage() for record in records]
    assert [record.levelname for record in records] == ["WARNING", "WARNING", "WARNING", "INFO"]
    start = f"Task '{flaky.name}', key flaky {queue}, job {receipt.id}, queue default,"
    assert all(text.startswith(start) for text in texts)
    assert texts[0].startswith(f"{start} failed in attempt 1 (ConnectionResetError) and is delivered again in 0 s")
    assert texts[-2] == f"{start} attempt 3, has failed for good (ConnectionResetError)"
    assert texts[-1] == f"{start} is back in the queue, by an operator"
    for record in records:
        assert fields(record, "name", "key", "receipt_id", "queue") == [
            flaky.name,
            f"flaky {queue}",
            receipt.id,
            "default",
        ]
    assert [record.task_attempt for record in records[:-1]] == [1, 2, 3]  # type: ignore[attr-defined]  # extra


async def test_failure_without_a_handler_says_which_task_it_was(caplog: pytest.LogCaptureFixture) -> None:
    engine, stop = InMemoryEngine(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, anyio.create_task_group() as group:
        group.start_soon(Worker(engine).run, stop)
        receipt = await scheduler.schedule(fails.configure(idempotency_key="fails 1"))
        await until_state(receipt, DurableState.FAILED)
        stop.set()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "Task 'fails', key fails 1, job 0, queue default, failed in attempt 1"
    assert fields(record, "key", "receipt_id", "queue", "attempt") == ["fails 1", "0", "default", 1]


@durable(name="fails", retry=None)
async def fails() -> None:
    raise KeyError


async def until_state(receipt: Receipt[Any], state: DurableState) -> None:
    with anyio.fail_after(10):
        while (await receipt.status()).state is not state:
            await anyio.sleep(0.01)


# ---- a deploy ----


async def test_what_a_stopped_worker_puts_back_is_no_loss(
    postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(deployed)

        async def has_begun() -> bool:
            return bool(functions.ran)

        async with working(engine, grace_period=0.0) as stop:
            await until(has_begun)
            stop.set()
            await ends(receipt, DurableState.PENDING)
    [record] = records_of(caplog, receipt)
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith("attempt 1, is back in the queue")
    assert fields(record, "name", "receipt_id", "queue", "attempt") == ["deployed", receipt.id, "default", 1]
    assert worst(caplog) == logging.INFO


async def test_what_a_cancelled_task_leaves_is_still_said(
    postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancellation by an operator ends the task: that has a line, and it is no loss either."""
    caplog.set_level(logging.INFO, "tasks_core")
    engine = ProcrastinateEngine(postgres, queue=queue, heartbeat=0.2)
    functions.waiting["log"], functions.released["log"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler, working(engine):
        receipt = await scheduler.schedule(unshielded, "log")
        await functions.waiting["log"].wait()
        await engine.cancel(receipt.id)
        await ends(receipt, DurableState.CANCELLED)
    assert any(one.getMessage().endswith("is cancelled, as was asked for") for one in records_of(caplog, receipt))
    assert worst(caplog) == logging.INFO


SHOP = """
import anyio
from tasks_core import durable
from tasks_core.engines.procrastinate import ProcrastinateEngine

engine = ProcrastinateEngine({address!r}, queue={queue!r})

@durable(name="rendering")
async def rendering(number: int) -> None:
    print("begun", flush=True)
    await anyio.sleep_forever()
"""

# What `operate/logs.md` says to alert on.
_ALERTS = re.compile(r"was cancelled|was discarded|was abandoned|ERROR|WARNING|CRITICAL")


def test_a_deploy_writes_nothing_to_alert_on(postgres: str, queue: str, tmp_path: Path) -> None:
    """Two workers, five tasks that run and five that wait, a rolling stop by SIGTERM."""
    (tmp_path / "shop.py").write_text(SHOP.format(address=postgres, queue=queue))
    logs: list[str] = []

    def start() -> subprocess.Popen[str]:
        arguments = ["shop:engine", "--concurrency=5", "--grace-period=0"]
        return subprocess.Popen(
            [sys.executable, "-m", "tasks_core", "worker", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    _submit(postgres, queue, 10)
    old = start()
    processes = [old]
    try:
        assert old.stdout is not None
        assert [old.stdout.readline() for _ in range(5)] == ["begun\n"] * 5
        new = start()
        processes.append(new)
        assert new.stdout is not None
        assert [new.stdout.readline() for _ in range(5)] == ["begun\n"] * 5
        old.terminate()
        logs.append(old.communicate(timeout=60)[1])
        new.terminate()
        logs.append(new.communicate(timeout=60)[1])
    finally:
        for process in processes:
            process.kill()
    for log in logs:
        assert log.count("is back in the queue") == 5
        assert _alarming(log) == []


def _alarming(log: str) -> list[str]:
    return [line for line in log.splitlines() if _ALERTS.search(line)]


def _submit(address: str, queue: str, count: int) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args) SELECT %s, 'tasks_core.run',"
            " jsonb_build_object('name', 'rendering', 'key', 'k' || n, 'args', jsonb_build_object('number', n))"
            " FROM generate_series(1, %s) AS n",
            [queue, count],
        )
