"""Holding tasks, making them fail, and running something else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import MagicMock

import anyio
import pytest
from tasks_core import TaskObserver, TaskPhase, TaskScheduler, observe, retry
from tasks_testing import TasksRecorder, call, finished, record_tasks, started

pytestmark = pytest.mark.anyio

ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


async def work(name: str = "work") -> str:
    ran.append(name)
    return name


def work_in_thread(name: str = "thread") -> str:
    ran.append(name)
    return name


async def quiet() -> None:
    """Let everything happen that is going to."""
    await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def recording(recorder: TasksRecorder) -> AsyncIterator[TaskScheduler]:
    async with TaskScheduler() as scheduler:
        yield scheduler
        await recorder.adrain()


# ---- hold and release ----


async def test_held_tasks_are_recorded_and_do_not_start() -> None:
    with record_tasks(mode="hold") as recorder:
        async with recording(recorder) as scheduler:
            scheduler.schedule(work, "a")
            scheduler.schedule(work_in_thread, "b")
            await recorder.adrain()
            assert [task.state for task in recorder] == ["held", "held"]
            recorder.assert_scheduled(work)
            assert ran == []
            released = recorder.release()
            assert [task.name for task in released] == ["work", "work_in_thread"]
            await recorder.adrain()
        assert sorted(ran) == ["a", "b"]
        assert [event.kind for event in recorder[0].events] == ["scheduled", "held", "released", "started", "succeeded"]


async def test_release_names_tasks_and_counts_them() -> None:
    with record_tasks(mode="hold") as recorder:
        async with recording(recorder) as scheduler:
            for name in ("a", "b", "c"):
                scheduler.schedule(work, name)
            await quiet()
            recorder.release(call(work, "b"))
            await recorder.adrain()
            recorder.release(count=1)
            await recorder.adrain()
            assert ran == ["b", "a"]
            recorder.release(work)


async def test_a_task_can_be_released_before_its_phase_opens() -> None:
    with record_tasks(mode="hold") as recorder:
        async with recording(recorder) as scheduler:
            batch = TaskPhase(scheduler, "after_commit")
            batch.schedule(work)
            recorder.release(work)
            assert recorder[0].state == "pending"
            batch.open()
            await recorder.adrain()
            recorder.assert_ran(work)
            assert "held" not in [event.kind for event in recorder.events]


async def test_holding_some_and_keeping_others() -> None:
    with record_tasks() as recorder:
        recorder.hold(work, keep=[call(work, "kept")])
        async with recording(recorder) as scheduler:
            scheduler.schedule(work, "held")
            scheduler.schedule(work, "kept")
            scheduler.schedule(work_in_thread, "other")
            await recorder.adrain()
            assert sorted(ran) == ["kept", "other"]
            recorder.release(work)


async def test_a_block_that_holds_lets_go_at_its_end() -> None:
    with record_tasks() as recorder:
        async with recording(recorder) as scheduler:
            with recorder.hold():
                scheduler.schedule(work, "in")
                await recorder.adrain()
                assert ran == []
            await recorder.adrain()
            scheduler.schedule(work, "after")
            await recorder.adrain()
            assert ran == ["in", "after"]


async def test_a_block_does_not_let_go_of_what_another_one_holds() -> None:
    with record_tasks() as recorder:
        async with recording(recorder) as scheduler:
            with recorder.hold(work):
                with recorder.hold():
                    scheduler.schedule(work, "outer")
                    scheduler.schedule(work_in_thread, "inner")
                    await recorder.adrain()
                await recorder.adrain()
                assert ran == ["inner"]
            await recorder.adrain()
            assert ran == ["inner", "outer"]


async def test_what_was_never_released_is_discarded_and_no_leak() -> None:
    with record_tasks(mode="hold") as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(work)
            await recorder.adrain()
        assert (recorder[0].state, recorder[0].reason) == ("discarded", "held until test end")


async def test_what_is_held_when_the_recording_ends_is_discarded() -> None:
    async with TaskScheduler() as scheduler:
        with record_tasks(mode="hold") as recorder:
            task = scheduler.schedule(work)
            await recorder.adrain()
        assert (recorder[0].state, recorder[0].reason) == ("discarded", "held until test end")
        await task.wait()
    assert ran == []


async def test_what_waits_in_virtual_time_when_the_recording_ends_is_discarded() -> None:
    async with TaskScheduler() as scheduler:
        with record_tasks(virtual_time=True) as recorder:
            recorder.fail(work, ConnectionError)
            delayed = scheduler.task(delay=60).schedule(work_in_thread)
            retried = scheduler.task(on_error=retry()).schedule(work)
            await quiet()
        assert [(task.state, task.reason) for task in recorder] == [
            ("discarded", "it waited for virtual time when the test ended"),
            ("cancelled", "it waited for virtual time when the test ended"),
        ]
        await delayed.wait()
        await retried.wait()


async def test_a_release_that_cannot_be_is_explained() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            with pytest.raises(AssertionError, match=r"^cannot release anything: no such task was scheduled$"):
                recorder.release()
            scheduler.schedule(work)
            await recorder.adrain()
            with pytest.raises(AssertionError, match=r"^cannot release work: it is succeeded, not held$"):
                recorder.release(work)
            recorder.hold()
            scheduler.schedule(work_in_thread)
            await recorder.adrain()
        with pytest.raises(
            AssertionError,
            match=r"^cannot release work_in_thread: its app has shut down; "
            r"release inside the 'with TestClient\(app\)' block$",
        ):
            recorder.release(work_in_thread)
        with pytest.raises(AssertionError, match=r"hint: release\(work_in_thread\) while its app runs: inside the"):
            recorder.assert_ran(work_in_thread)


# ---- fail ----


async def test_attempts_fail_as_often_as_asked() -> None:
    with record_tasks(virtual_time=True) as recorder:
        recorder.fail(work, ConnectionError("down"), times=2)
        async with recording(recorder) as scheduler:
            scheduler.task(on_error=retry(attempts=5)).schedule(work)
            await recorder.adrain()
        task = recorder.one(work)
        assert (task.state, task.attempts, task.result) == ("succeeded", 3, "work")
        assert ran == ["work"]
        retried = [event for event in task.events if event.kind == "retrying"]
        assert [(event.attempt, str(event.error), event.detail) for event in retried] == [
            (1, "down", "in 1 s (virtual)"),
            (2, "down", "in 2 s (virtual)"),
        ]


async def test_a_failure_that_was_asked_for_is_expected_and_kept_as_it_is() -> None:
    error = ConnectionError("down")
    with record_tasks() as recorder:
        recorder.fail(work, error)
        async with recording(recorder) as scheduler:
            scheduler.schedule(work)
            await recorder.adrain()
            scheduler.schedule(work)
        assert [task.state for task in recorder] == ["failed", "succeeded"]
        assert recorder[0].error is error
        assert ran == ["work"]


async def test_all_attempts_fail() -> None:
    with record_tasks(virtual_time=True) as recorder:
        recorder.fail(call(work, "a"), ConnectionError, times=None)
        async with recording(recorder) as scheduler:
            scheduler.task(on_error=retry(attempts=4)).schedule(work, "a")
            scheduler.schedule(work, "b")
            await recorder.adrain()
        assert recorder.assert_failed(work, ConnectionError).attempts == 4
        assert ran == ["b"]


@pytest.mark.parametrize("function", [work, work_in_thread])
async def test_an_attempt_fails_after_it_ran(function: object) -> None:
    with record_tasks() as recorder:
        recorder.fail(work, ConnectionError, after_run=True)
        recorder.fail(work_in_thread, ConnectionError, after_run=True)
        async with recording(recorder) as scheduler:
            scheduler.schedule(function, "a")  # type: ignore[call-overload]
        recorder.assert_failed("work" if function is work else "work_in_thread", ConnectionError)
        assert ran == ["a"]


async def test_what_is_no_error_is_refused() -> None:
    class Picky(Exception):  # noqa: N818
        def __init__(self, needed: str) -> None:
            super().__init__(needed)

    with record_tasks() as recorder:
        for wrong, shown in (("down", "'down'"), (int, "<class 'int'>")):
            with pytest.raises(TypeError, match=rf"{shown}\): error must be an exception or an exception type"):
                recorder.fail(work, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="needed"):
            recorder.fail(work, Picky)
        with pytest.raises(TypeError, match="names no task"):
            recorder.fail(5, ValueError)  # type: ignore[arg-type]


# ---- stub ----


@pytest.mark.parametrize("function", [work, work_in_thread])
async def test_a_stub_runs_nothing(function: object) -> None:
    with record_tasks() as recorder:
        recorder.stub(function)  # type: ignore[arg-type]
        async with recording(recorder) as scheduler:
            scheduler.schedule(function, "a")  # type: ignore[call-overload]
        assert recorder[0].result is None
        assert ran == []


async def test_a_stub_runs_something_else() -> None:
    async def instead(name: str) -> str:
        return f"async {name}"

    def instead_in_thread(name: str) -> str:
        return f"thread {name}"

    with record_tasks() as recorder:
        recorder.stub(work, instead_in_thread)
        recorder.stub(work_in_thread, instead)
        recorder.stub(call(work, "special"), instead)
        async with recording(recorder) as scheduler:
            scheduler.schedule(work, "a")
            scheduler.schedule(work_in_thread, "b")
            scheduler.schedule(work, "special")
        assert [task.result for task in recorder] == ["thread a", "async b", "async special"]
        assert ran == []


class Outbox(list[str]):
    """A stub that collects calls: it is false while it is empty."""

    def __call__(self, name: str) -> str:
        self.append(name)
        return f"kept {name}"


async def test_a_stub_that_is_false_runs_in_place_of_the_function() -> None:
    outbox, mock = Outbox(), MagicMock(spec=Outbox, return_value="mocked")
    mock.__len__.return_value = 0
    with record_tasks() as recorder:
        recorder.stub(work, outbox)
        recorder.stub(call(work, "mocked"), mock)
        async with recording(recorder) as scheduler:
            scheduler.schedule(work, "ann")
            scheduler.schedule(work, "mocked")
        assert [task.result for task in recorder] == ["kept ann", "mocked"]
    assert (outbox, ran) == (["ann"], [])


async def test_a_stub_that_fails_is_no_expected_failure() -> None:
    async def boom(name: str = "") -> None:
        raise RuntimeError("boom")

    with (  # noqa: PT012
        pytest.raises(AssertionError, match=r"^1 background task failed, and the test does not expect it\n"),
        record_tasks() as recorder,
    ):
        recorder.stub(work, boom)
        async with recording(recorder) as scheduler:
            scheduler.schedule(work)
        recorder.assert_order(started(work), finished(work))


async def test_a_stub_has_to_be_a_function() -> None:
    with record_tasks() as recorder, pytest.raises(TypeError, match=r"'something'\): replacement must be a function"):
        recorder.stub(work, "something")  # type: ignore[arg-type]


# ---- what is not touched ----


async def test_tasks_of_others_are_left_alone() -> None:
    async with TaskScheduler() as scheduler:
        with record_tasks(mode="hold") as outer:
            outer.stub(work)
            with record_tasks() as inner:
                assert await scheduler.schedule(work, "inner") == "inner"
            assert len(outer) == 0
            assert len(inner) == 1


async def test_a_recording_that_only_listens_is_on_the_way_of_no_attempt() -> None:
    frames: list[str] = []

    async def fail() -> None:
        raise ValueError

    with record_tasks(failures="ignore") as recorder, observe(TaskObserver()):
        async with recording(recorder) as scheduler:
            scheduler.schedule(fail)
        error = recorder[0].error
        traceback = None if error is None else error.__traceback__
        while traceback is not None:
            frames.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
    assert frames == ["fail"]
