"""The handle that `schedule()` returns."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from core_support import fail, in_thread, messages, noop
from tasks_core import Task, TaskConfig, TaskPhase, TaskScheduler, TaskState, retry
from tasks_core.exceptions import TaskCancelledError, TaskDiscardedError, TaskNotFinishedError

pytestmark = pytest.mark.anyio


async def answer() -> int:
    return 42


async def test_a_handle_says_everything() -> None:
    gate = anyio.Event()

    async def wait_at(number: int, *, letter: str) -> str:
        await gate.wait()
        return letter * number

    async with TaskScheduler(config=TaskConfig(timeout=60)) as scheduler:
        task = scheduler.task(name="three").schedule(wait_at, 3, letter="x")
        other = scheduler.schedule(noop)
        assert other.id > task.id
        assert (task.name, task.func, task.args, task.kwargs) == ("three", wait_at, (3,), {"letter": "x"})
        assert task.config == TaskConfig(name="three", timeout=60)
        assert (task.phase, task.phase, task.attempts) == (None, None, 0)
        assert (task.exception, task.reason) == (None, None)
        assert task.state is TaskState.PENDING
        assert not task.started.is_set()
        assert repr(task) == f"<Task 'three' #{task.id} pending>"
        await task.started.wait()
        assert (task.state, task.attempts) == (TaskState.RUNNING, 1)
        assert task.age >= 0
        gate.set()
        assert await task == "xxx"
        assert (task.state, task.attempts, task.reason) == (TaskState.SUCCEEDED, 1, None)
        assert task.result() == "xxx"
        batch = TaskPhase(scheduler, "later")
        late = batch.schedule(noop)
        assert late.phase is batch
        assert repr(late) == f"<Task 'noop' #{late.id} later pending>"
        batch.open()


async def test_started_can_be_asked_for_after_the_start() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(noop)
        await task
        assert task.started.is_set()
        await task.started.wait()


async def test_a_thread_can_ask_whether_a_task_has_started() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(noop)
        assert in_thread(lambda: task.started.is_set()) is False
        await task.started.wait()
        assert in_thread(lambda: task.started.is_set()) is True


async def test_awaiting_raises_the_very_exception_each_time() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(fail)
        errors: list[BaseException] = []
        depths: list[int] = []
        for _ in range(3):
            with pytest.raises(ValueError, match=r"^failed on purpose$") as caught:
                await task
            errors.append(caught.value)
            depths.append(len(caught.traceback))
            assert caught.traceback[-1].name == "fail"
        assert errors == [task.exception] * 3
        assert len(set(depths)) == 1, "the traceback grows with each await"
        with pytest.raises(ValueError, match=r"^failed on purpose$"):
            task.result()


async def test_wait_never_raises_and_returns_at_once_at_the_end() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(fail)
        await task.wait()
        assert task.state is TaskState.FAILED
        await task.wait()


async def test_waiting_for_a_finished_task_is_a_checkpoint() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(answer)
        await task
        with anyio.CancelScope() as scope:
            scope.cancel()
            await task.wait()
        assert scope.cancelled_caught


async def test_cancelling_a_waiter_does_not_cancel_the_task() -> None:
    gate = anyio.Event()
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(gate.wait)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(task.wait)
                await task.started.wait()
                scope.cancel()
        assert scope.cancelled_caught
        assert task.state is TaskState.RUNNING
        gate.set()
        await task


async def test_several_wait_for_the_same_task() -> None:
    gate = anyio.Event()
    woken: list[int] = []

    async def wait_for(task: Task[None], number: int) -> None:
        await task.wait()
        woken.append(number)

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(gate.wait)
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(wait_for, task, number)
            await anyio.lowlevel.checkpoint()
            gate.set()
    assert sorted(woken) == [0, 1, 2]


async def test_waiting_on_another_event_loop_is_refused() -> None:
    gate = anyio.Event()
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(gate.wait)
        message = (
            "task.wait() and `await task` work on the event loop of the scheduler only. "
            "From a worker thread of that loop write: anyio.from_thread.run(task.wait)"
        )
        with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
            await anyio.to_thread.run_sync(lambda: anyio.run(task.wait))
        gate.set()
        await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(task.wait))
        assert task.state is TaskState.SUCCEEDED
        await anyio.to_thread.run_sync(lambda: anyio.run(task.wait))  # finished: nothing to wait for


async def test_a_thread_of_a_task_reaches_the_loop_with_a_token() -> None:
    token = anyio.lowlevel.current_token()

    def ask() -> int:
        return anyio.from_thread.run(answer, token=token)

    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(ask) == 42


async def test_the_result_of_a_task_that_is_not_finished() -> None:
    gate = anyio.Event()
    async with TaskScheduler() as scheduler:
        task = scheduler.task(name="slow").schedule(gate.wait)
        message = f"Task 'slow' #{task.id} is pending: wait for it first, with `await task.wait()`"
        with pytest.raises(TaskNotFinishedError, match=f"^{re.escape(message)}$") as caught:
            task.result()
        assert isinstance(caught.value, RuntimeError)
        gate.set()


# ---- cancel ----


@pytest.mark.parametrize("shield", [True, False])
@pytest.mark.parametrize("thread", [True, False])
async def test_cancelled_before_the_start_it_never_starts(
    shield: bool, thread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ran: list[int] = []

    async def run() -> None:
        ran.append(1)

    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        tasks = [
            scheduler.task(shield=shield).schedule(run),
            scheduler.task(shield=shield).schedule(ran.append, 1),
            scheduler.task(shield=shield, delay=60).schedule(run),
            batch.task(shield=shield).schedule(run),
        ]
        for task in tasks:
            in_thread(task.cancel) if thread else task.cancel()
        batch.open()
        for task in tasks:
            await task.wait()
            assert (task.state, task.reason, task.attempts) == (TaskState.CANCELLED, "task.cancel() was called", 0)
            with pytest.raises(
                TaskCancelledError, match=f"^Task '.*' #{task.id} was cancelled: task.cancel.. was called$"
            ):
                await task
            task.cancel()  # once more: nothing happens
    assert ran == []
    assert scheduler.report is not None
    assert scheduler.report.clean, "what somebody wanted is no loss"
    assert [r.levelname for r in caplog.records if "was cancelled" in r.getMessage()] == ["INFO"] * 4
    assert messages(caplog, logging.WARNING) == []


@pytest.mark.parametrize("shield", [True, False])
@pytest.mark.parametrize("thread", [True, False])
async def test_cancelled_while_it_runs_it_may_clean_up(shield: bool, thread: bool) -> None:
    cleaned: list[str] = []

    async def run() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("up")

    async with TaskScheduler() as scheduler:
        task = scheduler.task(shield=shield).schedule(run)
        await task.started.wait()
        in_thread(task.cancel) if thread else task.cancel()
        await task.wait()
    assert (task.state, task.reason) == (TaskState.CANCELLED, "task.cancel() was called")
    assert cleaned == ["up"]


async def test_a_cancelled_task_decides_how_it_ends() -> None:
    async def finish_all_the_same() -> int:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return 1
        raise AssertionError

    async def fail_on_the_way_out() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    asked: list[Exception] = []

    async with TaskScheduler() as scheduler:
        finishing = scheduler.schedule(finish_all_the_same)
        failing = scheduler.task(on_error=lambda task, error: asked.append(error)).schedule(fail_on_the_way_out)
        again = scheduler.task(on_error=retry(attempts=3, backoff=0)).schedule(fail_on_the_way_out)
        for task in (finishing, failing, again):
            await task.started.wait()
            task.cancel()
        assert await finishing == 1
        await failing.wait()
        await again.wait()
    assert (failing.state, str(failing.exception)) == (TaskState.FAILED, "while cleaning up")
    assert asked == [], "nothing can be waited for in a task that was cancelled"
    assert (again.state, again.attempts) == (TaskState.FAILED, 1), "a cancelled task runs no second time"


async def test_a_task_can_cancel_itself() -> None:
    async with TaskScheduler() as scheduler:
        handles: list[Task[None]] = []

        async def cancel_myself() -> None:
            handles[0].cancel()
            await anyio.sleep_forever()

        handles.append(scheduler.schedule(cancel_myself))
        await handles[0].wait()
        assert handles[0].state is TaskState.CANCELLED


async def test_a_task_cancelled_between_two_attempts() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=retry(attempts=2, backoff=60)).schedule(fail)
        while task.state is not TaskState.RETRYING:
            await anyio.lowlevel.checkpoint()
        task.cancel()
        assert (task.state, task.attempts) == (TaskState.CANCELLED, 1)
        with pytest.raises(TaskCancelledError) as caught:
            await task
        assert caught.value.__cause__ is task.exception
        assert isinstance(task.exception, ValueError)


async def test_a_thread_cancels_a_task_between_two_attempts_and_there_is_no_second() -> None:
    async with TaskScheduler(max_concurrency=1) as scheduler:
        gate = anyio.Event()
        task = scheduler.task(on_error=retry(attempts=2, backoff=0)).schedule(fail)
        scheduler.schedule(gate.wait)  # takes the slot when the first attempt has failed
        while task.state is not TaskState.RETRYING:
            await anyio.lowlevel.checkpoint()
        in_thread(task.cancel)
        gate.set()
        await task.wait()
    assert (task.state, task.attempts) == (TaskState.CANCELLED, 1)


async def test_the_result_of_a_discarded_task() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "after_commit")
        task = batch.schedule(noop)
        batch.discard("the transaction was rolled back")
        message = f"Task 'noop' #{task.id} was discarded: the transaction was rolled back"
        with pytest.raises(TaskDiscardedError, match=f"^{re.escape(message)}$") as caught:
            await task
        assert isinstance(caught.value, RuntimeError)


async def test_a_def_task_that_is_cancelled_leaves_its_thread_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    leave = threading.Event()
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(leave.wait)
        await task.started.wait()
        task.cancel()
        await task.wait()
        assert task.state is TaskState.CANCELLED
        leave.set()
    assert messages(caplog, logging.WARNING) == []


def test_every_state_says_whether_it_is_final() -> None:
    assert {str(state): state.finished for state in TaskState} == {
        "pending": False,
        "running": False,
        "retrying": False,
        "succeeded": True,
        "failed": True,
        "cancelled": True,
        "discarded": True,
    }


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_takes_the_handle_where_it_takes_awaitables() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(noop)
        done, _ = await asyncio.wait({asyncio.ensure_future(task)})
        assert len(done) == 1
        assert [*await asyncio.gather(task)] == [None]
        handles: Any = {task}
        with pytest.raises(AttributeError, match=r"Write asyncio\.wait\({asyncio\.ensure_future\(task\)}\)"):
            await asyncio.wait(handles)
        anything: Any = task
        with pytest.raises(AttributeError, match="'Task' object has no attribute 'nonsense'"):
            _ = anything.nonsense
