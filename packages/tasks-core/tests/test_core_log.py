"""Logging tells what happens to tasks, and has no part in it."""

from __future__ import annotations

import logging

import anyio
import pytest
from tasks_core import TaskScheduler, TaskState

pytestmark = pytest.mark.anyio


async def fail() -> None:
    raise ValueError("failed on purpose")


def refuse(record: logging.LogRecord) -> bool:
    raise RuntimeError("broken filter")


async def test_a_filter_that_raises_keeps_no_task_from_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure, a cancellation, a loss and shutdown itself are all told of by a logger that raises."""
    logger = logging.getLogger("tasks_core")
    logger.addFilter(refuse)
    try:
        with anyio.fail_after(10):
            async with TaskScheduler(grace_period=0) as scheduler:
                failed = scheduler.schedule(fail)
                await failed.wait()
                cancelled = scheduler.schedule(anyio.sleep_forever)
                await cancelled.started.wait()
                cancelled.cancel()
                await cancelled.wait()
                lost = scheduler.schedule(anyio.sleep_forever)
                await lost.started.wait()
    finally:
        logger.removeFilter(refuse)
    assert [task.state for task in (failed, cancelled, lost)] == [
        TaskState.FAILED,
        TaskState.CANCELLED,
        TaskState.CANCELLED,
    ]
    assert "broken filter" in capsys.readouterr().err


async def test_a_record_names_the_line_that_logs(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(fail).wait()
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert (record.filename, record.funcName) == ("attempt.py", "_log_failure")
