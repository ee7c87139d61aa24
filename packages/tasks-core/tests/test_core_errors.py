"""Failures: whom they reach, what is logged, and what handlers may answer."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from core_support import EventLog, fail, messages, noop, states
from tasks_core import (
    Retry,
    Task,
    TaskConfig,
    TaskErrorHandler,
    TaskScheduler,
    TaskState,
    by_exception,
    chain,
    observe,
    retry,
)
from tasks_testing import VirtualClock

pytestmark = pytest.mark.anyio


def fail_plainly() -> None:
    raise ValueError("failed on purpose")


async def test_a_failing_task_touches_nobody(caplog: pytest.LogCaptureFixture) -> None:
    gate = anyio.Event()
    async with TaskScheduler() as scheduler:
        bystander = scheduler.schedule(gate.wait)
        failing = [scheduler.schedule(func) for func in (fail, fail_plainly)]
        for task in failing:
            await task.wait()
        assert states(bystander, *failing) == [TaskState.RUNNING, TaskState.FAILED, TaskState.FAILED]
        assert await scheduler.schedule(threading.get_ident)
        gate.set()
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.exc_info[1] for r in errors if r.exc_info] == [task.exception for task in failing]


async def raise_it(error: BaseException) -> None:
    raise error


def raise_it_plainly(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("function", [raise_it, raise_it_plainly])
@pytest.mark.parametrize("error", [SystemExit(3), BaseException("base"), BaseExceptionGroup("g", [SystemExit(3)])])
async def test_an_exit_raised_by_a_task_is_its_failure(
    function: Callable[[BaseException], Any], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Exception] = []
    async with TaskScheduler(config=TaskConfig(on_error=lambda task, error: asked.append(error))) as scheduler:
        task = scheduler.schedule(function, error)
        await task.wait()
        assert (task.state, task.exception) == (TaskState.FAILED, error)
        await scheduler.schedule(noop)
    assert asked == [], "handlers are for exceptions that are errors"
    assert len(messages(caplog, logging.ERROR)) == 1


async def test_generator_exit_ends_one_task_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(raise_it, GeneratorExit())
        await task.wait()
        assert task.state is TaskState.CANCELLED
        await scheduler.schedule(noop)
    assert len(messages(caplog, logging.WARNING)) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_keyboard_interrupt_is_for_the_process(backend: str) -> None:
    task: list[Task[Any]] = []

    async def main() -> None:
        async with TaskScheduler() as scheduler:
            task.append(scheduler.schedule(raise_it, KeyboardInterrupt()))
            await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
    assert task[0].state is TaskState.FAILED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- cancellations of its own making ----


async def test_a_task_that_awaits_what_was_cancelled_is_cancelled_and_says_so(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def await_something_cancelled() -> None:
        if anyio_backend_name == "asyncio":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        else:
            import trio

            raise trio.Cancelled._create(source="explicit")

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(await_something_cancelled)
        await task.wait()
    reason = "what it waited for was cancelled, or it was cancelled through the event loop"
    assert (task.state, task.reason) == (TaskState.CANCELLED, reason)
    (line,) = messages(caplog, logging.WARNING)
    assert line.startswith("Task 'test_a_task_that_awaits_what_was_cancelled_is_cancelled_and_says_so.await_something")
    assert line.endswith(f"was cancelled: {reason}")


async def test_a_scope_inside_of_a_task_is_its_own_business() -> None:
    async def time_out_and_go_on() -> str:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        return "went on"

    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(time_out_and_go_on) == "went on"


async def test_a_group_of_a_failure_and_a_cancellation_is_the_failure() -> None:
    async def fail_on_cancel() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("in the child")

    async def two_children() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(fail_on_cancel)
            await anyio.sleep_forever()

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(two_children)
        await task.started.wait()
        await anyio.lowlevel.checkpoint()
        task.cancel()
        await task.wait()
    assert task.state is TaskState.FAILED
    assert isinstance(task.exception, ExceptionGroup)
    assert [str(error) for error in task.exception.exceptions] == ["in the child"]


async def test_a_group_of_cancellations_only_is_a_cancellation() -> None:
    async def raise_group() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancelled:
            raise BaseExceptionGroup("all cancelled", [cancelled]) from None

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(raise_group)
        await task.started.wait()
        task.cancel()
        await task.wait()
    assert task.state is TaskState.CANCELLED


# ---- handlers ----


async def handle_async(task: Task[Any], error: Exception) -> object:
    await anyio.lowlevel.checkpoint()
    return answers.pop(0)


def handle_plainly(task: Task[Any], error: Exception) -> object:
    return answers.pop(0)


def handle_with_coroutine(task: Task[Any], error: Exception) -> object:
    return handle_async(task, error)


class HandlerObject:
    async def __call__(self, task: Task[Any], error: Exception) -> object:
        return answers.pop(0)


answers: list[object] = []
handlers: list[TaskErrorHandler] = [handle_async, handle_plainly, handle_with_coroutine, HandlerObject()]


@pytest.mark.parametrize("handler", handlers)
@pytest.mark.parametrize("answer, logged", [(None, True), (False, True), (1, True), ("done", True), (True, False)])
async def test_what_a_handler_answers_decides_whether_the_failure_is_logged(
    handler: TaskErrorHandler, answer: object, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answers[:] = [answer]
    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=handler).schedule(fail)
        await task.wait()
    assert (task.state, task.attempts) == (TaskState.FAILED, 1)
    assert bool(messages(caplog, logging.ERROR)) is logged


@pytest.mark.parametrize("handler", handlers)
async def test_a_handler_can_have_the_task_run_again(handler: TaskErrorHandler) -> None:
    answers[:] = [Retry(), Retry(delay=0.001), None]
    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=handler).schedule(fail)
        await task.wait()
    assert (task.state, task.attempts) == (TaskState.FAILED, 3)


async def test_a_handler_is_given_the_task_and_the_exception() -> None:
    given: list[tuple[Task[Any], Exception, TaskState]] = []
    async with TaskScheduler(
        config=TaskConfig(on_error=lambda task, error: given.append((task, error, task.state)))
    ) as scheduler:
        task = scheduler.schedule(fail)
        await task.wait()
    assert given == [(task, task.exception, TaskState.RUNNING)]


@pytest.mark.parametrize("error", [RuntimeError("handler failed"), SystemExit(1)])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_handler_that_raises_harms_nobody(
    error: BaseException, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def raise_async(task: Task[Any], exception: Exception) -> None:
        raise error

    def raise_plainly(task: Task[Any], exception: Exception) -> None:
        raise error

    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=raise_plainly if plain else raise_async).schedule(fail)
        await task.wait()
        await scheduler.schedule(noop)
    assert task.state is TaskState.FAILED
    assert isinstance(task.exception, ValueError)
    logged = [r.exc_info[1] for r in caplog.records if r.levelno == logging.ERROR and r.exc_info]
    assert logged == [error, task.exception]


async def test_a_handler_that_takes_other_arguments_fails_in_pythons_words(caplog: pytest.LogCaptureFixture) -> None:
    def takes_one(task: Task[Any]) -> None: ...

    async with TaskScheduler() as scheduler:
        handler: Any = takes_one
        await scheduler.task(on_error=handler).schedule(fail).wait()
    (record, _) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], TypeError)


async def test_a_task_cancelled_while_its_handler_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked = anyio.Event()

    async def hang(task: Task[Any], error: Exception) -> None:
        asked.set()
        await anyio.sleep_forever()

    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=hang).schedule(fail)
        await asked.wait()
        task.cancel()
        await task.wait()
    assert task.state is TaskState.CANCELLED
    (record,) = [r for r in caplog.records if "was cancelled" in r.getMessage()]
    assert record.exc_info is not None
    assert record.exc_info[1] is task.exception, "the failure is in the log although the handler did not end"


async def test_a_handler_cannot_be_given_a_task_that_failed_while_being_cancelled() -> None:
    asked: list[Task[Any]] = []

    async def clean_up_badly() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=lambda task, error: asked.append(task)).schedule(clean_up_badly)
        await task.started.wait()
        task.cancel()
        await task.wait()
    assert task.state is TaskState.FAILED
    assert asked == []


async def test_a_handler_that_asks_for_another_attempt_of_a_cancelled_task_gets_none() -> None:
    asked = anyio.Event()

    async def insist(task: Task[Any], error: Exception) -> Retry:
        asked.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return Retry()
        raise AssertionError

    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=insist).schedule(fail)
        await asked.wait()
        task.cancel()
        await task.wait()
    assert (task.state, task.attempts) == (TaskState.FAILED, 1)


# ---- retry, chain, by_exception ----


async def attempts_of(handler: TaskErrorHandler, *errors: Exception | None) -> tuple[int, list[float], TaskState]:
    """Run a task that raises the given errors one after the other; return attempts, pauses, and the end."""
    left = list(errors)
    pauses: list[float] = []

    class Pauses(EventLog):
        def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
            pauses.append(delay)

    async def run() -> None:
        error = left.pop(0)
        if error is not None:
            raise error

    with observe(Pauses()):
        async with TaskScheduler(clock=VirtualClock()) as scheduler:
            task = scheduler.task(on_error=handler).schedule(run)
            await task.wait()
            return task.attempts, pauses, task.state


E = ValueError("again")


@pytest.mark.parametrize(
    "handler, errors, outcome",
    [
        (retry(), [E, E, E], (3, [1.0, 2.0], TaskState.FAILED)),
        (retry(), [E, None], (2, [1.0], TaskState.SUCCEEDED)),
        (retry(attempts=1), [E], (1, [], TaskState.FAILED)),
        (retry(attempts=6, backoff=3, max_delay=10), [E] * 6, (6, [3, 6, 10, 10, 10], TaskState.FAILED)),
        (retry(attempts=4, backoff=0), [E] * 4, (4, [0, 0, 0], TaskState.FAILED)),
        (retry(attempts=3, backoff=lambda n: n * 7.0), [E] * 3, (3, [7, 14], TaskState.FAILED)),
        (retry(attempts=3, backoff=lambda n: 1e9), [E] * 3, (3, [1e9, 1e9], TaskState.FAILED)),
        (retry(attempts=3, backoff=lambda n: 1e9, max_delay=60), [E] * 3, (3, [60, 60], TaskState.FAILED)),
        (retry(on=OSError), [E], (1, [], TaskState.FAILED)),
        (retry(on=(OSError, ValueError)), [E, None], (2, [1.0], TaskState.SUCCEEDED)),
        (chain(retry(on=OSError), retry(backoff=5)), [OSError(), E, None], (3, [1.0, 10.0], TaskState.SUCCEEDED)),
        (chain(retry(attempts=2), retry(attempts=3, backoff=9)), [E, E, E], (3, [1.0, 18.0], TaskState.FAILED)),
        (chain(lambda t, e: None, retry()), [E, None], (2, [1.0], TaskState.SUCCEEDED)),
        (chain(lambda t, e: True, retry()), [E], (1, [], TaskState.FAILED)),
        (chain(lambda t, e: False, lambda t, e: None), [E], (1, [], TaskState.FAILED)),
        (by_exception({OSError: retry()}), [OSError(), E], (2, [1.0], TaskState.FAILED)),
        (by_exception({OSError: retry()}), [ConnectionError(), None], (2, [1.0], TaskState.SUCCEEDED)),
        (
            by_exception({OSError: retry(), ConnectionError: retry(backoff=9)}),
            [ConnectionError(), OSError(), None],
            (3, [9.0, 2.0], TaskState.SUCCEEDED),
        ),
        (by_exception({OSError: retry()}, otherwise=retry(backoff=4)), [E, None], (2, [4.0], TaskState.SUCCEEDED)),
    ],
)
async def test_handlers_that_run_a_task_again(
    handler: TaskErrorHandler, errors: list[Exception | None], outcome: tuple[int, list[float], TaskState]
) -> None:
    assert await attempts_of(handler, *errors) == outcome


async def test_then_counts_also_when_retry_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    reported: list[Exception] = []

    def report(task: Task[Any], error: Exception) -> bool:
        reported.append(error)
        return True

    assert await attempts_of(chain(retry(attempts=2), report), E, E) == (2, [1.0], TaskState.FAILED)
    assert reported == [E]
    assert messages(caplog, logging.ERROR) == []


async def test_jitter_takes_away_up_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    assert await attempts_of(retry(backoff=8, jitter=0.5), E, None) == (2, [6.0], TaskState.SUCCEEDED)
    assert await attempts_of(retry(backoff=8, jitter=1), E, None) == (2, [4.0], TaskState.SUCCEEDED)


async def test_a_thousand_attempts_need_no_stack_and_no_time() -> None:
    assert await attempts_of(retry(attempts=1500, backoff=2), *[E] * 1499, None) == (
        1500,
        [2, 4, 8, 16, 32, *[60] * 1494],
        TaskState.SUCCEEDED,
    )


@pytest.mark.parametrize("plain", [False, True])
async def test_an_exception_object_that_is_raised_again_has_the_traceback_of_one_attempt(plain: bool) -> None:
    """Python adds the frames of each `raise`, so that the traceback would grow, and take longer to log each time."""
    again = ValueError("again")
    lengths: list[int] = []

    async def fail() -> None:
        raise again

    def fail_plainly() -> None:
        raise again

    async def count(task: Task[Any], error: Exception) -> Retry | None:
        lengths.append(len(traceback.extract_tb(error.__traceback__)))
        return Retry(0) if task.attempts < 5 else None

    async with TaskScheduler() as scheduler:
        await scheduler.task(on_error=count).schedule(fail_plainly if plain else fail).wait()
    assert lengths == lengths[:1] * 5


async def test_a_bad_answer_of_a_backoff_function_is_a_handler_that_raised(caplog: pytest.LogCaptureFixture) -> None:
    assert await attempts_of(retry(backoff=lambda n: -1.0), E) == (1, [], TaskState.FAILED)
    assert len(messages(caplog, logging.ERROR)) == 2


async def test_every_attempt_that_is_followed_by_another_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    await attempts_of(retry(attempts=2), E, None)
    (line,) = messages(caplog, logging.WARNING)
    assert line.endswith("failed in attempt 1 (ValueError: again) and runs again in 1 s")


async def test_the_first_and_every_tenth_failure_that_is_tried_again_have_their_traceback_at_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "tasks_core")
    errors = [ValueError(f"the answer is {number}\nsecond line") for number in range(1, 21)]
    await attempts_of(retry(attempts=21, backoff=0), *errors, None)
    lines = [record for record in caplog.records if "runs again" in record.getMessage()]
    assert [line.levelno for line in lines] == [logging.WARNING] * 20
    assert [f"(ValueError: the answer is {n})" in line.getMessage() for n, line in enumerate(lines, 1)] == [True] * 20
    assert [n for n, line in enumerate(lines, 1) if line.exc_info] == [1, 10, 20]
    details = [record for record in caplog.records if record.levelno == logging.DEBUG and record.exc_info]
    assert [str(record.exc_info[1])[:16] for record in details if record.exc_info] == [
        f"the answer is {number}\n"[:16] for number in range(1, 21) if number not in (1, 10, 20)
    ]
    assert details[0].getMessage().startswith("The traceback of attempt 2 of task 'attempts_of.run'")
    assert details[0].__dict__["task_attempt"] == 2


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error, text",
    [
        pytest.param(UnprintableError(), "(UnprintableError)", id="__str__ raises"),
        pytest.param(ValueError("x" * 1000), f"(ValueError: {'x' * 200}...)", id="long"),
    ],
)
async def test_the_message_of_a_failure_is_short_and_harms_nothing(
    error: Exception, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await attempts_of(retry(attempts=2), error, None) == (2, [1.0], TaskState.SUCCEEDED)
    (line,) = messages(caplog, logging.WARNING)
    assert text in line


async def test_an_observer_can_cancel_a_task_that_is_about_to_run_again() -> None:
    class Canceller(EventLog):
        def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
            task.cancel()

    async with TaskScheduler(max_concurrency=1) as scheduler:
        with observe(Canceller()):
            task = scheduler.task(on_error=retry(backoff=0)).schedule(fail)
            await task.wait()
        assert (task.state, task.attempts) == (TaskState.CANCELLED, 1)
        await scheduler.schedule(noop)  # the place is free
