"""Whoever runs the scheduler is cancelled, interrupted or killed."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio.testing
from core_support import EventLog, in_thread, messages, noop, states
from tasks_core import SchedulerClosedError, Task, TaskObserver, TaskPhase, TaskScheduler, TaskState, observe
from tasks_testing import VirtualClock

BACKENDS = ["asyncio", "trio"]


class Block:
    """A block whose tasks and their ends are looked at from outside, on a clock that stands still."""

    def __init__(self, *, grace_period: float = 60, shield_timeout: float | None = 60) -> None:
        self.scheduler = TaskScheduler(
            clock=VirtualClock(auto=False), grace_period=grace_period, shield_timeout=shield_timeout
        )
        self.gate = anyio.Event()
        self.entered = anyio.Event()
        self.tasks: list[Task[Any]] = []
        self.closed = False

    async def wait_at_gate(self) -> None:
        await self.gate.wait()

    async def run(self) -> None:
        try:
            async with self.scheduler as scheduler:
                self.tasks += [
                    scheduler.schedule(anyio.sleep_forever),
                    scheduler.task(shield=True).schedule(self.wait_at_gate),
                    scheduler.task(delay=600).schedule(noop),
                ]
                await self.tasks[1].started.wait()
                self.entered.set()
                await anyio.sleep_forever()
        finally:
            self.closed = self.scheduler.closed

    def check(self, *expected: TaskState) -> None:
        assert states(*self.tasks) == list(expected)
        assert self.closed
        assert self.scheduler.report is not None
        assert self.scheduler.report.duration == 0, "the grace period is over at once"


ENDS = (TaskState.CANCELLED, TaskState.SUCCEEDED, TaskState.DISCARDED)


@pytest.mark.anyio
async def test_a_scope_that_is_cancelled_ends_the_grace_period_and_not_the_shield() -> None:
    block = Block()
    async with anyio.create_task_group() as group:
        group.start_soon(block.run)
        await block.entered.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await block.tasks[0].wait()
            assert states(*block.tasks) == [TaskState.CANCELLED, TaskState.RUNNING, TaskState.DISCARDED]
            assert not block.closed
            block.gate.set()
    block.check(*ENDS)


@pytest.mark.anyio
async def test_cancelled_while_it_waits_in_aclose() -> None:
    block = Block()
    scheduler = block.scheduler
    await scheduler.start()
    block.tasks += [
        scheduler.schedule(anyio.sleep_forever),
        scheduler.task(shield=True).schedule(block.wait_at_gate),
        scheduler.task(delay=600).schedule(noop),
    ]
    await block.tasks[1].started.wait()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await block.tasks[0].wait()
            block.gate.set()
    block.closed = scheduler.closed
    block.check(*ENDS)


def test_asyncio_cancel_once_and_again() -> None:
    async def main() -> None:
        block = Block()
        runner = asyncio.create_task(block.run())
        await block.entered.wait()
        runner.cancel()
        await block.tasks[0].wait()
        for _ in range(3):
            runner.cancel()
            await asyncio.sleep(0)
        assert not runner.done()
        block.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await runner
        block.check(*ENDS)

    asyncio.run(main())


def test_asyncio_cancel_before_shutdown_has_begun_to_wait() -> None:
    async def main() -> None:
        block = Block()
        block.gate.set()
        runner = asyncio.create_task(block.run())
        await block.entered.wait()
        runner.cancel()
        runner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await runner
        block.check(*ENDS)

    asyncio.run(main())


async def hold_on(block: Block) -> None:
    """Keep the loop from noticing that the main task has ended, with a scheduler that nobody left."""
    await block.scheduler.start()
    block.tasks.append(block.scheduler.schedule(anyio.sleep_forever))
    block.tasks.append(block.scheduler.task(shield=True).schedule(anyio.sleep_forever))
    await block.tasks[1].started.wait()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_event_loop_that_ends_takes_the_tasks_with_it(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """`start()` without `aclose()`: a mistake, but the tasks still end, and say so."""
    block = Block()
    anyio.run(hold_on, block, backend=backend)
    assert states(*block.tasks) == [TaskState.CANCELLED] * 2
    assert len(messages(caplog, logging.WARNING)) == 2


@pytest.mark.parametrize("step", range(4))
def test_asyncio_runner_cancels_everything_while_shutdown_is_under_way(step: int) -> None:
    block = Block()

    async def main() -> None:
        background.append(asyncio.create_task(block.run()))
        await block.entered.wait()
        if step:
            background.append(asyncio.create_task(block.scheduler.aclose()))
        for _ in range(step - 1):
            await asyncio.sleep(0)

    background: list[asyncio.Task[Any]] = []
    asyncio.run(main())
    assert all(task.done() for task in background)
    assert all(task.state.finished for task in block.tasks)
    assert TaskState.SUCCEEDED not in states(*block.tasks)
    assert block.scheduler.closed
    numbers = block.scheduler.statistics()
    assert numbers.scheduled == numbers.cancelled + numbers.discarded == 3


def test_asyncio_tasks_cancelled_from_outside_before_their_first_step(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> TaskScheduler:
        async with TaskScheduler(grace_period=60) as scheduler:
            before = asyncio.all_tasks()
            scheduler.schedule(noop)
            scheduler.task(delay=60).schedule(noop)
            for native in asyncio.all_tasks() - before:
                native.cancel()
        return scheduler

    began = time.monotonic()
    scheduler = asyncio.run(main())
    assert time.monotonic() - began < 30
    assert scheduler.report is not None
    assert [lost.reason for lost in scheduler.report.discarded] == [
        "it was cancelled through the event loop before it started"
    ] * 2


def test_asyncio_tasks_cancelled_from_outside_while_they_wait_or_run() -> None:
    async def main() -> TaskScheduler:
        async with TaskScheduler(grace_period=60) as scheduler:
            before = asyncio.all_tasks()
            scheduler.schedule(anyio.sleep_forever)
            scheduler.task(delay=60).schedule(noop)
            await anyio.wait_all_tasks_blocked()
            for native in asyncio.all_tasks() - before:
                native.cancel()
        return scheduler

    report = asyncio.run(main()).report
    assert report is not None
    assert {lost.reason for lost in report.lost} == {
        "what it waited for was cancelled, or it was cancelled through the event loop",
        "it was cancelled through the event loop while it waited for its turn",
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thread_that_schedules_when_the_loop_is_gone(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await scheduler.start()

    scheduler = TaskScheduler()
    anyio.run(main, backend=backend)
    task: Task[None] = in_thread(lambda: scheduler.schedule(noop))
    assert (task.state, task.reason) == (TaskState.DISCARDED, "the event loop of its scheduler was closed")
    batch = TaskPhase(scheduler, "later")
    other: Task[None] = in_thread(lambda: batch.schedule(noop))
    assert other.state is TaskState.DISCARDED
    in_thread(batch.open)
    in_thread(task.cancel)
    assert len(messages(caplog, logging.WARNING)) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_entering_that_is_cancelled_leaves_nothing(backend: str) -> None:
    async def main() -> None:
        scheduler = TaskScheduler()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await scheduler.start()
        if scope.cancelled_caught:  # trio: entering waits for its nursery
            await scheduler.start()
        await scheduler.schedule(noop)
        await scheduler.aclose()

    anyio.run(main, backend=backend)


def test_trio_ends_while_shutdown_is_under_way() -> None:
    async def clean_up_for_some_turns() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for _ in range(10):
                    await trio.lowlevel.checkpoint()

    async def main() -> None:
        await hold_on(block)
        block.tasks.append(block.scheduler.schedule(clean_up_for_some_turns))
        trio.lowlevel.spawn_system_task(block.scheduler.aclose)
        await block.scheduler.stopping.wait()
        await trio.testing.wait_all_tasks_blocked()

    block = Block()
    trio.run(main)
    assert states(*block.tasks) == [TaskState.CANCELLED] * 3
    assert block.scheduler.closed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_launched_when_shutdown_is_interrupted_does_not_start(backend: str) -> None:
    class Interrupter(TaskObserver):
        def shutdown_started(self, tasks: Sequence[Task[Any]], grace_period: float) -> None:
            (task,) = tasks
            assert isinstance(task.phase, TaskPhase)
            task.phase.open()
            raise KeyboardInterrupt

    ran: list[int] = []
    tasks: list[Task[None]] = []

    async def run() -> None:
        ran.append(1)

    async def main() -> None:
        async with TaskScheduler() as scheduler:
            tasks.append(TaskPhase(scheduler, "later").schedule(run))

    with observe(Interrupter()), pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert (tasks[0].state, tasks[0].attempts) == (TaskState.DISCARDED, 0)
    assert ran == []


@pytest.mark.parametrize("observed", [True, False])
def test_a_task_accepted_by_a_thread_at_the_moment_of_the_end_is_refused(
    observed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has seen that the scheduler is open; when it gets to the books, they are closed."""
    from tasks_core._observer import hooks
    from tasks_core._run.ledger import Ledger

    looked, go_on = threading.Event(), threading.Event()
    enter = Ledger.enter

    def pause(ledger: Ledger, task: Task[Any], here: bool, announcing: bool) -> bool:
        if threading.current_thread().name == "scheduling":
            looked.set()
            go_on.wait()
        return enter(ledger, task, here, announcing)

    errors: list[Exception] = []

    def schedule(scheduler: TaskScheduler) -> None:
        try:
            scheduler.schedule(noop)
        except SchedulerClosedError as error:
            errors.append(error)

    async def main() -> TaskScheduler:
        async with TaskScheduler() as scheduler:
            thread = threading.Thread(target=schedule, args=(scheduler,), name="scheduling")
            thread.start()
            await anyio.to_thread.run_sync(looked.wait)
        go_on.set()
        thread.join()
        return scheduler

    monkeypatch.setattr(Ledger, "enter", pause)
    # The virtual clocks of tests before listen until they are collected.
    monkeypatch.setattr(hooks, "task_scheduled", ())
    log = EventLog()
    with observe(log) if observed else nullcontext():
        scheduler = anyio.run(main)
    assert len(errors) == 1
    assert log.events == []
    assert scheduler.statistics().scheduled == 0


