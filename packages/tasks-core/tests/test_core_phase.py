"""Phases: tasks that wait for a moment."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import pytest
from core_support import EventLog, in_thread, messages, noop, states
from tasks_core import Task, TaskConfig, TaskPhase, TaskScheduler, TaskState, observe

pytestmark = pytest.mark.anyio


async def test_no_task_starts_before_its_phase_opens() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later", origin="request")
        tasks: list[Task[Any]] = [batch.schedule(noop), batch.task(name="x").schedule(threading.get_ident)]
        assert not batch.opened
        assert batch.outcome is None
        assert batch.origin == "request"
        assert repr(batch) == "<TaskPhase later waiting, 2 tasks>"
        await anyio.wait_all_tasks_blocked()
        assert states(*tasks) == [TaskState.PENDING] * 2
        batch.open()
        assert batch.opened
        assert batch.outcome == "success"
        assert repr(batch) == "<TaskPhase later success, 0 tasks>"
        for task in tasks:
            await task.wait()
        assert states(*tasks) == [TaskState.SUCCEEDED] * 2


async def test_scheduling_into_an_open_batch_starts_at_once() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        batch.open()
        await batch.schedule(noop)
        task: Task[None] = in_thread(lambda: batch.schedule(noop))
        await task


@pytest.mark.parametrize("outcome", ["success", "error"])
@pytest.mark.parametrize("late", [True, False])
async def test_each_task_starts_for_the_outcome_it_is_meant_for(
    outcome: Any, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "after_route")

        def schedule() -> dict[str, Task[None]]:
            return {
                "default": batch.schedule(noop),
                "success": batch.task(when="success").schedule(noop),
                "error": batch.task(when="error").schedule(noop),
                "always": batch.task(when="always").schedule(noop),
            }

        tasks = {} if late else schedule()
        batch.open(outcome)
        tasks = tasks or schedule()
        for task in tasks.values():
            await task.wait()
    ran = {when for when, task in tasks.items() if task.state is TaskState.SUCCEEDED}
    assert ran == ({"default", "success", "always"} if outcome == "success" else {"error", "always"})
    for when, task in tasks.items():
        if when not in ran:
            said = "success" if when == "default" else when
            assert task.state is TaskState.DISCARDED
            assert task.reason == f"it is for when={said!r}, and after_route ended in {outcome}"
            line = f"Task 'noop' #{task.id} (after_route, scheduled at {task.where}) was discarded: {task.reason}"
            assert line in messages(caplog)
    assert scheduler.report is not None
    assert scheduler.report.clean, "what was not wanted is no loss"


@pytest.mark.parametrize("thread", [True, False])
async def test_discarding_drops_what_there_is_and_what_comes_later(
    thread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        early = batch.task(when="always").schedule(noop)
        if thread:
            in_thread(lambda: batch.discard("rolled back"))
        else:
            batch.discard("rolled back")
        await early.wait()
        late: Task[None] = in_thread(lambda: batch.schedule(noop)) if thread else batch.schedule(noop)
        await late.wait()
        assert repr(batch) == "<TaskPhase later discarded, 0 tasks>"
        assert not batch.opened
    assert states(early, late) == [TaskState.DISCARDED] * 2
    assert early.reason == late.reason == "rolled back"
    assert [r.levelname for r in caplog.records if "was discarded: rolled back" in r.getMessage()] == ["INFO"] * 2


async def test_whichever_is_called_first_counts() -> None:
    log = EventLog()
    async with TaskScheduler() as scheduler:
        opened, discarded = TaskPhase(scheduler, "opened"), TaskPhase(scheduler, "discarded")
        task, other = opened.schedule(noop), discarded.schedule(noop)
        with observe(log):
            opened.open("success")
            opened.open("error")
            opened.discard("too late")
            discarded.discard("first")
            discarded.discard("second")
            discarded.open()
        await task
    assert opened.outcome == "success"
    assert other.reason == "first"
    assert [event for event in log.events if event[1] in ("opened", "discarded")] == [
        ("opened success", "opened"),
        ("discarded because first", "discarded"),
    ]


async def test_a_thread_opens_a_batch() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        task: Task[None] = in_thread(lambda: batch.schedule(noop))
        in_thread(batch.open)
        await task


async def test_a_task_cancelled_before_its_phase_opens_stays_cancelled() -> None:
    async with TaskScheduler() as scheduler:
        batch, dropped = TaskPhase(scheduler, "later"), TaskPhase(scheduler, "never")
        task, other = batch.schedule(noop), dropped.schedule(noop)
        task.cancel()
        other.cancel()
        batch.open()
        dropped.discard("rolled back")
        await anyio.wait_all_tasks_blocked()
    assert states(task, other) == [TaskState.CANCELLED] * 2


async def test_a_task_cancelled_before_the_loop_hears_of_it_does_not_wait_for_its_phase() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        task: Task[None] = in_thread(lambda: batch.schedule(noop))
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert repr(batch) == "<TaskPhase later waiting, 0 tasks>"
        batch.open()
    assert (task.state, task.attempts) == (TaskState.CANCELLED, 0)


async def test_a_task_that_a_thread_schedules_and_cancels_never_starts() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        batch.open()

        def schedule_and_cancel() -> Task[None]:
            task = batch.schedule(noop)
            task.cancel()
            return task

        task: Task[None] = in_thread(schedule_and_cancel)
        await task.wait()
    assert (task.state, task.attempts) == (TaskState.CANCELLED, 0)


async def test_the_configuration_of_a_batch_applies_to_its_tasks() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later", config=TaskConfig(when="error"))
        dropped, wanted = batch.schedule(noop), batch.task(when="always").schedule(noop)
        batch.open("success")
        await wanted
    assert dropped.state is TaskState.DISCARDED


async def test_a_sibling_has_the_same_origin_and_configuration_and_a_moment_of_its_own() -> None:
    async with TaskScheduler(config=TaskConfig(timeout=7)) as scheduler:
        batch = TaskPhase(scheduler, "after_commit", origin="session", config=TaskConfig(name="mail"))
        batch.open()
        sibling = batch.sibling("after_rollback")
        task = sibling.schedule(noop)
        assert (task.phase, task.name, task.config.timeout) == (sibling, "mail", 7)
        assert (sibling.origin, sibling.outcome) == ("session", None)
        assert scheduler.owns(task)
        await anyio.wait_all_tasks_blocked()
        assert states(task) == [TaskState.PENDING]
        sibling.discard("the transaction was committed")
        assert states(task) == [TaskState.DISCARDED]
        await batch.schedule(noop)
