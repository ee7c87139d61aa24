"""The threads that plain functions run in."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from core_support import Workers, messages, noop
from tasks_core import TaskScheduler, TaskState, retry

pytestmark = pytest.mark.anyio


async def test_threads_are_used_again() -> None:
    workers = Workers()
    async with TaskScheduler() as scheduler:
        used = {await scheduler.schedule(threading.get_ident) for _ in range(20)}
        assert len(used) == 1
        assert len(workers.alive()) == 1
    assert workers.alive() == []


async def test_no_thread_is_started_for_coroutines() -> None:
    workers = Workers()
    async with TaskScheduler() as scheduler:
        await scheduler.schedule(noop)
        assert workers.alive() == []


async def test_threads_are_daemons_with_a_name() -> None:
    async with TaskScheduler() as scheduler:
        thread = await scheduler.schedule(threading.current_thread)
        assert thread.daemon
        assert thread.name == "tasks worker thread"


async def test_an_idle_thread_ends_and_another_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks_core._run.threads

    monkeypatch.setattr(tasks_core._run.threads, "_IDLE", 0.01)
    workers = Workers()
    async with TaskScheduler() as scheduler:
        for _ in range(3):
            thread = await scheduler.schedule(threading.current_thread)
            await anyio.to_thread.run_sync(thread.join)
            assert workers.alive() == []


async def test_a_thread_may_be_handed_something_while_it_gives_up_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks_core._run.threads

    gives_up, handed = threading.Event(), threading.Event()
    retire = tasks_core._run.threads.WorkerThreads.retire

    def pause(*args: Any) -> bool:
        gives_up.set()
        handed.wait()
        return retire(*args)

    monkeypatch.setattr(tasks_core._run.threads.WorkerThreads, "retire", pause)
    monkeypatch.setattr(tasks_core._run.threads, "_IDLE", 0.0001)
    async with TaskScheduler() as scheduler:
        thread = await scheduler.schedule(threading.get_ident)
        await anyio.to_thread.run_sync(gives_up.wait)
        task = scheduler.schedule(threading.get_ident)
        await task.started.wait()
        handed.set()
        assert await task == thread


async def test_a_thread_that_is_left_to_itself_keeps_its_place_until_it_ends() -> None:
    leave = threading.Event()
    async with TaskScheduler(max_threads=1) as scheduler:
        blocking = scheduler.schedule(leave.wait)
        await blocking.started.wait()
        blocking.cancel()
        await blocking.wait()
        waiting = scheduler.schedule(threading.get_ident)
        await anyio.wait_all_tasks_blocked()
        assert (blocking.state, waiting.state) == (TaskState.CANCELLED, TaskState.PENDING)
        leave.set()
        await waiting


async def test_a_system_without_threads_fails_the_task_and_keeps_its_place_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with TaskScheduler(max_threads=1) as scheduler:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            task = scheduler.schedule(threading.get_ident)
            await task.wait()
            handled = scheduler.task(on_error=lambda task, error: True).schedule(threading.get_ident)
            await handled.wait()
        assert (task.state, str(task.exception)) == (TaskState.FAILED, "can't start new thread")
        assert handled.state is TaskState.FAILED
        assert await scheduler.schedule(threading.get_ident)
    assert scheduler.report is not None
    assert scheduler.report.clean
    assert any("error handler of" in line for line in messages(caplog, logging.ERROR))


async def test_stop_iteration_of_a_plain_function_is_a_failure() -> None:
    def stop() -> Any:
        raise StopIteration("nothing left")

    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=retry(attempts=2, backoff=0)).schedule(stop)
        await task.wait()
        assert task.state is TaskState.FAILED
        assert "StopIteration" in repr(task.exception)


async def test_the_failure_of_a_thread_shows_the_function_and_nothing_of_the_machinery() -> None:
    def inner() -> None:
        raise ValueError("deep")

    def outer() -> None:
        inner()

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(outer)
        await task.wait()
    assert task.exception is not None
    frames = []
    traceback = task.exception.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert frames == ["outer", "inner"]


async def test_a_plain_function_calls_back_with_anyio_from_thread() -> None:
    """As it may under BackgroundTasks, where the thread is one of anyio."""
    thread = threading.get_ident()

    async def where(number: int) -> tuple[int, int]:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident(), number

    def call_back() -> tuple[object, object]:
        return anyio.from_thread.run(where, 1), anyio.from_thread.run_sync(threading.get_ident)

    async with TaskScheduler() as scheduler:
        for _ in range(2):
            assert await scheduler.schedule(call_back) == ((thread, 1), thread)


async def test_a_plain_function_waits_for_another_task_with_anyio_from_thread() -> None:
    async with TaskScheduler() as scheduler:
        other = scheduler.schedule(anyio.sleep, 0.001)
        await scheduler.schedule(lambda: anyio.from_thread.run(other.wait))
    assert other.state.finished