# ---- processes ----


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run *program*, and kill it should it still run when the block is left."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


HANGING_THREAD = """
    import logging, signal, sys, threading
    import anyio
    from tasks_core import TaskScheduler

    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)

    def hang() -> None:
        print("hanging", flush=True)
        threading.Event().wait()

    async def main() -> None:
        async with TaskScheduler(grace_period=0.5, shield_timeout=0.5) as scheduler:
            scheduler.task(shield=True).schedule(hang)
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    break

    anyio.run(main, backend=sys.argv[1])
    print("left", flush=True)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_that_hangs_for_ever_does_not_keep_the_process_from_exiting(backend: str) -> None:
    with process(HANGING_THREAD, backend) as hanging:
        assert hanging.stdout is not None
        assert hanging.stdout.readline() == "hanging\n"
        began = time.monotonic()
        hanging.send_signal(signal.SIGTERM)
        output, _ = hanging.communicate(timeout=30)
        took = time.monotonic() - began
    assert hanging.returncode == 0
    assert "was abandoned: a plain function cannot be cancelled: it still runs in its thread" in output
    assert output.endswith("left\n")
    assert took < 1 + 0.5 + 10  # the two bounds, the last clean-up, and an interpreter on a busy machine


INTERRUPTED = """
    import logging, signal, sys
    import anyio
    from tasks_core import TaskObserver, TaskScheduler, observe

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)

    class Teller(TaskObserver):
        def shutdown_started(self, tasks, grace_period):
            print("stopping", flush=True)

    async def work() -> None:
        print("working", flush=True)
        try:
            await anyio.sleep_forever()
        finally:
            print("cleaned up", flush=True)

    async def main() -> None:
        async with TaskScheduler(grace_period=60) as scheduler:
            scheduler.task(shield=SHIELD).schedule(work)
            await anyio.sleep_forever()

    with observe(Teller()):
        anyio.run(main, backend=sys.argv[1])
