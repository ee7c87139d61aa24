"""A process may have several event loops, of several kinds: a task runs on that of its scheduler."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from core_support import in_thread, messages, noop
from tasks_core import Retry, Task, TaskPhase, TaskScheduler, TaskState
from tasks_core.testing import event_loop_runs

BACKENDS = ("asyncio", "trio")


async def use_the_loop() -> str:
    """Do what cannot be done on an event loop of the other kind."""
    await anyio.sleep(0.001)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.lowlevel.checkpoint)
    return "done"


async def run_again(task: Task[Any], error: Exception) -> Retry:
    await use_the_loop()
    return Retry(0.001)


def run_again_plainly(task: Task[Any], error: Exception) -> Retry:
    return Retry(0.001)


def schedule_in_a_batch(scheduler: TaskScheduler) -> Task[str]:
    batch = TaskPhase(scheduler, "later")
    task = batch.schedule(use_the_loop)
    batch.open()
    return task


def schedule_and_fail_at_first(scheduler: TaskScheduler, on_error: Any) -> Task[str]:
    async def fail_at_first() -> str:
        if task.attempts == 1:
            raise ValueError("failed on purpose")
        return await use_the_loop()

    task = scheduler.task(on_error=on_error).schedule(fail_at_first)
    return task


WAYS: dict[str, Callable[[TaskScheduler], Task[str]]] = {
    "coroutine": lambda scheduler: scheduler.schedule(use_the_loop),
    "batch": schedule_in_a_batch,
    "delay": lambda scheduler: scheduler.task(delay=0.001).schedule(use_the_loop),
    "timeout": lambda scheduler: scheduler.task(timeout=60).schedule(use_the_loop),
    "function that returns a coroutine": lambda scheduler: scheduler.schedule(lambda: use_the_loop()),
    "function": lambda scheduler: scheduler.schedule(lambda: "done"),
    "retry": lambda scheduler: schedule_and_fail_at_first(scheduler, run_again),
    "retry by a function": lambda scheduler: schedule_and_fail_at_first(scheduler, run_again_plainly),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("there", BACKENDS)
@pytest.mark.parametrize("here", BACKENDS)
def test_scheduled_on_another_event_loop(here: str, there: str, way: str) -> None:
    async def main() -> Task[str]:
        await anyio.lowlevel.checkpoint()
        return WAYS[way](scheduler)

    with anyio.from_thread.start_blocking_portal(here) as portal:
        scheduler = TaskScheduler()
        portal.call(scheduler.start)
        task = anyio.run(main, backend=there)
        portal.call(task.wait)
        portal.call(scheduler.aclose)
    assert (task.state, task.reason) == (TaskState.SUCCEEDED, None)
    assert task.result() == "done"


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_plain_function_may_run_an_event_loop_of_its_own(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> str:
        return anyio.run(use_the_loop, backend=backend)

    def handle(task: Task[Any], error: Exception) -> bool:
        return anyio.run(use_the_loop, backend=backend) == "done"

    async def fail() -> None:
        raise ValueError("failed on purpose")

    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(run) == "done"
        await scheduler.task(on_error=handle).schedule(fail).wait()
    assert messages(caplog, logging.WARNING) == [], "the handler has dealt with the failure"


@pytest.mark.anyio
async def test_threads_without_the_package_in_which_anyio_notes_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "sniffio")
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(lambda: None)
        task: Task[None] = in_thread(lambda: scheduler.schedule(noop))
        await task


@pytest.mark.parametrize("backend", BACKENDS)
def test_whether_the_event_loop_of_a_task_runs(backend: str) -> None:
    task: list[Task[None]] = []

    async def main() -> None:
        async with TaskScheduler() as scheduler:
            task.append(scheduler.schedule(noop))
            assert event_loop_runs(task[0])
            assert await anyio.to_thread.run_sync(event_loop_runs, task[0])

    anyio.run(main, backend=backend)
    assert not event_loop_runs(task[0])
