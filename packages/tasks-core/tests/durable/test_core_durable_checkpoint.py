"""A long durable task goes on after a deploy from its last checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import core_durable_functions as functions
import pytest
from core_durable_functions import forget
from core_postgres import ends, postgres, queue, working
from core_support import messages
from tasks_core import DurableContext, TaskScheduler, Worker, current_task, durable, durable_context
from tasks_core.engines import DurableCall, DurableState
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.exceptions import ArgumentCodecError
from tasks_testing import InMemoryEngine, TasksRecorder

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio

ran = functions.ran


@asynccontextmanager
async def worker(engine: InMemoryEngine) -> AsyncIterator[anyio.Event]:
    """A worker that lets its tasks end by themselves."""
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine, grace_period=60).run, stop)
        yield stop
        stop.set()


async def stopped(context: DurableContext) -> None:
    """Say that the task runs, and wait for the stop of its worker."""
    functions.waiting["step"].set()
    await context.scheduler.stopping.wait()


async def deploy(function: Any, *args: Any) -> list[object]:
    """Run a task on a worker that is stopped when it says that it runs, and then on another one."""
    functions.waiting["step"] = anyio.Event()
    engine = InMemoryEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(function, *args)
        with anyio.fail_after(30):
            async with worker(engine) as stop:
                await functions.waiting["step"].wait()
                stop.set()
            assert (await receipt.status()).state is DurableState.PENDING
            async with worker(engine):
                await engine.ended(receipt.id)
        status = await receipt.status()
    return [status.state.value, status.attempts, status.progress, *ran]


@durable(name="checkpoint_careless", retry=None)
async def careless() -> None:
    context = durable_context()
    try:
        if context.progress is None:
            await stopped(context)
            await context.checkpoint("first")
        ran.append(context.progress)
    except Exception:
        ran.append("handled")
    finally:
        ran.append("finally")


async def test_a_function_that_handles_all_exceptions_ends_at_a_checkpoint() -> None:
    assert await deploy(careless) == ["succeeded", 1, "first", "finally", "first", "finally"]


@durable(name="checkpoint_in_group", retry=None)
async def in_group() -> None:
    context = durable_context()

    async def step() -> None:
        if context.progress is None:
            await stopped(context)
        await context.checkpoint("first")
        ran.append("step")

    async with anyio.create_task_group() as group:
        group.start_soon(step)
        if context.progress is None:
            group.start_soon(anyio.sleep_forever)


async def test_a_checkpoint_in_a_task_group_ends_the_group() -> None:
    assert await deploy(in_group) == ["succeeded", 1, "first", "step"]


@durable(name="checkpoint_beside_a_failure", retry=None)
async def beside_a_failure() -> None:
    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError

    async with anyio.create_task_group() as group:
        group.start_soon(fail)
        await anyio.wait_all_tasks_blocked()
        await stopped(durable_context())
        await durable_context().checkpoint("first")


async def test_a_failure_beside_a_checkpoint_is_a_failure() -> None:
    functions.waiting["step"] = anyio.Event()
    engine = InMemoryEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(beside_a_failure)
        async with worker(engine) as stop:
            await functions.waiting["step"].wait()
            stop.set()
        status = await receipt.status()
    assert (status.state, status.progress) == (DurableState.FAILED, "first")


@durable(name="checkpoint_in_thread", retry=None)
async def in_thread() -> None:
    context = durable_context()

    def step() -> None:
        if context.progress is None:
            anyio.from_thread.run(stopped, context)
        context.checkpoint_from_thread("first")
        ran.append("step")

    await anyio.to_thread.run_sync(step)


async def test_a_checkpoint_in_another_thread_of_the_task() -> None:
    assert await deploy(in_thread) == ["succeeded", 1, "first", "step"]


# ---- plain functions that cannot be cancelled ----


@durable(name="checkpoint_plain", retry=None)
def plain() -> None:
    context, task = durable_context(), current_task()
    assert task is not None
    context.checkpoint_from_thread("first")
    anyio.from_thread.run_sync(functions.waiting["plain"].set)
    try:
        anyio.from_thread.run(functions.released["plain"].wait)
        context.checkpoint_from_thread("second")
    except Exception:
        ran.append("handled")
    finally:
        ran.append(task.cancel_requested)
        anyio.from_thread.run_sync(functions.released["end"].set)


async def test_a_plain_function_that_is_cancelled_ends_at_its_next_checkpoint() -> None:
    functions.waiting["plain"] = anyio.Event()
    functions.released.update(plain=anyio.Event(), end=anyio.Event())
    engine = InMemoryEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(plain)
        async with worker(engine):
            await functions.waiting["plain"].wait()
            assert await receipt.cancel()
            await engine.ended(receipt.id)
            functions.released["plain"].set()
            await functions.released["end"].wait()
        status = await receipt.status()
    assert (status.state, status.progress, ran) == (DurableState.CANCELLED, "first", [True])


# ---- where nothing is delivered again ----


@durable(name="checkpoint_in_memory")
async def in_memory() -> None:
    context = durable_context()
    await stopped(context)
    await context.checkpoint("first")
    await anyio.to_thread.run_sync(context.checkpoint_from_thread, "second")
    ran.append(context.progress)


async def test_in_memory_a_task_goes_on() -> None:
    functions.waiting["step"] = anyio.Event()
    async with TaskScheduler(without_engine="memory") as scheduler:
        receipt = await scheduler.schedule(in_memory)
        await functions.waiting["step"].wait()
    assert ran == ["second"]
    status = await receipt.status()
    assert (status.state, status.progress) == (DurableState.SUCCEEDED, "second")


# ---- mistakes ----


@durable(name="checkpoint_wrong")
async def wrong() -> None:
    context = durable_context()
    with pytest.raises(ArgumentCodecError, match=r"checkpoint\(\): the value must be JSON"):
        await context.checkpoint(object())  # type: ignore[arg-type]  # what is refused
    with pytest.raises(RuntimeError, match=r"write: await durable_context\(\)\.checkpoint\(\.\.\.\)"):
        context.checkpoint_from_thread(1)
    ran.append(context.progress)


async def test_wrong_values_and_places_are_refused_at_the_call() -> None:
    async with TaskScheduler(without_engine="memory") as scheduler:
        await scheduler.schedule(wrong)
    assert ran == [None]


# ---- in a test ----


@durable(name="checkpoint_pages")
async def pages(count: int) -> None:
    context = durable_context()
    for page in range(context.progress or 0, count):
        if page not in ran:
            ran.append(page)
        await context.checkpoint(page + 1)


def test_a_checkpoint_is_a_place_at_which_a_test_cuts(tasks_recorder: TasksRecorder) -> None:
    rounds: list[list[object]] = []

    async def submit() -> None:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(pages, 3)

    def check() -> list[object]:
        rounds.append(list(ran))
        return list(ran)

    anyio.run(submit)
    tasks_recorder.run_durable(cut="everywhere", restore=ran.clear, check=check)
    assert ran == [0, 1, 2]
    assert len(rounds) == 6, "without a cut, before the first line, at each checkpoint, and after the end"


# ---- real workers ----


@durable(name="checkpoint_line")
async def line() -> None:
    context = durable_context()
    if context.progress is None:
        await stopped(context)
        await context.checkpoint(1)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_task_that_ends_at_a_checkpoint_has_one_line(
    postgres: str, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    functions.waiting["step"] = anyio.Event()
    engine = ProcrastinateEngine(postgres, queue=queue, pool_size=2)
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(line)
        async with working(engine, grace_period=60) as stop:
            await functions.waiting["step"].wait()
            stop.set()
            await ends(receipt, DurableState.PENDING)
        lines = [text for text in messages(caplog) if text.startswith("Task ")]
        await receipt.cancel()  # workers of other tests warn of calls that wait in a queue without a worker
    where = f"Task 'checkpoint_line', key {receipt.idempotency_key}, job {receipt.id}, queue default"
    assert lines == [f"{where}, attempt 1, is back in the queue"]


_MODULE = """
import os
from pathlib import Path
from tasks_core import durable, durable_context
from tasks_core.engines.procrastinate import ProcrastinateEngine

