"""Waiting, and never judging too early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from tasks_core import TaskPhase, TaskScheduler, retry
from tasks_core.frameworks import announce
from tasks_testing import TasksRecorder, VirtualClock, call, finished, record_tasks, started


@pytest.fixture(params=["asyncio", "trio"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[TaskScheduler]:
    """A scheduler on an event loop in another thread."""
    with (
        start_blocking_portal(request.param) as portal,
        portal.wrap_async_context_manager(TaskScheduler(grace_period=0)) as scheduler,
    ):
        yield scheduler


class Request:
    """Stands for a request of tasks-fastapi."""

    method = "GET"
    path = "/stream"
    status: int | None = None
    error: BaseException | None = None


class Gate:
    """A task that goes through when the test lets it."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> str:
        self.event.wait(10)
        return "through"

    def open_soon(self) -> None:
        """Open it from another thread, while this one waits for something else."""
        threading.Timer(0.05, self.event.set).start()


async def work(number: int = 0) -> int:
    return number


async def wait_for_nothing() -> None: ...


async def fail(text: str = "no") -> None:
    raise ValueError(text)


# ---- without an event loop ----


def test_assertions_wait_for_what_still_runs(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks() as recorder:
        scheduler.schedule(gate)
        gate.open_soon()
        assert recorder.assert_ran(gate, times=1).result == "through"


def test_an_assertion_of_failure_waits(scheduler: TaskScheduler) -> None:
    gate = Gate()

    async def fail_later() -> None:
        await anyio.to_thread.run_sync(gate)
        raise ValueError("later")

    with record_tasks() as recorder:
        scheduler.schedule(fail_later)
        gate.open_soon()
        recorder.assert_failed(fail_later, ValueError, match="later")


def test_an_assertion_of_order_waits(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks() as recorder:
        scheduler.schedule(gate)
        gate.open_soon()
        recorder.assert_order(gate, finished(gate))


def test_a_negative_assertion_waits_for_tasks_that_may_schedule_more(scheduler: TaskScheduler) -> None:
    gate = Gate()

    async def schedule_later() -> None:
        await anyio.to_thread.run_sync(gate)
        scheduler.schedule(work)

    with record_tasks() as recorder:
        scheduler.schedule(schedule_later)
        gate.open_soon()
        with pytest.raises(AssertionError, match=r"^expected work not to have been scheduled, it was, once\n"):
            recorder.assert_not_scheduled(work)


def test_a_task_that_was_discarded_is_named_by_a_negative_assertion(scheduler: TaskScheduler) -> None:
    with record_tasks() as recorder:
        for reason in ("the request failed", "rolled back"):
            phase = TaskPhase(scheduler, "after_commit")
            phase.schedule(work)
            phase.discard(reason)
        recorder.assert_order(finished(work), finished(work))
        written = r'in_state\("discarded"\).assert_scheduled\(work, times=2\)'
        hint = (
            rf"\n  hint: discarded before it ran: the request failed; rolled back; if that is right, write {written}$"
        )
        with pytest.raises(AssertionError, match=hint):
            recorder.assert_not_scheduled(work)
        with pytest.raises(AssertionError, match=r"\) at .*|scheduled at .*") as more_than_once:
            recorder.assert_scheduled(work, times=1)
        assert "hint" not in str(more_than_once.value)
        recorder.in_state("discarded").assert_scheduled(work, times=2)
        scheduler.schedule(work)
        with pytest.raises(AssertionError, match="it was, 3 times") as not_all_discarded:
            recorder.assert_not_scheduled(work)
        assert "hint" not in str(not_all_discarded.value)


def test_a_state_that_does_not_exist_is_refused() -> None:
    states = "pending, held, running, retrying, succeeded, failed, cancelled, discarded"
    with record_tasks() as recorder:
        with pytest.raises(ValueError, match=rf"^in_state\('succeeeded'\): a state is one of {states}$"):
            recorder.in_state("failed", "succeeeded")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"^wait_for\('done'\): a state is one of {states}$"):
            recorder.wait_for(work, "done")  # type: ignore[arg-type]


def test_a_number_is_judged_when_nothing_more_can_come(scheduler: TaskScheduler) -> None:
    gate = Gate()

    async def schedule_later() -> None:
        await anyio.to_thread.run_sync(gate)
        scheduler.schedule(work)

    with record_tasks() as recorder:
        scheduler.schedule(work)
        scheduler.schedule(schedule_later)
        gate.open_soon()
        recorder.assert_scheduled(work, times=2)


def test_a_negative_assertion_that_cannot_tell_fails(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks(timeout=0.1) as recorder:
        scheduler.schedule(gate)
        with pytest.raises(
            AssertionError,
            match=r"^expected work not to have been scheduled: cannot tell after 0\.1 s, 1 task still running\n"
            r"  #1 Gate\(\)  running, scheduled at .*test_testing_waiting\.py:\d+\n"
            r"  hint: end what still runs, or exempt it with allow_running\(\)$",
        ):
            recorder.assert_not_scheduled(work)
        gate.event.set()
        recorder.assert_not_scheduled(work)


def test_a_request_that_is_being_served_may_schedule_more(scheduler: TaskScheduler) -> None:
    request = Request()
    with record_tasks(timeout=0.1) as recorder:
        announce(request, "request_started")
        with pytest.raises(
            AssertionError,
            match=r"^expected nothing to have been scheduled: cannot tell after 0\.1 s, request #1 GET /st",
        ):
            recorder.assert_nothing_scheduled()
        threading.Timer(0.05, announce, (request, "request_finished")).start()
        recorder.assert_nothing_scheduled()


def test_what_another_request_does_is_not_waited_for(scheduler: TaskScheduler) -> None:
    ended, going_on = Request(), Request()
    with record_tasks(timeout=0.1) as recorder:
        announce(ended, "request_started")
        announce(ended, "request_finished")
        announce(going_on, "request_started")
        recorder.request(0).assert_nothing_scheduled()
        announce(going_on, "request_finished")


def test_an_assertion_that_is_true_already_does_not_wait(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks(timeout=0.1) as recorder:
        scheduler.schedule(gate)
        scheduler.schedule(work)
        recorder.assert_ran(work)
        recorder.assert_scheduled(gate)
        gate.event.set()


def test_drain_waits_for_everything_that_is_scheduled_meanwhile(scheduler: TaskScheduler) -> None:
    gate = Gate()

    async def schedule_more(left: int) -> None:
        await anyio.to_thread.run_sync(gate)
        if left:
            scheduler.schedule(schedule_more, left - 1)

    with record_tasks() as recorder:
        scheduler.schedule(schedule_more, 5)
        gate.open_soon()
        recorder.drain()
        assert [task.state for task in recorder] == ["succeeded"] * 6


def test_drain_does_not_raise_what_tasks_raise(scheduler: TaskScheduler) -> None:
    with record_tasks() as recorder:
        scheduler.schedule(fail)
        recorder.drain()
        recorder.assert_failed(fail)


def test_drain_says_what_it_waited_for(scheduler: TaskScheduler) -> None:
    gate, request = Gate(), Request()
    with record_tasks(timeout=0.1) as recorder:
        announce(request, "request_started")
        batch = TaskPhase(scheduler, "after_response", origin=request)
        batch.schedule(work, 5)
        scheduler.schedule(gate)
        with pytest.raises(
            AssertionError,
            match=r"^drain\(\) waited 0\.1 s, and 2 tasks not ended\n"
            r"  #2 Gate\(\)  running, scheduled at .*test_testing_waiting\.py:\d+\n"
            r"  #1 work\(5\)  pending, scheduled at .*test_testing_waiting\.py:\d+\n"
            r"      it waits for after_response of #1 GET /stream, which is still served: "
            r"read the response to its end, or close it\n"
            r"  hint: for a task that never ends, such as a loop, write tasks_recorder\.allow_running\('Gate'\)$",
        ):
            recorder.drain()
        gate.event.set()
        announce(request, "request_finished")
        batch.open()
        recorder.drain(5)


def test_drain_waits_for_a_request_to_come_to_the_phase_of_a_task(scheduler: TaskScheduler) -> None:
    request = Request()
    with record_tasks() as recorder:
        announce(request, "request_started")
        batch = TaskPhase(scheduler, "after_response", origin=request)
        batch.schedule(work)
        threading.Timer(0.05, batch.open).start()
        recorder.drain()
        assert recorder.in_state("succeeded").calls == [call(work)]
        announce(request, "request_finished")


def test_a_phase_that_nobody_opens_is_not_waited_for(scheduler: TaskScheduler) -> None:
    with record_tasks(timeout=0.1) as recorder:
        batch = TaskPhase(scheduler, "after_commit")
        batch.schedule(work)
        recorder.drain()
        with pytest.raises(AssertionError, match=r"hint: its phase 'after_commit' has not been opened$"):
            recorder.assert_ran(work)
        batch.discard("the test is over")
        recorder.in_phase("after_commit").assert_order(finished(work))


def test_a_task_that_may_run_on_is_not_waited_for(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks(timeout=0.1) as recorder:
        scheduler.schedule(gate)
        recorder.allow_running(gate)
        recorder.drain()
        recorder.assert_not_scheduled(work)
        scheduler.schedule(gate)
        recorder.drain()
    gate.event.set()


def test_wait_for_a_state(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks() as recorder:
        threading.Timer(0.05, scheduler.schedule, (gate,)).start()
        assert recorder.wait_for(gate, "running").state == "running"
        gate.open_soon()
        assert recorder.wait_for(gate).result == "through"


def test_waiting_for_a_failure_is_to_expect_it(scheduler: TaskScheduler) -> None:
    with record_tasks() as recorder:
        scheduler.schedule(fail)
        assert isinstance(recorder.wait_for(fail, "failed").error, ValueError)


def test_wait_for_does_not_wait_for_what_cannot_come(scheduler: TaskScheduler) -> None:
    with record_tasks(failures="ignore") as recorder:
        scheduler.schedule(fail)
        with pytest.raises(
            AssertionError, match=r"^wait_for\(\): fail did not reach the state 'succeeded'\n  #1 fail\(\)  failed"
        ):
            recorder.wait_for(fail)


def test_wait_for_has_a_timeout(scheduler: TaskScheduler) -> None:
    with (
        record_tasks() as recorder,
        pytest.raises(
            AssertionError,
            match=r"^wait_for\(\): work\(3\) did not reach the state 'running' in 0\.1 s\n  nothing was scheduled$",
        ),
    ):
        recorder.wait_for(call(work, 3), "running", timeout=0.1)


def test_the_result_of_a_task_that_has_none(scheduler: TaskScheduler) -> None:
    with record_tasks(failures="ignore") as recorder:
        scheduler.schedule(fail)
        recorder.drain()
        with pytest.raises(AssertionError, match=r"^#1 fail\(\) has no result because it is failed: ValueError: no$"):
            _ = recorder[0].result
        TaskPhase(scheduler, "after_commit").schedule(work)
        with pytest.raises(AssertionError, match=r"^#2 work\(\) has no result because it is pending$"):
            _ = recorder[1].result


# ---- on an event loop ----


@pytest.mark.anyio
async def test_what_would_block_the_event_loop_is_refused() -> None:
    with record_tasks(virtual_time=True) as recorder:
        refused: list[tuple[Callable[[], object], str]] = [
            (recorder.drain, r"drain\(\) would block the running event loop; use 'await tasks_recorder\.adrain\(\)'"),
            (lambda: recorder.wait_for(work), r"wait_for\(\) would .*; use 'await tasks_recorder\.await_for\(\)'"),
            (
                lambda: recorder.clock.advance(1),
                r"clock\.advance\(\) would .*use 'await tasks_recorder\.clock\.aadvance",
            ),
        ]
        for method, text in refused:
            with pytest.raises(RuntimeError, match=f"^{text}"):
                method()


@pytest.mark.anyio
async def test_the_awaited_twins_wait() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            event = anyio.Event()
            scheduler.schedule(event.wait)
            scheduler.schedule(work, 3)
            assert (await recorder.await_for(work)).result == 3
            event.set()
            await recorder.adrain()
            recorder.assert_ran(event.wait)


@pytest.mark.anyio
async def test_the_awaited_twins_wait_for_another_loop(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks() as recorder:
        thread = threading.Thread(target=scheduler.schedule, args=(gate,))
        thread.start()
        thread.join()
        gate.open_soon()
        await recorder.adrain()
        recorder.assert_ran(gate)


@pytest.mark.anyio
async def test_adrain_has_a_timeout() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            task = scheduler.schedule(anyio.sleep_forever)
            with pytest.raises(
                AssertionError, match=r"^adrain\(\) waited 0\.05 s, and 1 task not ended\n  #1 sleep_forever"
            ):
                await recorder.adrain(0.05)
            with pytest.raises(
                AssertionError, match=r"^await_for\(\): sleep_forever did not reach the state 'succeeded' in 0\.05"
            ):
                await recorder.await_for(anyio.sleep_forever, timeout=0.05)
            task.cancel()


@pytest.mark.anyio
async def test_assertions_on_an_event_loop_do_not_wait() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            event = anyio.Event()

            async def wait() -> None:
                await event.wait()

            scheduler.schedule(wait)
            with pytest.raises(
                AssertionError,
                match=r"^expected .*\.wait to have run, it did not\n.*\n"
                r"  hint: it still runs: 'await tasks_recorder\.adrain\(\)' first$",
            ):
                recorder.assert_ran(wait)
            with pytest.raises(
                AssertionError,
                match=r"^expected work to have run, it did not\n.*\n"
                r"  hint: 1 task still running, which may schedule more: 'await tasks_recorder\.adrain\(\)' first$",
            ):
                recorder.assert_ran(work)
            with pytest.raises(
                AssertionError,
                match=r"^expected work not to have been scheduled: cannot tell, 1 task still running\n  #1 .*\n"
                r"  hint: 'await tasks_recorder\.adrain\(\)' first$",
            ):
                recorder.assert_not_scheduled(work)
            with pytest.raises(AssertionError, match=r"\.wait to have been scheduled once: cannot tell, 1 task"):
                recorder.one(wait)
            with pytest.raises(AssertionError, match=r"hint: 1 task still running: drain first$"):
                recorder.assert_order(started(work))
            event.set()


# ---- virtual time ----


def waits_of(recorder: TasksRecorder) -> list[float]:
    return [event.clock for event in recorder.events if event.kind == "started"]


def test_drain_lets_virtual_time_pass(scheduler: TaskScheduler) -> None:
    with record_tasks(virtual_time=True) as recorder:
        recorder.fail(work, ConnectionError, times=2)
        scheduler.task(delay=3600, on_error=retry(attempts=3, backoff=10)).schedule(work)
        recorder.drain()
        assert waits_of(recorder) == [3600, 3610, 3630]
        assert recorder.clock.now == 3630


@pytest.mark.anyio
async def test_a_task_that_may_run_on_does_not_move_virtual_time_either() -> None:
    with record_tasks(virtual_time=True) as recorder:
        recorder.allow_running(work)
        async with TaskScheduler(grace_period=0) as scheduler:
            scheduler.task(delay=60).schedule(work, 1)
            await anyio.wait_all_tasks_blocked()
            await recorder.adrain()
            assert recorder.clock.now == 0


def test_wait_for_lets_virtual_time_pass_no_further_than_it_must(scheduler: TaskScheduler) -> None:
    with record_tasks(virtual_time=True) as recorder:
        scheduler.task(delay=60).schedule(work, 1)
        scheduler.task(delay=90).schedule(work, 2)
        recorder.wait_for(call(work, 1))
        assert recorder.clock.now == 60
        assert recorder.one(call(work, 2)).state == "pending"


def test_a_test_moves_virtual_time_itself(scheduler: TaskScheduler) -> None:
    with record_tasks() as recorder:
        recorder.virtual_time()
        recorder.virtual_time(auto=False)
        recorder.fail(work, ConnectionError, times=2)
        scheduler.task(delay=10, on_error=retry(attempts=3, backoff=1)).schedule(work)
        recorder.drain()
        with pytest.raises(
            AssertionError, match=r"hint: it waits for virtual time, until 10 s: drain\(\) or clock\.advance\(10\)$"
        ):
            recorder.assert_ran(work)
        recorder.clock.advance(11.5)
        assert (waits_of(recorder), recorder.clock.now) == ([10, 11], 11.5)
        recorder.clock.advance(60)
        assert waits_of(recorder) == [10, 11, 13]
        assert repr(recorder.clock) == "<RecorderClock virtual 71.5>"


@pytest.mark.anyio
async def test_virtual_time_on_an_event_loop() -> None:
    with record_tasks(virtual_time=True) as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.task(delay=10).schedule(work)
            await recorder.clock.aadvance(9)
            assert recorder[0].state == "pending"
            await recorder.adrain()
            assert recorder.clock.now == 10
            scheduler.task(timeout=30).schedule(anyio.sleep_forever)
            with pytest.raises(
                AssertionError, match=r"virtual time stands still while it runs; clock\.advance\(30, while_r"
            ):
                await recorder.adrain(0.1)
            await recorder.clock.aadvance(30, while_running=True)
            recorder.assert_failed(anyio.sleep_forever, TimeoutError)


def test_advance_says_what_still_runs(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks(virtual_time=True, timeout=0.1) as recorder:
        scheduler.schedule(gate)
        with pytest.raises(
            AssertionError,
            match=r"^clock\.advance\(\) waited 0\.1 s of real time, and tasks still run\n  #1 Gate\(\)  ru",
        ):
            recorder.clock.advance(1)
        gate.event.set()


def test_drain_gives_up_on_a_task_that_schedules_itself_for_ever(scheduler: TaskScheduler) -> None:
    async def poll() -> None:
        scheduler.task(delay=60).schedule(poll)

    with record_tasks(virtual_time=True, timeout=60) as recorder:
        scheduler.schedule(poll)
        with pytest.raises(
            AssertionError, match=r"moved virtual time 1000 times, and poll still waits\. If .*allow_running\(poll\)"
        ):
            recorder.drain()


def test_a_pause_in_real_time_is_named(scheduler: TaskScheduler) -> None:
    with record_tasks() as recorder:
        task = scheduler.task(on_error=retry(attempts=2, backoff=60)).schedule(fail)
        while not recorder.in_state("retrying"):
            time.sleep(0.001)
        with pytest.raises(AssertionError, match=r"\n      it waits in real time for its next attempt; with virtual_t"):
            recorder.drain(0.001)
        task.cancel()
        recorder.drain()


def test_real_time_is_not_moved(scheduler: TaskScheduler) -> None:
    with record_tasks() as recorder:
        scheduler.task(delay=0.2).schedule(work)
        assert recorder.in_state("pending")
        with pytest.raises(
            AssertionError, match=r"\n      it waits in real time for the end of its delay; with virtual_t"
        ):
            recorder.drain(0.001)
        with pytest.raises(RuntimeError, match=r"^clock\.advance\(\) needs virtual time: mark the test with @pytest"):
            recorder.clock.advance(1)
        with pytest.raises(
            RuntimeError, match=r"^virtual_time\(\) came too late: #1 work\(\) already waits in real time$"
        ):
            recorder.virtual_time()
        recorder.drain()
        assert recorder[0].state == "succeeded"
        assert 0 < recorder.clock.now < 60
        assert repr(recorder.clock).startswith("<RecorderClock real ")


@pytest.mark.anyio
async def test_a_task_that_sleeps_by_the_clock_itself() -> None:
    clock = VirtualClock(auto=False)

    async def sleep() -> float:
        await clock.sleep_until(5)
        return clock.now()

    with record_tasks() as recorder:
        async with TaskScheduler(clock=clock) as scheduler:
            scheduler.task(timeout=30).schedule(sleep)
            await clock.aadvance(10)
            await recorder.adrain()
        assert recorder.one().result == 5


def test_advance_waits_for_a_healthy_task_however_long_it_takes(scheduler: TaskScheduler) -> None:
    gate = Gate()
    with record_tasks(virtual_time=True) as recorder:
        scheduler.task(timeout=5).schedule(gate)
        scheduler.task(delay=8).schedule(work)
        threading.Timer(0.3, gate.event.set).start()  # longer than any guess about a task that does nothing visible
        recorder.clock.advance(10)
        assert [task.state for task in recorder] == ["succeeded", "succeeded"]
        assert recorder.clock.now == 10


def test_a_timeout_is_brought_about_on_request(scheduler: TaskScheduler) -> None:
    with record_tasks(virtual_time=True) as recorder:
        hanging = scheduler.task(timeout=5, on_error=retry(attempts=2, backoff=1)).schedule(anyio.sleep_forever)
        recorder.clock.advance(5, while_running=True)
        assert recorder.one(anyio.sleep_forever).state == "retrying"
        recorder.clock.advance(6, while_running=True)
        assert recorder.assert_failed(anyio.sleep_forever, TimeoutError).task is hanging
        assert waits_of(recorder) == [0, 6]


def test_advance_says_how_to_bring_a_timeout_about(scheduler: TaskScheduler) -> None:
    with record_tasks(virtual_time=True, timeout=0.1) as recorder:
        task = scheduler.task(timeout=5).schedule(anyio.sleep_forever)
        with pytest.raises(
            AssertionError, match=r"\n  hint: to bring timeouts about, write clock\.advance\(6, while_running=True\)$"
        ):
            recorder.clock.advance(6)
        assert recorder.clock.now == 0
        task.cancel()


def test_advance_says_what_does_not_come_to_rest_at_its_end(scheduler: TaskScheduler) -> None:
    with record_tasks(virtual_time=True, timeout=0.1) as recorder:
        task = scheduler.task(delay=6).schedule(anyio.sleep_forever)
        with pytest.raises(
            AssertionError, match=r"^clock\.advance\(\) waited 0\.1 s of real time, and tasks still run\n"
        ):
            recorder.clock.advance(6)
        assert recorder.clock.now == 6
        task.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("auto", [True, False])
async def test_a_function_that_sleeps_by_the_clock_lets_time_pass(auto: bool) -> None:
    clock = VirtualClock(auto=auto)

    async def sleep_three_times() -> float:
        for _ in range(3):
            await clock.sleep_until(clock.now() + 5)
        return clock.now()

    async with TaskScheduler(clock=clock) as scheduler:
        task = scheduler.task(timeout=30).schedule(sleep_three_times)
        if auto:
            await task
        else:
            await clock.aadvance(20)
        assert task.result() == 15


def test_assertions_move_virtual_time_as_far_as_they_need(scheduler: TaskScheduler) -> None:
    with record_tasks(virtual_time=True) as recorder:
        recorder.fail(fail, ConnectionError, times=2)
        scheduler.task(delay=60, on_error=retry(attempts=3, backoff=10)).schedule(fail)
        scheduler.task(delay=3600).schedule(work)
        recorder.assert_not_scheduled(wait_for_nothing)
        assert recorder.clock.now == 0
        assert recorder.assert_failed(fail, ValueError).attempts == 3
        assert recorder.clock.now == 90
        recorder.assert_order(fail, started(work))
        assert recorder.clock.now == 3600


def test_an_assertion_moves_virtual_time_to_its_end_before_it_fails(scheduler: TaskScheduler) -> None:
    async def poll() -> None:
        scheduler.task(delay=60).schedule(poll)

    with record_tasks(virtual_time=True) as recorder:
        recorder.allow_running(poll)
        scheduler.task(delay=60).schedule(work)
        scheduler.schedule(poll)
        with pytest.raises(AssertionError, match=r"^expected wait_for_nothing to have run, it did not\n"):
            recorder.assert_ran(wait_for_nothing)
        assert recorder.clock.now == 60


def test_drain_names_a_task_that_never_ends(scheduler: TaskScheduler) -> None:
    with record_tasks(timeout=0.1, leaks="ignore") as recorder:
        task = scheduler.schedule(anyio.sleep_forever)
        with pytest.raises(
            AssertionError,
            match=r"\n  hint: for a task that never ends, such as a loop, write tasks_recorder\.allow_running\(sl",
        ):
            recorder.drain()
        task.cancel()


# ---- virtual time, and the end of a scheduler ----


@pytest.mark.anyio
async def test_a_pause_that_begins_in_shutdown_and_is_too_long(recwarn: pytest.WarningsRecorder) -> None:
    with anyio.fail_after(10), record_tasks(virtual_time=True) as recorder:
        recorder.fail(work, ConnectionError, times=None)
        async with TaskScheduler(grace_period=30) as scheduler:
            scheduler.task(on_error=retry(attempts=9, backoff=10)).schedule(work)
        task = recorder.one(work)
        assert (task.state, task.attempts, task.reason) == (
            "cancelled",
            3,
            "its delay would have ended after the time that shutdown leaves it",
        )
        assert recorder.clock.now == 30
    assert len(recwarn) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("auto", [True, False])
async def test_shutdown_takes_no_time_with_a_virtual_clock(auto: bool, recwarn: pytest.WarningsRecorder) -> None:
    with anyio.fail_after(10), record_tasks() as recorder:
        recorder.virtual_time(auto=auto)
        async with TaskScheduler(grace_period=30) as scheduler:
            scheduler.task(delay=20).schedule(work, 1)
            scheduler.task(delay=40).schedule(work, 2)
            await anyio.wait_all_tasks_blocked()
        states = {"succeeded", "discarded"} if auto else {"discarded"}
        assert {task.state for task in recorder} == states
        assert recorder.one(call(work, 2)).reason == "its app shut down, and did not wait for that long"
        assert recorder.clock.now == (20 if auto else 0)
    assert len(recwarn) == (1 if auto else 0)
