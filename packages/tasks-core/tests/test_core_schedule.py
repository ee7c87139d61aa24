"""What can be scheduled, from where, and how it is called."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import anyio
import anyio.to_thread
import pytest
from core_support import in_thread, noop
from tasks_core import SchedulerClosedError, Task, TaskPhase, TaskScheduler, TasksError, TaskState, current_task, retry
from tasks_core.exceptions import InvalidTaskError, SchedulerNotStartedError

pytestmark = pytest.mark.anyio

LINES = Path(__file__).read_text().splitlines()

variable: ContextVar[str] = ContextVar("variable", default="unset")


async def add(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


def add_plainly(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


def add_later(a: int) -> Awaitable[int]:
    return add(a, 1)


class Adder:
    def __init__(self, a: int = 0) -> None:
        self.a = a

    async def method(self, b: int) -> int:
        return self.a + b

    def plain_method(self, b: int) -> int:
        return self.a + b

    @classmethod
    async def class_method(cls, b: int) -> int:
        return b

    @staticmethod
    def static_method(b: int) -> int:
        return b


class AsyncCallable:
    async def __call__(self, b: int) -> int:
        return b


class PlainCallable:
    def __call__(self, b: int) -> int:
        return b


def supplying(func: Callable[[str, int], Awaitable[int]]) -> Callable[[int], Awaitable[int]]:
    """Pass the first argument; the signature that `inspect` finds behind `__wrapped__` still has it."""

    @functools.wraps(func)
    def supply(*args: Any) -> Awaitable[int]:
        return func("connection", *args)

    return supply


@supplying
async def with_connection(connection: str, number: int) -> int:
    assert connection == "connection"
    return number


@pytest.mark.parametrize(
    "function, args, kwargs, result",
    [
        (add, (1, 2), {}, 3),
        (add, (1,), {"b": 2, "c": 3}, 6),
        (add_plainly, (1, 2), {"c": 3}, 6),
        (add_later, (1,), {}, 2),
        (lambda a: a, (5,), {}, 5),
        (functools.partial(add, 1), (), {"c": 4}, 5),
        (functools.partial(functools.partial(add_plainly, 1), b=2), (), {}, 3),
        (Adder(1).method, (2,), {}, 3),
        (Adder(1).plain_method, (2,), {}, 3),
        (Adder.class_method, (2,), {}, 2),
        (Adder.static_method, (2,), {}, 2),
        (AsyncCallable(), (2,), {}, 2),
        (functools.partial(AsyncCallable(), 2), (), {}, 2),
        (PlainCallable(), (2,), {}, 2),
        (max, (2, 3), {}, 3),
        (int, ("7",), {}, 7),
        (dict.get, ({"a": 1}, "a"), {}, 1),
        (with_connection, (3,), {}, 3),
        (Mock(return_value=4), (1,), {}, 4),
        (AsyncMock(return_value=4), (1,), {}, 4),
    ],
)
async def test_every_kind_of_callable_runs(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(function, *args, **kwargs) == result


async def test_a_class_is_called_in_a_thread() -> None:
    async with TaskScheduler() as scheduler:
        assert isinstance(await scheduler.schedule(Adder, 1), Adder)


async def test_coroutine_functions_run_on_the_loop_and_plain_ones_in_threads() -> None:
    here = threading.get_ident()

    async def where_async() -> int:
        return threading.get_ident()

    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(where_async) == here
        assert await scheduler.schedule(threading.get_ident) != here


async def test_a_plain_function_that_returns_a_coroutine_has_it_awaited_on_the_loop() -> None:
    here = threading.get_ident()

    async def on_loop() -> int:
        return threading.get_ident()

    async with TaskScheduler() as scheduler:
        assert await scheduler.schedule(lambda: on_loop()) == here


# ---- from where ----


async def test_the_call_returns_before_the_function_starts() -> None:
    ran: list[int] = []

    async def run() -> None:
        ran.append(1)

    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(run)
        assert (task.state, ran) == (TaskState.PENDING, [])
        await task
    assert ran == [1]


async def test_tasks_start_in_the_order_of_scheduling() -> None:
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    # One at a time: of those that start in the same turn of the loop, trio takes any first.
    async with TaskScheduler(max_concurrency=1) as scheduler:
        for number in range(20):
            scheduler.schedule(note, number)
    assert order == list(range(20))


async def test_scheduling_from_a_worker_thread_of_anyio() -> None:
    async with TaskScheduler() as scheduler:
        task = await anyio.to_thread.run_sync(lambda: scheduler.schedule(add, 1, 2))
        assert await task == 3


async def test_scheduling_from_a_plain_thread() -> None:
    async with TaskScheduler() as scheduler:
        task: Task[int] = in_thread(lambda: scheduler.schedule(add, 1, 2))
        assert await task == 3


async def test_many_threads_schedule_at_once_and_every_task_runs() -> None:
    ran: list[int] = []

    async def note(number: int) -> None:
        ran.append(number)

    async with TaskScheduler() as scheduler:

        def schedule_many(start: int) -> None:
            for number in range(start, start + 50):
                scheduler.schedule(note, number)

        async with anyio.create_task_group() as group:
            for start in range(0, 400, 50):
                group.start_soon(anyio.to_thread.run_sync, schedule_many, start)
    assert sorted(ran) == list(range(400))
    assert scheduler.statistics().succeeded == 400


async def test_scheduling_from_inside_tasks_of_both_kinds() -> None:
    async with TaskScheduler() as scheduler:

        async def parent() -> Task[int]:
            return scheduler.schedule(add, 1)

        def plain_parent() -> Task[int]:
            return scheduler.schedule(add, 2)

        assert await (await scheduler.schedule(parent)) == 1
        child = await scheduler.schedule(plain_parent)
        assert isinstance(child, Task)  # an awaitable is a result like any other, only a coroutine is run
        assert await child == 2


# ---- context variables ----


def plainly_get() -> str:
    return variable.get()


async def get() -> str:
    return variable.get()


@pytest.mark.parametrize("function", [get, plainly_get])
@pytest.mark.parametrize("way", ["loop", "thread", "worker", "batch", "delayed", "retried"])
async def test_context_variables_are_those_of_the_call(function: Callable[[], Any], way: str) -> None:
    attempts: list[str] = []

    def twice() -> str:
        attempts.append(variable.get())
        if len(attempts) == 1:
            variable.set("spoilt by the first attempt")
            raise ValueError
        return attempts[1]

    async with TaskScheduler() as scheduler:

        def call(target: Any = scheduler, function: Callable[[], Any] = function) -> Task[Any]:
            token = variable.set("as of the call")
            try:
                return target.schedule(function)  # type: ignore[no-any-return]  # any of the ways
            finally:
                variable.reset(token)

        if way == "loop":
            task = call()
        elif way == "thread":
            task = in_thread(call)
        elif way == "worker":
            task = await anyio.to_thread.run_sync(call)
        elif way == "batch":
            batch = TaskPhase(scheduler, "later")
            task = call(batch)
            in_thread(batch.open)
        elif way == "delayed":
            task = call(scheduler.task(delay=0.001))
        else:
            task = call(scheduler.task(on_error=retry(attempts=2, backoff=0)), twice)
        assert await task == "as of the call"
    assert variable.get() == "unset"


async def test_a_task_does_not_change_the_context_of_others() -> None:
    async def spoil() -> None:
        variable.set("spoilt")

    async with TaskScheduler() as scheduler:
        await scheduler.schedule(spoil)
        assert await scheduler.schedule(get) == "unset"


# ---- current_task() ----


async def test_a_task_finds_itself_on_the_loop_and_in_a_thread() -> None:
    async def find() -> Task[Any] | None:
        return current_task()

    async with TaskScheduler() as scheduler:
        for func in (find, current_task):
            task: Task[Any] = scheduler.schedule(func)
            assert await task is task
    assert current_task() is None


async def test_a_follow_up_finds_itself_and_not_the_task_that_scheduled_it() -> None:
    async with TaskScheduler() as scheduler:
        for on_error in (None, retry(attempts=2)):

            async def parent(on_error: Any = on_error) -> Task[Any]:
                return scheduler.task(on_error=on_error).schedule(current_task)

            child = await scheduler.schedule(parent)
            assert await child is child


# ---- names, places, secrets ----


async def test_names() -> None:
    async with TaskScheduler() as scheduler:
        names = {
            scheduler.schedule(func).name
            for func in (
                noop,
                functools.partial(add, 1),
                functools.partial(AsyncCallable(), 1),
                functools.partial(Adder(1).method, 1),
                functools.partial(max, 1, 2),
            )
        }
        assert names == {"noop", "add", "AsyncCallable", "Adder.method", "max"}
        assert scheduler.schedule(lambda: None).name == "test_names.<lambda>"
        assert scheduler.task(name="mine").schedule(noop).name == "mine"


async def test_where_is_the_line_of_the_call() -> None:
    async with TaskScheduler() as scheduler:
        task = scheduler.schedule(noop)
        configured = scheduler.task(name="other").schedule(noop)
        batch = TaskPhase(scheduler, "later")
        batched = batch.schedule(
            noop,
        )
        batch.open()
    for handle, text in ((task, "task = scheduler"), (configured, "configured = "), (batched, "batched = ")):
        path, _, line = handle.where.rpartition(":")
        assert path == __file__
        assert text in LINES[int(line) - 1]


SECRET = "hunter2"


class Telling:
    """Says more than a log should, when asked."""

    def __repr__(self) -> str:
        return SECRET

    async def method(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("failed")

    async def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("failed")


async def test_reprs_logs_and_errors_show_no_arguments(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def failing(*args: Any, **kwargs: Any) -> None:
        raise ValueError("failed")

    def plainly_failing(*args: Any, **kwargs: Any) -> None:
        raise ValueError("failed")

    def bad_handler(task: Task[Any], error: Exception) -> None:
        raise RuntimeError("handler failed")

    texts: list[str] = []
    async with TaskScheduler(grace_period=0) as scheduler:
        for func in (failing, plainly_failing, functools.partial(failing, SECRET), Telling().method, Telling()):
            for options in ({}, {"on_error": retry(attempts=2, backoff=0)}, {"on_error": bad_handler}):
                task = scheduler.task(**options).schedule(func, SECRET, key=SECRET)
                await task.wait()
                texts += [repr(task), str(task), task.name]
        batch = TaskPhase(scheduler, "never")
        for target in (scheduler.task(delay=60), batch):
            texts.append(repr(target.schedule(failing, SECRET, key=SECRET)))
        batch.schedule(failing, SECRET).cancel()
        for args, kwargs in (((SECRET,), {}), ((), {"nothing": SECRET})):
            with pytest.raises(InvalidTaskError) as caught:
                scheduler.schedule(noop, *args, **kwargs)
            texts.append(str(caught.value))

        def with_default(a: int, password: str = SECRET) -> None: ...

        with pytest.raises(InvalidTaskError) as caught:
            scheduler.schedule(with_default)  # type: ignore[call-overload]  # the error is the point
        texts.append(str(caught.value))
        texts += [repr(scheduler), repr(batch)]
    texts += [str(scheduler.report), repr(scheduler.report)]
    assert len(caplog.records) > 20
    for record in caplog.records:
        texts.append(record.getMessage())
        texts.append(repr({k: v for k, v in vars(record).items() if k.startswith("task_")}))
        texts.append(logging.Formatter().format(record) if record.exc_info is None else "")
    assert [text for text in texts if SECRET in text] == []


async def test_log_records_carry_the_task_as_extra(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> None:
        raise ValueError("failed")

    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
        task = batch.task(name="charge").schedule(failing)
        batch.open()
        await task.wait()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert {name: value for name, value in vars(record).items() if name.startswith("task_")} == {
        "task_id": task.id,
        "task_name": "charge",
        "task_phase": "later",
        "task_attempt": 1,
        "task_where": task.where,
    }
    assert record.exc_info is not None
    assert record.exc_info[1] is task.exception
    assert record.getMessage() == f"Task 'charge' #{task.id} (later, scheduled at {task.where}) failed in attempt 1"


# ---- bad input ----


def generate() -> Generator[int]:
    yield 1


async def generate_async() -> AsyncIterator[int]:
    yield 1


class GeneratorCallable:
    def __call__(self) -> Iterator[int]:
        yield 1


def plain(a: int, b: int = 1, *, c: int) -> None: ...


def of_one_name(name: str, b: int) -> None: ...


@pytest.mark.parametrize(
    "function, args, kwargs, message",
    [
        (
            None,
            (),
            {},
            "schedule() was given 'NoneType', which is not callable. "
            "Pass a function and its arguments: schedule(send_email, user.email)",
        ),
        (
            generate,
            (),
            {},
            "generate is a generator function: calling it runs nothing. "
            "Pass a function without `yield`, which loops over the generator itself",
        ),
        (
            generate_async,
            (),
            {},
            "generate_async is a generator function: calling it runs nothing. "
            "Pass a function without `yield`, which loops over the generator itself",
        ),
        (
            GeneratorCallable(),
            (),
            {},
            "GeneratorCallable is a generator function: calling it runs nothing. "
            "Pass a function without `yield`, which loops over the generator itself",
        ),
        (
            plain,
            (1,),
            {},
            "plain cannot be called with these arguments: missing a required argument: 'c'. It takes (a, b=..., *, c)",
        ),
        (
            noop,
            (1,),
            {},
            "noop cannot be called with these arguments: too many positional arguments. It takes ()",
        ),
        (
            add,
            (),
            {},
            "add cannot be called with these arguments: missing a required argument: 'a'. "
            "It takes (a, b=..., *, c=...)",
        ),
        (
            functools.partial(add, 1),
            (2, 3),
            {},
            "add cannot be called with these arguments: too many positional arguments. It takes (b=..., *, c=...)",
        ),
        (
            noop,
            (),
            {"shield": True, "name": "a secret"},
            "noop cannot be called with these arguments: got an unexpected keyword argument 'shield'. It takes (). "
            "To set options of the task: .task(name=..., shield=...).schedule(noop, ...)",
        ),
        (
            of_one_name,
            (),
            {"name": "a secret"},
            "of_one_name cannot be called with these arguments: missing a required argument: 'b'. It takes (name, b)",
        ),
        (
            noop,
            (),
            {"x": 1},
            "noop cannot be called with these arguments: got an unexpected keyword argument 'x'. It takes ()",
        ),
    ],
)
async def test_what_cannot_be_called_is_refused_at_the_call(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    async with TaskScheduler() as scheduler:
        for target in (scheduler, scheduler.task(name="x"), TaskPhase(scheduler, "later")):
            with pytest.raises(InvalidTaskError, match=f"^{re.escape(message)}$") as caught:
                target.schedule(function, *args, **kwargs)
            assert isinstance(caught.value, TypeError)
            assert isinstance(caught.value, TasksError)
        assert scheduler.statistics().scheduled == 0


async def test_a_coroutine_object_is_refused_and_closed() -> None:
    message = (
        "schedule() was given the coroutine add(...), which is already called. "
        "Pass the function and its arguments: schedule(add, ...)"
    )
    async with TaskScheduler() as scheduler:
        with pytest.raises(InvalidTaskError, match=f"^{re.escape(message)}$"):
            scheduler.schedule(add(1))  # type: ignore[call-overload]  # the error is the point


async def test_a_scheduler_that_was_not_entered_refuses() -> None:
    scheduler = TaskScheduler()
    message = (
        "'noop' was scheduled before the scheduler was started. "
        "Enter it first: async with TaskScheduler() as scheduler: scheduler.schedule(...)"
    )
    for target in (scheduler, TaskPhase(scheduler, "later")):
        with pytest.raises(SchedulerNotStartedError, match=f"^{re.escape(message)}$"):
            target.schedule(noop)
    assert (await scheduler.aclose()).clean


async def test_a_closed_scheduler_refuses_on_the_loop_and_in_threads() -> None:
    async with TaskScheduler() as scheduler:
        batch = TaskPhase(scheduler, "later")
    message = (
        "'noop' was scheduled after shutdown began. "
        "Only tasks, services and requests that still run may schedule more. Work that belongs to the end is scheduled "
        "by a service: scheduler.service(say_goodbye, grace=2), which begins with `await scheduler.stopping.wait()`. "
        "An application starts it in its lifespan, before `yield`: get_scheduler(app).service(say_goodbye, grace=2)"
    )
    for target in (scheduler, batch, scheduler.task(shield=True)):
        with pytest.raises(SchedulerClosedError, match=f"^{re.escape(message)}$"):
            target.schedule(noop)
        with pytest.raises(SchedulerClosedError, match=f"^{re.escape(message)}$"):
            in_thread(lambda target=target: target.schedule(noop))  # type: ignore[misc]  # bound here
    assert scheduler.statistics().scheduled == 0


async def test_keyword_arguments_of_the_task_never_mix_with_options() -> None:
    async def options(*, name: str, delay: int, func: int) -> tuple[str, int, int]:
        return name, delay, func

    async with TaskScheduler() as scheduler:
        task = scheduler.task(name="x").schedule(options, name="n", delay=1, func=2)
        assert await task == ("n", 1, 2)
        assert task.kwargs == {"name": "n", "delay": 1, "func": 2}
        assert task.args == ()
        assert task.func is options