engine = ProcrastinateEngine(os.environ["ADDRESS"], queue=os.environ["QUEUE"], pool_size=2)
done = Path(os.environ["DONE"])

@durable(name="checkpoint_export", retry=None)
async def export(pages: int) -> None:
    context = durable_context()
    for page in range(context.progress or 0, pages):
        with done.open("a") as file:
            print(page, file=file)
        if page % 4 == 3 and page + 1 < pages:
            await context.scheduler.stopping.wait()
        await context.checkpoint(page + 1)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.timeout(180)  # three processes start, one after the other
async def test_a_long_task_goes_on_after_each_deploy(postgres: str, queue: str, tmp_path: Path) -> None:
    (tmp_path / "exports_of_test.py").write_text(_MODULE)
    done = tmp_path / "done"
    done.touch()
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"ADDRESS": postgres, "QUEUE": queue, "DONE": str(done), "PYTHONPATH": path}
    command = [sys.executable, "-m", "tasks_core", "worker", "exports_of_test:engine", "--grace-period", "60"]
    async with ProcrastinateEngine(postgres, queue=queue, pool_size=1) as engine:
        receipt = await engine.submit(DurableCall("checkpoint_export", {"pages": 12}, "export"))
        for written in (4, 8, 12):
            process = subprocess.Popen(command, env=environment)  # noqa: ASYNC220  it is waited for in a thread
            try:
                with anyio.fail_after(50):
                    while done.read_text().count("\n") < written:
                        await anyio.sleep(0.02)
                if written == 12:
                    await ends(receipt, DurableState.SUCCEEDED)
                process.send_signal(signal.SIGTERM)
                assert await anyio.to_thread.run_sync(process.wait) == 0
            finally:
                process.kill()
                process.wait()
        status = await receipt.status()
    assert done.read_text().split() == [str(page) for page in range(12)], "each page once"
    assert (status.attempts, status.progress, status.errors) == (1, 12, ())
