"""Nothing keeps the arguments of a finished task alive but its handle: no reference cycle, no thread, no list."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from core_support import fail, noop, quiet
from tasks_core import Cancel, Snooze, Task, TaskObserver, TaskPhase, TaskScheduler, observe, retry
from tasks_core.types import RunAttempt

pytestmark = pytest.mark.anyio


class Argument:
    """Something whose end can be observed."""


@pytest.fixture(autouse=True)
def without_the_collector() -> Iterator[None]:
    gc.disable()
    with quiet():
        yield
    gc.enable()


async def succeed(argument: Argument) -> None:
    await anyio.lowlevel.checkpoint()


async def succeed_with_result(argument: Argument) -> Argument:
    return argument


def succeed_plainly(argument: Argument) -> None: ...


async def fail_with(argument: Argument) -> None:
    await anyio.lowlevel.checkpoint()
    raise ValueError


def fail_plainly_with(argument: Argument) -> None:
    raise ValueError


async def hang(argument: Argument) -> None:
    await anyio.sleep_forever()


async def exit_with(argument: Argument) -> None:
    raise SystemExit


async def snooze_once_with(argument: Argument) -> None:
    if not hasattr(argument, "snoozed"):
        argument.snoozed = True  # type: ignore[attr-defined]  # for the next attempt
        try:
            raise ValueError
        except ValueError as error:
            raise Snooze(0) from error


async def cancel_with(argument: Argument) -> None:
    raise Cancel("it has a traceback")


async def handle_badly(task: Task[Any], error: Exception) -> None:
    raise RuntimeError


def handle_plainly(task: Task[Any], error: Exception) -> None: ...


@pytest.mark.parametrize(
    "function, options",
    [
        (succeed, {}),
        (succeed, {"delay": 0.001}),
        (succeed, {"timeout": 60}),
        (succeed, {"on_error": handle_plainly}),
        (succeed_with_result, {}),
        (succeed_plainly, {}),
        (succeed_plainly, {"timeout": 60}),
        (fail_with, {}),
        (fail_plainly_with, {}),
        (exit_with, {}),
        (fail_with, {"on_error": retry(attempts=3, backoff=0)}),
        (fail_plainly_with, {"on_error": retry(attempts=3, backoff=0)}),
        (fail_with, {"on_error": retry(attempts=2, backoff=0.001)}),
        (fail_with, {"on_error": handle_badly}),
        (fail_with, {"on_error": handle_plainly}),
        (snooze_once_with, {}),
        (cancel_with, {}),
        (hang, {"timeout": 0.001}),
        (hang, {"timeout": 0.001, "on_error": retry(attempts=2, backoff=0)}),
    ],
)
@pytest.mark.parametrize("observed", [False, True])
async def test_a_task_that_has_ended_is_gone(
    function: Callable[..., Any], options: dict[str, Any], observed: bool
) -> None:
    class Around(TaskObserver):
        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            return await run()

    argument = Argument()
    gone = weakref.ref(argument)
    subscription = observe(Around()) if observed else None
    async with TaskScheduler(grace_period=60) as scheduler:
        task = scheduler.task(**options).schedule(function, argument)
        await task.wait()
        del task, argument
        assert await is_gone(gone)
    if subscription is not None:
        subscription.close()


async def is_gone(gone: weakref.ref[Argument]) -> bool:
    """Let the event loop, and the thread that may just have told it of its result, forget the step that is over."""
    for _ in range(2000):
        if gone() is None:
            return True
        await anyio.lowlevel.checkpoint()
        # Not a timer of the event loop: a later one would make it forget those that were cancelled.
        threading.Event().wait(0.001)
    return False


@pytest.mark.parametrize("function", [succeed, succeed_plainly, hang])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_cancelled_task_is_gone(function: Callable[..., Any], moment: str) -> None:
    argument = Argument()
    gone = weakref.ref(argument)
    async with TaskScheduler(grace_period=60) as scheduler:
        task = scheduler.schedule(function, argument)
        if moment == "after":
            await task.started.wait()
        task.cancel()
        await task.wait()
        del task, argument
        assert await is_gone(gone)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_task_of_a_batch_is_gone(cancelled: bool) -> None:
    argument = Argument()
    gone = weakref.ref(argument)
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        task = batch.schedule(succeed, argument)
        if cancelled:
            task.cancel()  # the batch is still there, and still closed
        else:
            batch.discard("not wanted")
        del task, argument
        assert await is_gone(gone)
        batch.discard("not wanted")


async def test_a_task_that_waits_in_vain_for_a_place_is_gone_when_cancelled() -> None:
    argument = Argument()
    gone = weakref.ref(argument)
    gate = anyio.Event()
    async with TaskScheduler(max_concurrency=1) as scheduler:
        scheduler.schedule(gate.wait)
        scheduler.schedule(succeed, argument).cancel()
        del argument
        assert await is_gone(gone)
        gate.set()


async def test_awaiting_a_failed_task_keeps_nothing() -> None:
    argument = Argument()
    gone = weakref.ref(argument)
    async with TaskScheduler() as scheduler:
        with pytest.raises(ValueError):  # noqa: PT011  the exception is of no interest here
            await scheduler.schedule(fail_with, argument)
        task = scheduler.schedule(fail_plainly_with, argument)
        await task.wait()
        with suppress(ValueError):
            task.result()
        del task, argument
        assert await is_gone(gone)


async def test_a_task_that_awaits_a_failed_task_keeps_nothing() -> None:
    argument = Argument()
    gone = weakref.ref(argument)

    async def await_it(argument: Argument) -> None:
        await scheduler.schedule(fail_with, argument)

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(await_it, argument)
        await task.wait()
        del task, argument
        assert await is_gone(gone)


async def test_a_follow_up_does_not_keep_the_task_that_scheduled_it() -> None:
    argument = Argument()
    gone = weakref.ref(argument)
    gate = anyio.Event()
    async with TaskScheduler() as scheduler:

        async def parent(argument: Argument) -> None:
            scheduler.task(on_error=retry()).schedule(gate.wait)

        task = scheduler.schedule(parent, argument)
        await task.wait()
        del task, argument
        assert await is_gone(gone)
        gate.set()


async def test_an_abandoned_thread_gives_up_the_arguments_when_it_ends() -> None:
    argument = Argument()
    gone = weakref.ref(argument)
    leave = threading.Event()

    def hang_plainly(argument: Argument) -> None:
        leave.wait()
        raise ValueError

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(hang_plainly, argument)
        await task.started.wait()
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        await task.wait()
        del task, argument
        leave.set()
        assert await is_gone(gone)


async def test_a_closed_scheduler_is_gone() -> None:
    async def run() -> weakref.ref[TaskScheduler]:
        async with TaskScheduler() as scheduler:
            scheduler.schedule(noop)
            scheduler.schedule(fail)
            scheduler.schedule(threading.get_ident)
        return weakref.ref(scheduler)

    gone = await run()
    await anyio.wait_all_tasks_blocked()
    gc.collect()  # a scheduler and its parts know one another; that is a cycle, once for each scheduler
    assert gone() is None
