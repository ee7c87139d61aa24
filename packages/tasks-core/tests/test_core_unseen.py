"""From the end of its function to its terminal state, a task goes unseen past nothing that raises."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partialmethod
from typing import Any, NoReturn
from unittest import mock

import anyio
import anyio.to_thread
import pytest
from core_support import EventLog, messages, noop, states
from tasks_core import (
    Retry,
    Task,
    TaskObserver,
    TaskScheduler,
    TaskState,
    by_exception,
    observe,
    retry,
)
from tasks_core._support.log import logger
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError
from tasks_core.testing import MonotonicClock, override_clock
from tasks_core.types import RunAttempt

pytestmark = pytest.mark.anyio


# ---- exceptions that are not ordinary ----


@dataclass(frozen=True)
class FrozenError(Exception):
    """Refuses every attribute, `__traceback__` included."""

    code: int = 1


class GroupThatCannotBeDerived(ExceptionGroup[Exception]):
    def derive(self, excs: Any) -> NoReturn:
        raise RuntimeError("no derive")


class SilentError(Exception):
    """Is false, and raises when it is shown or asked for its length or its traceback."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def with_traceback(self, tb: Any) -> NoReturn:
        raise RuntimeError("no traceback")


class UndecidedError(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


class HiddenError(Exception):
    """Raises for each attribute that is asked for."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError("no attributes")


class BareError(BaseException):
    pass


def frozen() -> Exception:
    return FrozenError()


ERRORS: list[Callable[[], BaseException]] = [
    frozen,
    lambda: GroupThatCannotBeDerived("both", [ValueError(), ValueError()]),
    SilentError,
    UndecidedError,
    HiddenError,
    BareError,
    SystemExit,
    StopIteration,
    StopAsyncIteration,
]


# ---- steps that raise ----


class BrokenObserver(TaskObserver):
    def task_started(self, task: Task[Any]) -> None:
        raise BareError

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        raise BareError

    def task_finished(self, task: Task[Any]) -> None:
        raise SystemExit


class NamelessObserver(TaskObserver):
    """Its hooks have no `__name__`."""

    def _count(self, what: str, *args: object) -> NoReturn:
        raise OSError("statsd is away")

    task_started = partialmethod(_count, "started")
    task_finished = partialmethod(_count, "finished")


class BrokenClock(MonotonicClock):
    def __init__(self) -> None:
        self.broken = False

    def now(self) -> float:
        if self.broken:
            raise OSError("no time")
        return super().now()


@contextmanager
def handler_that_raises(error: BaseException) -> Iterator[None]:
    class Handler(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise error

    with handled_by(Handler()):
        yield


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger("tasks_core")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def filter_that_raises() -> Iterator[None]:
    def refuse(record: logging.LogRecord) -> bool:
        raise BareError("broken filter")

    logger = logging.getLogger("tasks_core")
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


@contextmanager
def factory_with_the_same_fields() -> Iterator[None]:
    make = logging.getLogRecordFactory()

    def make_with_ids(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.task_id = record.task_name = "of Celery"
        return record

    logging.setLogRecordFactory(make_with_ids)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


def nothing() -> ExitStack:
    return ExitStack()


STEPS = [
    pytest.param(nothing, id="ordinary"),
    pytest.param(lambda: observe(BrokenObserver()), id="observer"),
    pytest.param(lambda: observe(NamelessObserver()), id="nameless observer"),
    pytest.param(lambda: handler_that_raises(OSError("disk full")), id="log handler"),
    pytest.param(lambda: handler_that_raises(BareError()), id="log handler, no Exception"),
    pytest.param(filter_that_raises, id="log filter"),
    pytest.param(factory_with_the_same_fields, id="record factory"),
]


async def raising(make: Callable[[], BaseException]) -> None:
    raise make()


def raising_plainly(make: Callable[[], BaseException]) -> None:
    raise make()


async def handler_that_fails(task: Task[Any], error: Exception) -> None:
    raise FrozenError


async def odd_answer(task: Task[Any], error: Exception) -> Any:
    return UndecidedError()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("make", ERRORS)
@pytest.mark.parametrize("function", [raising, raising_plainly])
async def test_a_task_ends_once_with_one_line_and_gives_its_slot_back(
    make: Callable[[], BaseException],
    step: Callable[[], Any],
    function: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = EventLog()
    with observe(events), anyio.fail_after(10):
        async with TaskScheduler(max_concurrency=1, max_threads=1, shield_timeout=0, grace_period=5) as scheduler:
            with step():
                task = scheduler.task(shield=True, name="charge").schedule(function, make)
                await task.wait()
                assert (await scheduler.schedule(threading.get_ident)) != 0  # the slot and the thread are free
            numbers = scheduler.statistics()
    assert task.state is TaskState.FAILED
    assert (numbers.failed, numbers.succeeded, numbers.running, numbers.pending) == (1, 1, 0, 0)
    assert [what for what, name in events.events if name == "charge"] == ["scheduled", "started 1", "failed"]
    assert scheduler.report is not None
    assert scheduler.report.clean
    failures = [line for line in messages(caplog, logging.ERROR) if line.startswith("Task 'charge'")]
    lost = [line for line in capsys.readouterr().err.splitlines() if "is lost: Task 'charge'" in line]
    assert len(failures or lost) == 1, (failures, lost)
    assert all(" failed in attempt 1" in line for line in failures + lost)


@pytest.mark.parametrize(
    "handler",
    [
        handler_that_fails,
        odd_answer,
        lambda task, error: raising_plainly(SystemExit),
        mock.Mock(side_effect=FrozenError),
        retry(on=OSError),
    ],
)
@pytest.mark.parametrize("make", [frozen, HiddenError, ValueError])
async def test_a_failure_is_logged_whatever_its_error_handler_does(
    make: Callable[[], BaseException], handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(10):
        async with TaskScheduler() as scheduler:
            task = scheduler.task(name="charge", on_error=handler).schedule(raising, make)
            await task.wait()
    assert task.state is TaskState.FAILED
    lines = [line for line in messages(caplog, logging.ERROR) if " failed in attempt 1" in line]
    assert len(lines) == 1, messages(caplog)


async def test_a_frozen_exception_is_retried_and_is_what_the_task_raises() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.task(on_error=retry(attempts=3, backoff=0)).schedule(raising, frozen)
        await task.wait()
        with pytest.raises(FrozenError) as raised:
            task.result()
    assert (task.attempts, raised.value) == (3, task.exception)
    assert raised.traceback[-1].name == "raising"


@pytest.mark.parametrize("function", [raising, raising_plainly])
async def test_a_function_that_raises_stop_iteration_fails_with_just_that(function: Callable[..., Any]) -> None:
    stop = StopIteration("nothing left")
    asked: list[BaseException] = []
    async with TaskScheduler() as scheduler:
        configured = scheduler.task(on_error=lambda task, error: asked.append(error))
        task = configured.schedule(function, lambda: stop)
        await task.wait()
    assert task.exception is stop
    assert asked == [stop]
    with pytest.raises(StopIteration, match="nothing left"):
        task.result()


async def test_a_retry_that_cannot_be_started_fails_the_task() -> None:
    class BadRetry(Retry):
        def __init__(self) -> None:
            object.__setattr__(self, "delay", "soon")  # not checked

    with anyio.fail_after(10):
        async with TaskScheduler(max_concurrency=1) as scheduler:
            task = scheduler.task(on_error=lambda task, error: BadRetry()).schedule(raising, ValueError)
            await task.wait()
            await scheduler.schedule(noop)
    assert task.state in (TaskState.FAILED, TaskState.CANCELLED)


# ---- names ----


class Unnamed:
    """A callable that raises when it is asked for its name, once that has been broken."""

    def __init__(self) -> None:
        self.broken = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("__qualname__", "__name__") and self.broken:
            raise RuntimeError("no name")
        return super().__getattribute__(name)

    async def __call__(self) -> None:
        raise ValueError


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


async def test_a_function_without_a_name_that_is_text_fails_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    named_by_number = mock.AsyncMock(side_effect=ValueError)
    named_by_number.__qualname__ = 7
    named_by_number.__name__ = 8
    unnamed = Unnamed()
    with anyio.fail_after(10):
        async with TaskScheduler() as scheduler:
            tasks = [
                scheduler.task(delay=0.001).schedule(unnamed),
                scheduler.schedule(named_by_number),
                scheduler.task(name=Text("charge")).schedule(raising, ValueError),
                scheduler.task(name=Text("later"), delay=0.001).schedule(raising, ValueError),
            ]
            unnamed.broken = True
            for task in tasks:
                await task.wait()
    assert states(*tasks) == [TaskState.FAILED] * 4
    assert [type(task.name) for task in tasks] == [str] * 4
    assert len(messages(caplog, logging.ERROR)) == 4


# ---- the log ----


async def test_fields_that_the_application_sets_too_cost_no_line(caplog: pytest.LogCaptureFixture) -> None:
    with factory_with_the_same_fields():
        async with TaskScheduler() as scheduler:
            await scheduler.task(name="charge").schedule(raising, ValueError).wait()
    assert [line.partition(" #")[0] for line in messages(caplog, logging.ERROR)] == ["Task 'charge'"]


@pytest.mark.parametrize("error", [BareError("no handler"), KeyError("no handler")])
async def test_a_line_that_logging_loses_is_complete_on_standard_error(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with handler_that_raises(error):
        async with TaskScheduler() as scheduler:
            await scheduler.task(name="charge").schedule(raising, lambda: ValueError("declined")).wait()
    err = capsys.readouterr().err
    assert "this line is lost: Task 'charge' #" in err
    assert "failed in attempt 1" in err
    assert "ValueError: declined" in err
    assert "no handler" in err


def test_a_lost_line_whose_arguments_do_not_fit_is_told_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    with handler_that_raises(KeyError("no handler")):
        logger.error("%d tasks", "no number")
    assert "this line is lost: %d tasks\n" in capsys.readouterr().err


async def test_a_disabled_logger_is_noticed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """As logging.config.fileConfig() in the env.py of alembic disables it, when migrations run at startup."""
    logger = logging.getLogger("tasks_core")
    async with TaskScheduler() as scheduler:
        logger.disabled = True
        try:
            for _ in range(3):
                await scheduler.schedule(raising, ValueError).wait()
        finally:
            logger.disabled = False
    said = [line for line in capsys.readouterr().err.splitlines() if "'tasks_core' is disabled" in line]
    assert len(said) == 1
    assert "disable_existing_loggers=False" in said[0]


async def test_a_logger_that_has_been_enabled_again_is_noticed_again(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("tasks_core")
    async with TaskScheduler() as scheduler:
        for _ in range(2):
            logger.disabled = True
            await scheduler.schedule(raising, ValueError).wait()
            logger.disabled = False
            await scheduler.schedule(raising, ValueError).wait()
    assert capsys.readouterr().err.count("'tasks_core' is disabled") == 2


# ---- observers ----


async def test_an_observer_whose_hook_is_a_coroutine_function_is_refused() -> None:
    class Waits(TaskObserver):
        async def task_finished(self, task: Task[Any]) -> None:  # type: ignore[override]
            pass

    with pytest.raises(
        InvalidConfigError, match=r"Waits\(\)\): task_finished is a coroutine function.*without `async`"
    ):
        observe(Waits())


class Outbox(list[str]):
    """A stub that is false while it is empty."""

    def __call__(self, to: str) -> None:
        self.append(to)


async def test_a_function_that_an_observer_puts_in_place_may_be_false() -> None:
    outbox, sent = Outbox(), list[str]()

    class Stub(TaskObserver):
        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            return await run(outbox)

    class Inner(TaskObserver):
        async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
            return await run()

    with observe(Stub()), observe(Inner()):
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(sent.append, "ann")
    assert (outbox, sent) == (["ann"], [])


# ---- results ----


class Query:
    """As an ORM returns it: does its work when it is awaited."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def __await__(self) -> Any:
        yield from anyio.lowlevel.checkpoint().__await__()
        self.done.append("deleted")
        return 3


async def test_an_awaitable_that_a_plain_callable_returns_is_awaited() -> None:
    done: list[str] = []
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(Query, done)
        await task.wait()
    assert (done, task.state) == (["deleted"], TaskState.SUCCEEDED)
    result: object = task.result()
    assert result == 3


def behind_a_decorator(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: make()


def rows() -> Iterator[int]:
    yield 1


async def async_rows() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "make, kind",
    [
        (rows, "a generator"),
        (async_rows, "a generator"),
        (contextmanager(rows), "a context manager"),
        (asynccontextmanager(async_rows), "a context manager"),
    ],
)
async def test_a_result_that_has_run_nothing_is_an_error(
    make: Callable[[], Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(behind_a_decorator(make))
        await task.wait()
    assert task.state is TaskState.FAILED
    assert isinstance(task.exception, InvalidTaskError)
    assert f"returned {kind}, so that none of its body has run" in str(task.exception)
    assert len(messages(caplog, logging.ERROR)) == 1


# ---- clocks ----


@pytest.mark.parametrize("shield", [False, True])
async def test_a_shutdown_ends_by_real_time_when_the_clock_raises(
    shield: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clock = BrokenClock()
    with anyio.fail_after(20):
        async with TaskScheduler(clock=clock, grace_period=0.05, shield_timeout=0.05) as scheduler:
            task = scheduler.task(shield=shield).schedule(anyio.sleep_forever)
            await task.started.wait()
            clock.broken = True
    assert task.state is TaskState.CANCELLED
    assert task.age >= 0
    assert len([line for line in messages(caplog, logging.ERROR) if "clock BrokenClock raised OSError" in line]) == 1


class EarlyClock(MonotonicClock):
    async def sleep_until(self, deadline: float) -> None:
        await anyio.lowlevel.checkpoint()


class BackwardClock(MonotonicClock):
    def __init__(self) -> None:
        self.readings = 0

    def now(self) -> float:
        self.readings += 1
        return -1000.0 * self.readings


@pytest.mark.parametrize("clock", [EarlyClock(), BackwardClock()])
async def test_a_shutdown_ends_by_real_time_when_the_clock_is_wrong(
    clock: MonotonicClock, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(20):
        async with TaskScheduler(clock=clock, grace_period=0.1, shield_timeout=0.1) as scheduler:
            task = scheduler.task(shield=True).schedule(anyio.sleep_forever)
            await task.started.wait()
    assert task.state is TaskState.CANCELLED
    assert len(messages(caplog)) <= 4, messages(caplog)


@pytest.mark.parametrize("clock", [EarlyClock(), BackwardClock()])
async def test_a_timeout_is_not_early_because_the_clock_is(clock: MonotonicClock) -> None:
    async with TaskScheduler() as scheduler:
        with override_clock(clock):
            task = scheduler.task(timeout=30).schedule(anyio.sleep, 0.02)
            await task.wait()
    assert task.state is TaskState.SUCCEEDED


async def test_frozen_time_freezes_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As freezegun freezes: `time.monotonic` is replaced, in every module."""
    clock = MonotonicClock()
    with monkeypatch.context() as frozen_time:
        if _on_asyncio():  # `freeze_time(..., real_asyncio=True)`
            frozen_time.setattr(asyncio.get_running_loop(), "time", time.monotonic)
        frozen_time.setattr("time.monotonic", lambda: 1e9)
        before = clock.now()
        with anyio.fail_after(10):
            await clock.sleep_until(before + 0.01)
        assert before + 0.01 <= clock.now() < 1e9


# ---- timeouts ----


async def test_a_timeout_cancels_once_and_lets_the_clean_up_finish() -> None:
    cleaned_up: list[str] = []

    async def clean_up() -> None:
        try:
            await anyio.sleep(30)
        finally:
            await slow_clean_up(cleaned_up)

    async with TaskScheduler() as scheduler:
        task = scheduler.task(timeout=0.01).schedule(clean_up)
        await task.wait()
    assert isinstance(task.exception, TimeoutError)
    assert cleaned_up == (["cleaned up"] if _on_asyncio() else [])


async def slow_clean_up(done: list[str]) -> None:
    await anyio.sleep(0.02)
    done.append("cleaned up")


def _on_asyncio() -> bool:
    return anyio.get_cancelled_exc_class() is asyncio.CancelledError


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_coroutine_that_goes_on_after_its_timeout_is_cancelled_once() -> None:
    cancelled = 0

    async def go_on() -> str:
        nonlocal cancelled
        for _ in range(5):
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                cancelled += 1
        return "done"

    async with TaskScheduler() as scheduler:
        task = scheduler.task(timeout=0.001).schedule(go_on)
        assert await task == "done"
    assert cancelled == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_is_cancelled_and_times_out_is_cancelled() -> None:
    async def clean_up() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.05)

    async with TaskScheduler() as scheduler:
        task = scheduler.task(timeout=0.02).schedule(clean_up)
        await task.started.wait()
        await asyncio.sleep(0.03)  # the timeout has begun, and the clean-up runs
        task.cancel()
        await task.wait()
    assert task.state is TaskState.CANCELLED


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_after_a_timeout_nothing_of_the_cancellation_is_left() -> None:
    async def handle(task: Task[Any], error: Exception) -> bool:
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.001))
        return isinstance(error, TimeoutError)

    async with TaskScheduler() as scheduler:
        task = scheduler.task(timeout=0.001, on_error=handle).schedule(asyncio.sleep, 30)
        await task.wait()
    assert isinstance(task.exception, TimeoutError)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_timeout_holds_although_every_task_of_the_loop_was_cancelled() -> None:
    async def ignore_one() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(30)

    before = asyncio.all_tasks()
    with anyio.fail_after(10):
        async with TaskScheduler() as scheduler:
            task = scheduler.task(timeout=0.05).schedule(ignore_one)
            await task.started.wait()
            await anyio.wait_all_tasks_blocked()
            for other in asyncio.all_tasks() - before:
                other.cancel()
            await task.wait()
    assert task.state is TaskState.CANCELLED  # by the cancellation of all, which the second one has made it obey


# ---- what holds threads and slots ----


async def test_functions_that_hold_all_threads_after_their_timeout_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = threading.Event()
    try:
        async with TaskScheduler(max_threads=2, grace_period=0, shield_timeout=0) as scheduler:
            hanging = [scheduler.task(timeout=0.01, name=f"hang{n}").schedule(go_on.wait) for n in range(2)]
            for task in hanging:
                await task.wait()
            lines = [line for line in messages(caplog, logging.WARNING) if "max_threads=2" in line]
            go_on.set()
            assert await scheduler.schedule(threading.get_ident)
    finally:
        go_on.set()
    assert len(lines) == 1
    assert "'hang0'" in lines[0]
    assert "'hang1'" in lines[0]


async def test_an_error_handler_has_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    class Fast(MonotonicClock):
        """An hour passes in a moment."""

        def now(self) -> float:
            return super().now() * 36_000

        async def sleep_until(self, deadline: float) -> None:
            while self.now() < deadline:
                await anyio.sleep(0.001)

    async def hang(task: Task[Any], error: Exception) -> None:
        await anyio.sleep_forever()

    with override_clock(Fast()), anyio.fail_after(10):
        async with TaskScheduler(max_concurrency=1) as scheduler:
            task = scheduler.task(on_error=hang).schedule(raising, ValueError)
            await task.wait()
            await scheduler.schedule(noop)
    assert task.state is TaskState.FAILED
    handler_line, task_line = messages(caplog, logging.ERROR)
    assert handler_line.startswith("The error handler of Task 'raising'")
    assert task_line.startswith("Task 'raising'")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("to_thread", [anyio.to_thread.run_sync, asyncio.to_thread])
@pytest.mark.parametrize("by", ["cancel", "timeout", "shutdown"])
async def test_a_thread_that_a_cancelled_coroutine_leaves_running_is_named(
    to_thread: Any, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, inside = threading.Event(), threading.Event()

    def block() -> None:
        inside.set()
        go_on.wait(20)

    async def work() -> None:
        await to_thread(block)

    try:
        async with TaskScheduler(grace_period=0, shield_timeout=0) as scheduler:
            timeout = 0.05 if by == "timeout" else None
            task = scheduler.task(timeout=timeout).schedule(work)
            while not inside.is_set():
                await anyio.sleep(0.001)
            if by == "cancel":
                task.cancel()
            if by != "shutdown":
                await task.wait()
        lines = messages(caplog, logging.WARNING)
        assert len([line for line in lines if "while a thread runs" in line and "block for it" in line]) == 1, lines
        assert scheduler.report is not None
        assert [lost.name for lost in scheduler.report.abandoned] == [task.name]
    finally:
        go_on.set()


# ---- groups ----


class Both(ExceptionGroup[Exception]):
    pass


@pytest.mark.parametrize(
    "group, attempts",
    [
        (ExceptionGroup("", [ConnectionResetError()]), 3),
        (ExceptionGroup("", [ConnectionResetError(), ExceptionGroup("", [TimeoutError()])]), 3),
        (ExceptionGroup("", [ConnectionResetError(), ValueError()]), 1),
    ],
)
async def test_retry_looks_into_groups(group: Exception, attempts: int) -> None:
    async with TaskScheduler() as scheduler:
        handler = retry(attempts=3, on=(ConnectionError, TimeoutError), backoff=0)
        task = scheduler.task(on_error=handler).schedule(raising, lambda: group)
        await task.wait()
    assert (task.attempts, task.exception) == (attempts, group)


async def test_by_exception_takes_frozen_exceptions() -> None:
    asked: list[Exception] = []
    async with TaskScheduler() as scheduler:
        handler = by_exception({FrozenError: lambda task, error: asked.append(error)})
        await scheduler.task(on_error=handler).schedule(raising, frozen).wait()
    assert asked == [FrozenError()]


# ---- waits that would never end ----


async def test_a_task_that_awaits_itself_is_told_so() -> None:
    box: list[Task[Any]] = []

    async def wait_for_itself() -> None:
        await box[0]

    with anyio.fail_after(10):
        async with TaskScheduler() as scheduler:
            box.append(scheduler.schedule(wait_for_itself))
            await box[0].wait()
    assert isinstance(box[0].exception, RuntimeError)
    assert "waits for itself" in str(box[0].exception)


async def test_to_await_a_task_before_the_scheduler_is_resumed_is_refused() -> None:
    scheduler = TaskScheduler()
    await scheduler.start(paused=True)
    task = scheduler.schedule(noop)
    with pytest.raises(RuntimeError, match=r"would never end. Call the function itself: await noop\(\.\.\.\)"):
        await task
    scheduler.resume()
    await task
    await scheduler.aclose()


# ---- small ----


async def test_a_callable_that_answers_anything_when_asked_for_its_signature_is_called() -> None:
    class Proxy:
        def __init__(self) -> None:
            self.calls: list[tuple[object, ...]] = []

        def __getattr__(self, name: str) -> Any:
            return Proxy()

        def __call__(self, *args: object) -> str:
            self.calls.append(args)
            return "called"

    proxy = Proxy()
    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(proxy, 1) == "called"
    assert proxy.calls == [(1,)]


@pytest.mark.parametrize("option", ["delay", "timeout"])
@pytest.mark.parametrize("digits", [400, 10_000])
def test_a_number_beyond_all_floats_is_refused_like_any_other(option: str, digits: int) -> None:
    options: dict[str, Any] = {option: 10**digits}
    with pytest.raises(InvalidConfigError, match=option):
        TaskScheduler().task(**options)


async def test_a_clock_may_be_false() -> None:
    class FalseClock(MonotonicClock):
        def __bool__(self) -> bool:
            return False

        def now(self) -> float:
            return 5.0

    async with TaskScheduler(clock=FalseClock(), grace_period=0) as scheduler:
        assert scheduler.schedule(noop).scheduled_at == 5.0