"""


def interrupt(backend: str, *, shield: bool, again: bool) -> str:
    """Press Ctrl-C, and *again* when shutdown has begun; return what is said until the process ends."""
    with process(INTERRUPTED.replace("SHIELD", str(shield)), backend) as interrupted:
        assert interrupted.stdout is not None
        assert interrupted.stdout.readline() == "working\n"
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.stdout.readline() == "stopping\n"
        if again:
            interrupted.send_signal(signal.SIGINT)
        output = interrupted.stdout.read()  # not communicate(), which does not see what readline() has read ahead
        interrupted.wait(timeout=30)
    assert interrupted.returncode != 0
    return output


def test_one_ctrl_c_ends_the_grace_period() -> None:
    output = interrupt("asyncio", shield=False, again=False)
    assert "cleaned up\n" in output
    assert "was cancelled: the grace period of the shutdown was over" in output


def test_a_second_ctrl_c_ends_shielded_tasks_too() -> None:
    output = interrupt("asyncio", shield=True, again=True)
    assert "cleaned up\n" in output
    assert "Tasks drained in" in output


# ---- event loops ----


def run_on_uvloop(main: Callable[[], Awaitable[Any]]) -> Any:
    return anyio.run(main, backend_options={"use_uvloop": True})


def test_uvloop() -> None:
    async def main() -> str:
        async with TaskScheduler(grace_period=0) as scheduler:
            task: Task[None] = in_thread(lambda: scheduler.schedule(noop))
            await task
            assert await scheduler.schedule(lambda: 1) == 1
            scheduler.schedule(anyio.sleep_forever)
        assert scheduler.report is not None
        return type(asyncio.get_running_loop()).__module__

    assert run_on_uvloop(main) == "uvloop"


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
def test_an_eager_task_factory_does_not_start_tasks_inside_of_schedule() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(vars(asyncio)["eager_task_factory"])
        async with TaskScheduler() as scheduler:
            task = scheduler.schedule(noop)
            assert task.state is TaskState.PENDING
            await task

    asyncio.run(main())


def test_trio_as_a_guest_of_asyncio() -> None:
    async def trio_main() -> TaskState:
        async with TaskScheduler() as scheduler:
            task = scheduler.schedule(trio.sleep, 0)
            await task
            return task.state

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            trio_main, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        return (await done).unwrap()

    assert asyncio.run(main()) is TaskState.SUCCEEDED


def test_a_task_that_went_on_after_its_cancellation_says_so() -> None:
    """On asyncio: trio cancels a task at each checkpoint until it ends."""

    async def stubborn(went_on: asyncio.Event) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        went_on.set()
        await asyncio.sleep(3600)

    async def main() -> Task[None]:
        went_on = asyncio.Event()
        async with TaskScheduler(grace_period=0) as scheduler:
            task = scheduler.schedule(stubborn, went_on)
            while task.state is not TaskState.RUNNING:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await went_on.wait()
        return task

    task = asyncio.run(main())
    assert task.state is TaskState.CANCELLED
    assert task.reason is not None
    assert task.reason.endswith("; it had gone on after task.cancel()")
