"""How a scheduler ends: five steps, two bounds, one report."""

from __future__ import annotations

import logging
import math
import re
import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from core_support import EventLog, Workers, fail, in_thread, messages, noop, states
from tasks_core import (
    Retry,
    SchedulerClosedError,
    Task,
    TaskObserver,
    TaskPhase,
    TaskScheduler,
    TaskState,
    observe,
    retry,
)
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio


class Closing:
    """A scheduler that is being closed by another task, on a clock that stands still."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock(auto=False)
        self.scheduler = TaskScheduler(clock=self.clock, **options)

    async def begin(self, group: anyio.abc.TaskGroup) -> None:
        group.start_soon(self.scheduler.aclose)
        await self.scheduler.stopping.wait()
        await anyio.wait_all_tasks_blocked()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await anyio.wait_all_tasks_blocked()


async def open_gate(gate: anyio.Event) -> None:
    gate.set()


async def stop_at(gate: anyio.Event) -> None:
    await gate.wait()


async def test_leaving_with_nothing_to_do_is_immediate_and_clean(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with TaskScheduler(clock=VirtualClock(auto=False)) as scheduler:
        assert scheduler.report is None
        assert not scheduler.closed
        assert not scheduler.stopping.is_set()
        assert repr(scheduler) == "<TaskScheduler open, 0 tasks>"
    assert scheduler.closed
    assert scheduler.stopping.is_set()
    assert scheduler.report is not None
    assert scheduler.report.clean
    assert str(scheduler.report) == "Tasks drained in 0.00 s: nothing to wait for"


async def test_the_grace_period_lets_everything_finish(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gate = anyio.Event()

    async with TaskScheduler(clock=VirtualClock(auto=False)) as scheduler:
        tasks: list[Task[Any]] = [
            scheduler.schedule(gate.wait),
            scheduler.schedule(threading.get_ident),
            scheduler.schedule(fail),
        ]
        scheduler.schedule(open_gate, gate)
    assert [task.state for task in tasks] == [TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.FAILED]
    assert scheduler.report is not None
    assert (scheduler.report.succeeded, scheduler.report.failed) == (3, 1)
    assert scheduler.report.clean
    assert messages(caplog)[-1] == "Tasks drained in 0.00 s: 3 succeeded, 1 failed"


async def test_outside_work_is_refused_and_follow_ups_are_not() -> None:
    closing = Closing()
    scheduler = closing.scheduler
    gate = anyio.Event()
    followed: list[Task[Any]] = []

    async def follow_up() -> None:
        await gate.wait()
        followed.append(scheduler.schedule(noop))
        followed.append(await anyio.to_thread.run_sync(lambda: scheduler.schedule(noop)))
        followed.append(scheduler.schedule(follow_up_plainly))

    def follow_up_plainly() -> None:
        followed.append(scheduler.schedule(noop))

    await scheduler.start()
    parent = scheduler.schedule(follow_up)
    late = TaskPhase(scheduler, "late")
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        for target in (scheduler, late, scheduler.task(shield=True)):
            with pytest.raises(SchedulerClosedError):
                target.schedule(noop)
            with pytest.raises(SchedulerClosedError):
                in_thread(lambda target=target: target.schedule(noop))  # type: ignore[misc]  # bound here
        gate.set()
    assert {task.state for task in [parent, *followed]} == {TaskState.SUCCEEDED}
    assert len(followed) == 4


async def test_a_finished_task_or_one_of_another_scheduler_schedules_no_more() -> None:
    closing = Closing()
    scheduler = closing.scheduler
    gate, refused = anyio.Event(), []

    async def try_to_schedule() -> None:
        await gate.wait()
        try:
            scheduler.schedule(noop)
        except SchedulerClosedError as error:
            refused.append(error)

    await scheduler.start()
    async with TaskScheduler() as other, anyio.create_task_group() as group:

        async def spawn_and_end() -> None:
            group.start_soon(try_to_schedule)

        async def current() -> None:
            group.start_soon(try_to_schedule)

        await scheduler.schedule(spawn_and_end)
        await other.schedule(current)
        keep = scheduler.schedule(gate.wait)
        await closing.begin(group)
        gate.set()
        await keep.wait()
    assert len(refused) == 2


async def test_the_five_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    closing = Closing(grace_period=10, shield_timeout=20)
    scheduler = closing.scheduler
    await scheduler.start()
    never = anyio.Event()
    plain = scheduler.task(name="plain").schedule(stop_at, never)
    shielded = scheduler.task(name="shielded", shield=True).schedule(stop_at, never)
    delayed = scheduler.task(name="delayed", delay=60).schedule(noop)
    shielded_late = scheduler.task(name="shielded late", delay=23, shield=True).schedule(noop)
    again = scheduler.task(name="again", on_error=retry(backoff=60)).schedule(fail)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        assert states(plain, shielded, delayed, again) == [
            TaskState.RUNNING,
            TaskState.RUNNING,
            TaskState.DISCARDED,
            TaskState.CANCELLED,
        ]
        too_long = "its delay would have ended after the time that shutdown leaves it"
        assert {delayed.reason, again.reason} == {too_long}
        await closing.advance(5)
        await closing.advance(4.75)
        assert states(plain, shielded) == [TaskState.RUNNING] * 2
        await closing.advance(0.25)
        assert states(plain, delayed, again) == [TaskState.CANCELLED, TaskState.DISCARDED, TaskState.CANCELLED]
        assert plain.reason == "the grace period of the shutdown was over"
        assert states(shielded, shielded_late) == [TaskState.RUNNING, TaskState.PENDING]
        for _ in range(3):
            await closing.advance(5)
        assert shielded_late.state is TaskState.SUCCEEDED
        await closing.advance(4.75)
        assert states(shielded) == [TaskState.RUNNING]
        await closing.advance(0.25)
        assert states(shielded) == [TaskState.CANCELLED]
        assert shielded.reason == "the time for shielded tasks (shield_timeout) was over"
    report = scheduler.report
    assert report is not None
    assert report.duration == 30
    assert [(lost.name, lost.state) for lost in report.lost] == [
        ("delayed", TaskState.DISCARDED),
        ("again", TaskState.CANCELLED),
        ("plain", TaskState.CANCELLED),
        ("shielded", TaskState.CANCELLED),
    ]
    assert [lost.name for lost in report.cancelled] == ["again", "plain", "shielded"]
    assert [lost.name for lost in report.discarded] == ["delayed"]
    assert report.abandoned == ()
    assert not report.clean
    assert str(report) == "Tasks drained in 30.00 s: 1 succeeded, 3 cancelled, 1 discarded"
    lines = messages(caplog)
    assert lines[-1] == str(report)
    assert caplog.records[-1].levelno == logging.WARNING
    for task in (plain, delayed, again, shielded):
        (line,) = [line for line in messages(caplog, logging.WARNING) if f"#{task.id} " in line and "was" in line][-1:]
        assert re.fullmatch(
            rf"Task '{task.name}' #{task.id} \(\d+\.\d s old, scheduled at {re.escape(task.where)}\) "
            rf"was {task.state}: {re.escape(str(task.reason))}",
            line,
        )
    waiting = [line for line in lines if line.startswith("Shutdown waits")]
    assert waiting[0].startswith("Shutdown waits for at most 5.0 s for 3 tasks: 'plain' #")
    said = {re.match(r"Shutdown waits for at most (\d+)", line)[1] for line in waiting}  # type: ignore[index]  # as above
    assert said == {"5", "15", "10"}, "every five seconds"


async def test_an_event_loop_that_was_busy_when_the_grace_period_ended_does_not_move_the_second_bound() -> None:
    closing = Closing(grace_period=10, shield_timeout=20)
    await closing.scheduler.start()
    shielded = closing.scheduler.task(shield=True).schedule(anyio.sleep_forever)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        await closing.advance(16)
        await closing.advance(13.75)
        assert shielded.state is TaskState.RUNNING
        await closing.advance(0.25)
    assert shielded.reason == "the time for shielded tasks (shield_timeout) was over"
    assert closing.scheduler.report is not None
    assert closing.scheduler.report.duration == 30


@pytest.mark.parametrize("number, said, more", [(12, "12 tasks", ", and 2 more"), (1, "1 task", ")")])
async def test_an_unbounded_wait_says_what_it_waits_for(
    number: int, said: str, more: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    closing = Closing(grace_period=0)
    scheduler = closing.scheduler
    await scheduler.start()
    gate = anyio.Event()
    tasks = [scheduler.task(shield=True).schedule(stop_at, gate) for _ in range(number)]
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        for _ in range(20):
            await closing.advance(5)
        gate.set()
    assert {task.state for task in tasks} == {TaskState.SUCCEEDED}
    waiting = [line for line in messages(caplog) if line.startswith(f"Shutdown waits for {said}: 'stop_at' #")]
    assert len(waiting) == 20
    assert waiting[0].endswith(more)


async def test_an_infinite_grace_period() -> None:
    closing = Closing(grace_period=math.inf)
    scheduler = closing.scheduler
    await scheduler.start()
    gate = anyio.Event()
    task = scheduler.schedule(stop_at, gate)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        for _ in range(50):
            await closing.advance(60)
        assert task.state is TaskState.RUNNING
        gate.set()
    assert task.state is TaskState.SUCCEEDED


async def test_no_grace_at_all_on_a_clock_that_stands_still() -> None:
    async with TaskScheduler(clock=VirtualClock(auto=False), grace_period=0, shield_timeout=0) as scheduler:
        tasks = [scheduler.task(delay=1, shield=shield).schedule(noop) for shield in (True, False)]
    assert states(*tasks) == [TaskState.DISCARDED] * 2


async def test_a_task_knows_whether_it_was_lost() -> None:
    async with TaskScheduler(grace_period=0) as scheduler:
        batch = TaskPhase(scheduler, "later")
        done, dropped, cancelled = scheduler.schedule(noop), batch.schedule(noop), scheduler.schedule(noop)
        cancelled.cancel()
        batch.discard("not wanted")
        await done
        running, waiting = scheduler.schedule(anyio.sleep_forever), scheduler.task(delay=60).schedule(noop)
        await running.started.wait()
        assert not running.lost
    assert [task.lost for task in (done, dropped, cancelled, running, waiting)] == [False, False, False, True, True]
    assert scheduler.report is not None
    assert {lost.id for lost in scheduler.report.lost} == {running.id, waiting.id}


async def test_a_retrying_task_follows_its_shield() -> None:
    closing = Closing(grace_period=10, shield_timeout=100)
    scheduler = closing.scheduler
    await scheduler.start()
    plain = scheduler.task(name="plain", on_error=retry(attempts=100, backoff=4, max_delay=4)).schedule(fail)
    shielded = scheduler.task(
        name="shielded", shield=True, on_error=retry(attempts=100, backoff=4, max_delay=4)
    ).schedule(fail)
    await anyio.wait_all_tasks_blocked()
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        for _ in range(120):
            await closing.advance(1)
    assert (plain.state, plain.reason) == (
        TaskState.CANCELLED,
        "its delay would have ended after the time that shutdown leaves it",
    )
    assert (shielded.state, shielded.reason) == (plain.state, plain.reason)
    assert plain.attempts == 3
    assert shielded.attempts == 28


async def test_an_attempt_that_fails_after_the_grace_period_is_the_last(caplog: pytest.LogCaptureFixture) -> None:
    closing = Closing(grace_period=1, shield_timeout=10)
    scheduler = closing.scheduler
    await scheduler.start()
    asked = anyio.Event()

    async def answer_late(task: Task[Any], error: Exception) -> Retry:
        asked.set()
        await anyio.to_thread.run_sync(lambda: None)
        await gate.wait()
        return Retry()

    gate = anyio.Event()
    shielded = scheduler.task(shield=True, on_error=answer_late).schedule(fail)
    await asked.wait()
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        await closing.advance(2)
        await closing.advance(10)
    assert shielded.state is TaskState.CANCELLED
    assert shielded.attempts == 1
    assert any(r.exc_info and r.exc_info[1] is shielded.exception for r in caplog.records)


async def test_follow_ups_of_shielded_tasks_after_the_grace_period() -> None:
    closing = Closing(grace_period=1, shield_timeout=10)
    scheduler = closing.scheduler
    await scheduler.start()
    gate, followed = anyio.Event(), []

    async def follow_up() -> None:
        await gate.wait()
        followed.append(scheduler.schedule(noop))
        followed.append(scheduler.task(shield=True).schedule(noop))

    scheduler.task(shield=True).schedule(follow_up)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        await closing.advance(2)
        gate.set()
    assert states(*followed) == [TaskState.DISCARDED, TaskState.SUCCEEDED]
    assert followed[0].reason == "the grace period of the shutdown was over"


async def test_follow_ups_of_the_last_cleaning_up_are_discarded() -> None:
    followed: list[Task[None]] = []
    async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:

        async def follow_up() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                followed.append(scheduler.task(shield=True).schedule(noop))

        task = scheduler.task(shield=True).schedule(follow_up)
        await task.started.wait()
    assert states(task, *followed) == [TaskState.CANCELLED, TaskState.DISCARDED]


# ---- what does not end by itself ----


async def test_a_coroutine_that_ignores_its_cancellation_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    closing = Closing(grace_period=1)  # without a bound for shielded tasks: there are none
    scheduler = closing.scheduler
    await scheduler.start()
    give_up = anyio.Event()

    limiter = anyio.CapacityLimiter(1)
    task = scheduler.task(limiter=limiter).schedule(anyio_shielded, give_up)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        await closing.advance(2)
        await closing.advance(6)
    assert (task.state, task.reason) == (TaskState.CANCELLED, "it ignored its cancellation and was abandoned")
    assert scheduler.report is not None
    assert [lost.id for lost in scheduler.report.abandoned] == [task.id]
    assert str(scheduler.report).endswith("1 cancelled, 1 abandoned")
    assert limiter.borrowed_tokens == 1, "its code still runs"
    give_up.set()
    await anyio.wait_all_tasks_blocked()
    assert limiter.borrowed_tokens == 0
    assert task.state is TaskState.CANCELLED
    assert scheduler.statistics().cancelled == 1


async def anyio_shielded(event: anyio.Event) -> None:
    """Go on until *event* whatever happens: on asyncio, a shield does not stop `asyncio.Task.cancel()`."""
    while not event.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await event.wait()
        except anyio.get_cancelled_exc_class():
            pass


async def test_a_stubborn_coroutine_does_not_make_shutdown_outlast_the_shielded_tasks() -> None:
    closing = Closing(grace_period=1)
    scheduler = closing.scheduler
    await scheduler.start()
    gate, give_up = anyio.Event(), anyio.Event()
    shielded = scheduler.task(shield=True).schedule(stop_at, gate)
    stubborn = scheduler.schedule(anyio_shielded, give_up)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        await closing.advance(2)
        await closing.advance(60)
        assert shielded.state is TaskState.RUNNING
        gate.set()
        await anyio.wait_all_tasks_blocked()
        await closing.advance(6)
    assert stubborn.state is TaskState.CANCELLED
    give_up.set()
    await anyio.wait_all_tasks_blocked()


async def test_a_task_that_retries_while_it_is_abandoned_does_not_run_again() -> None:
    give_up = anyio.Event()

    async def fail_at_last() -> None:
        await anyio_shielded(give_up)
        raise ValueError

    async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:
        task = scheduler.task(on_error=retry(backoff=0)).schedule(fail_at_last)
        await task.started.wait()
    assert task.state is TaskState.CANCELLED
    give_up.set()
    await anyio.wait_all_tasks_blocked()
    assert (task.state, task.attempts) == (TaskState.CANCELLED, 1)


async def test_a_thread_that_hangs_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    leave = threading.Event()
    workers = Workers()
    async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:
        task = scheduler.task(name="hang").schedule(leave.wait)
        handled = scheduler.task(name="handled", on_error=lambda task, error: leave.wait()).schedule(fail)
        await task.started.wait()
        while handled.exception is None:
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
    report = scheduler.report
    assert report is not None
    assert {(lost.name, lost.reason) for lost in report.abandoned} == {
        ("hang", "a plain function cannot be cancelled: it still runs in its thread"),
        ("handled", "its error handler, a plain function, cannot be cancelled: it still runs in its thread"),
    }
    assert len([line for line in messages(caplog, logging.WARNING) if "was abandoned" in line]) == 2
    assert len(workers.alive()) == 2
    leave.set()
    for thread in workers.alive():
        await anyio.to_thread.run_sync(thread.join)
    assert workers.alive() == []


async def test_a_thread_that_is_about_to_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks_core._run.shutdown

    monkeypatch.setattr(tasks_core._run.shutdown, "_LAST_CLEAN_UP", 60)
    leave = threading.Event()
    closing = Closing()
    scheduler = closing.scheduler
    await scheduler.start()
    async with anyio.create_task_group() as group:
        task = scheduler.schedule(leave.wait)
        await task.started.wait()
        task.cancel()
        await task.wait()
        await closing.begin(group)
        assert not scheduler.closed
        leave.set()
    assert scheduler.report is not None
    assert scheduler.report.clean


# ---- tasks that wait for somebody ----


@pytest.mark.parametrize("shield_timeout", [None, 10])
async def test_batches_that_nobody_opens(shield_timeout: float | None) -> None:
    closing = Closing(grace_period=1, shield_timeout=shield_timeout)
    scheduler = closing.scheduler
    await scheduler.start()
    batch = TaskPhase(scheduler, "never")
    plain, shielded = batch.schedule(noop), batch.task(shield=True).schedule(noop)
    gate = anyio.Event()
    running = scheduler.task(shield=True).schedule(stop_at, gate)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        await closing.advance(2)
        assert states(plain, shielded) == [TaskState.DISCARDED, TaskState.PENDING]
        gate.set()
        await anyio.wait_all_tasks_blocked()
        if shield_timeout is None:
            assert shielded.reason == "its phase had not opened when everything else had ended"
        else:
            assert shielded.state is TaskState.PENDING
            await closing.advance(11)
            assert shielded.reason == "the time for shielded tasks (shield_timeout) was over"
    assert states(running, shielded) == [TaskState.SUCCEEDED, TaskState.DISCARDED]


async def test_a_shielded_task_may_open_a_phase_after_the_grace_period() -> None:
    closing = Closing(grace_period=1)
    scheduler = closing.scheduler
    await scheduler.start()
    gate, followed = anyio.Event(), []

    async def transaction() -> None:
        batch = TaskPhase(scheduler, "after_commit")
        followed.append(batch.task(shield=True).schedule(noop))
        await gate.wait()
        batch.open()

    scheduler.task(shield=True).schedule(transaction)
    async with anyio.create_task_group() as group:
        await closing.begin(group)
        await closing.advance(20)
        gate.set()
    assert states(*followed) == [TaskState.SUCCEEDED]


class Holder(TaskObserver):
    def hold_task(self, task: Task[Any]) -> bool:
        return task.name == "held"


async def test_held_tasks_are_discarded_when_shutdown_begins() -> None:
    with observe(Holder()):
        async with TaskScheduler(clock=VirtualClock(auto=False)) as scheduler:
            tasks = [scheduler.task(name="held", shield=shield).schedule(noop) for shield in (True, False)]
    assert states(*tasks) == [TaskState.DISCARDED] * 2
    assert {task.reason for task in tasks} == {"an observer held it when shutdown began"}


async def test_follow_ups_that_are_held_do_not_hold_shutdown() -> None:
    closing = Closing(grace_period=1)
    scheduler = closing.scheduler
    await scheduler.start()
    held: list[Task[None]] = []

    async def follow_up() -> None:
        held.append(scheduler.task(name="held", shield=True).schedule(noop))

    with observe(Holder()):
        parent = scheduler.schedule(follow_up)
        async with anyio.create_task_group() as group:
            await closing.begin(group)
            await closing.advance(2)
    assert states(parent, *held) == [TaskState.SUCCEEDED, TaskState.DISCARDED]


# ---- the life of a scheduler ----


async def test_started_paused_it_accepts_and_starts_nothing_before_resume() -> None:
    scheduler = TaskScheduler()
    with pytest.raises(RuntimeError, match=r"^resume\(\) goes with a scheduler that was started"):
        scheduler.resume()
    await scheduler.start(paused=True)
    tasks: list[Task[Any]] = [scheduler.schedule(noop), scheduler.schedule(threading.get_ident)]
    await anyio.wait_all_tasks_blocked()
    assert states(*tasks) == [TaskState.PENDING] * 2
    in_thread(scheduler.resume)
    for task in tasks:
        await task
    assert (await scheduler.aclose()).clean


async def test_closed_while_paused_it_discards_at_once() -> None:
    scheduler = TaskScheduler(clock=VirtualClock(auto=False))
    await scheduler.start(paused=True)
    task = scheduler.task(shield=True).schedule(noop)
    report = await scheduler.aclose()
    assert [(lost.id, lost.reason) for lost in report.discarded] == [
        (task.id, "the scheduler was closed before it was resumed")
    ]


async def test_a_scheduler_is_entered_once() -> None:
    message = r"^A TaskScheduler is started once; make a new one: TaskScheduler\(\.\.\.\)$"
    async with TaskScheduler() as scheduler:
        with pytest.raises(RuntimeError, match=message):
            await scheduler.start()
    with pytest.raises(RuntimeError, match=message):
        async with scheduler:
            pass


async def test_a_scheduler_that_was_never_started_closes_and_cannot_be_started() -> None:
    scheduler = TaskScheduler()
    report = await scheduler.aclose()
    assert report.clean
    assert scheduler.closed
    with pytest.raises(RuntimeError, match="started once"):
        await scheduler.start()


async def test_closing_again_and_in_several_places_gives_the_same_report() -> None:
    reports = []
    gate = anyio.Event()
    async with TaskScheduler() as scheduler:
        scheduler.schedule(gate.wait)

        async def close() -> None:
            reports.append(await scheduler.aclose())

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            group.start_soon(close)
            await anyio.wait_all_tasks_blocked()
            gate.set()
        reports.append(await scheduler.aclose())
    assert len({id(report) for report in [*reports, scheduler.report]}) == 1


async def test_a_task_cannot_close_its_own_scheduler() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(scheduler.aclose)
        with pytest.raises(RuntimeError, match=r"^aclose\(\) was called by a task of the scheduler, which would wait"):
            await task
        async with TaskScheduler() as other:
            await scheduler.schedule(other.aclose)


async def test_a_scheduler_is_closed_on_its_own_event_loop() -> None:
    async with TaskScheduler() as scheduler:
        with pytest.raises(RuntimeError, match=r"^aclose\(\) was called on another event loop"):
            await anyio.to_thread.run_sync(lambda: anyio.run(scheduler.aclose))


async def test_a_block_that_fails_is_left_with_its_exception_and_with_grace() -> None:
    gate = anyio.Event()
    tasks: list[Task[bool | None]] = []

    async def run() -> None:
        async with TaskScheduler() as scheduler:
            tasks.append(scheduler.schedule(gate.wait))
            scheduler.schedule(open_gate, gate)
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        await run()
    assert states(*tasks) == [TaskState.SUCCEEDED]


async def test_stopping_is_there_for_loops_on_the_loop_and_in_threads() -> None:
    rounds: list[str] = []

    async with TaskScheduler(grace_period=60) as scheduler:

        async def loop() -> None:
            while not scheduler.stopping.is_set():
                rounds.append("loop")
                await anyio.lowlevel.checkpoint()

        def loop_plainly() -> None:
            while not scheduler.stopping.is_set():
                rounds.append("thread")

        tasks = [scheduler.schedule(loop), scheduler.schedule(loop_plainly)]
        for task in tasks:
            await task.started.wait()
    assert states(*tasks) == [TaskState.SUCCEEDED] * 2
    assert scheduler.report is not None
    assert scheduler.report.clean


async def test_nothing_is_left_after_the_end() -> None:
    workers = Workers()
    log = EventLog()
    with observe(log):
        async with TaskScheduler() as scheduler:
            for _ in range(20):
                scheduler.schedule(threading.get_ident)
                scheduler.schedule(noop)
    assert workers.alive() == []
    assert len(log.finished) == 40
    numbers = scheduler.statistics()
    assert numbers.scheduled == numbers.succeeded == 40
    assert numbers.by_phase == {}


async def test_many_losses_are_logged_by_kind(caplog: pytest.LogCaptureFixture) -> None:
    # On a busy machine the lines alone take longer than a second.
    async with TaskScheduler(grace_period=0, max_concurrency=1, slow_callback_duration=None) as scheduler:
        batch = TaskPhase(scheduler, "later")
        for _ in range(1200):
            batch.schedule(noop)
        place = batch.schedule(noop).where.rpartition(":")[0]
    lines = messages(caplog, logging.WARNING)
    assert len(lines) == 1000 + 2 + 1
    assert any(
        line.startswith("200 more tasks 'noop' (later, scheduled at " + place)
        and line.endswith("were discarded: the grace period of the shutdown was over")
        for line in lines
    )
    assert scheduler.report is not None
    assert len(scheduler.report.discarded) == 1201


async def test_what_the_last_cleaning_up_schedules_into_a_phase_that_never_opens_is_discarded() -> None:
    followed: list[Task[None]] = []
    async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:
        batch = TaskPhase(scheduler, "never")

        async def follow_up() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                followed.append(batch.schedule(noop))

        task = scheduler.task(shield=True).schedule(follow_up)
        await task.started.wait()
    assert [(late.state, late.reason) for late in followed] == [
        (TaskState.DISCARDED, "it was scheduled when the scheduler had closed")
    ]
