"""Durable functions: what can be one, what `schedule()` makes of a call, and what an engine is given."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import Line, flaky, forget, hidden, note, odd, plain, reports, rich, untyped
from core_engine import ListEngine
from core_support import messages
from tasks_core import (
    DurableFunction,
    DurablePhase,
    DurableTask,
    Provided,
    Receipt,
    RetryPolicy,
    TaskConfig,
    TaskObserver,
    TaskScheduler,
    TaskState,
    durable,
    durable_context,
    observe,
)
from tasks_core.engines import EngineCapabilityError, EngineNotConfiguredError, EngineUnavailableError
from tasks_core.exceptions import (
    ArgumentCodecError,
    DurableTaskFailedError,
    InvalidConfigError,
    InvalidTaskError,
    NotAddressableError,
)
from tasks_core.testing import override_engine

__all__ = ("forget",)

pytestmark = pytest.mark.anyio


# ---- what can be a durable function ----


def top(text: str) -> str:
    return text


def test_is_still_the_function() -> None:
    function = durable(name="top")(top)
    assert function("x") == "x"
    assert isinstance(function, DurableFunction)
    assert (function.name, function.__name__, function.__module__) == ("top", "top", __name__)
    assert repr(function) == "<durable top>"
    assert not function.is_async
    assert forget_nothing.is_async


@durable
async def forget_nothing() -> None: ...


@durable
async def with_session(number: int, session: Any = Provided) -> None: ...


async def test_what_the_worker_supplies_is_not_passed() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(with_session, 1)
        with pytest.raises(ArgumentCodecError, match=r"'session' has the default Provided.*Do not pass it"):
            scheduler.schedule(with_session, 1, "a session")
        assert scheduler.tasks == ()
    assert [call.args for call in engine.calls] == [{"number": 1}]


async def test_a_key_needs_an_engine_that_knows_keys() -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(EngineCapabilityError, match="was scheduled with key=, which list cannot do"):
            scheduler.task(key="k").schedule(note, "x")
        with pytest.raises(NotAddressableError, match="inside of a partial cannot be found by another process"):
            scheduler.task(key="k").schedule(partial(note, "x"))
        assert scheduler.tasks == ()


def test_name_is_module_and_qualified_name() -> None:
    assert note.name == "core_durable_functions:note"


class Mailer:
    def send(self) -> None: ...


def local_function() -> Any:
    def inner() -> None: ...

    return inner


def main_function() -> Any:
    def main() -> None: ...

    main.__qualname__, main.__module__ = "main", "__main__"
    return main


@pytest.mark.parametrize(
    "func, text",
    [
        (lambda: None, "a lambda has no name"),
        (local_function(), "is defined inside another function"),
        (partial(top, "x"), "is a partial, which another process cannot find"),
        (Mailer().send, "is a method, which another process cannot find"),
        (main_function(), r'is part of the script that runs.*@durable\(name="main"\)'),
    ],
)
def test_what_no_worker_could_find_is_refused(func: Any, text: str) -> None:
    with pytest.raises(NotAddressableError, match=text):
        durable(func)


def test_name_of_another_function_is_refused() -> None:
    durable(name="taken")(top)
    durable(name="taken")(top)  # a module that is loaded again
    with pytest.raises(InvalidConfigError, match=r"the name 'taken' belongs to .*test_core_durable:top already"):
        durable(name="other", aliases=["taken"])(local_function())


@pytest.mark.parametrize(
    "make",
    [
        lambda: RetryPolicy(attempts=0),
        lambda: RetryPolicy(backoff=-1.0),
        lambda: RetryPolicy(jitter=2.0),
        lambda: RetryPolicy(on="ConnectionError"),  # type: ignore[arg-type]
        lambda: durable(name="")(top),
        lambda: durable(retry=3)(top),  # type: ignore[call-overload]
        lambda: durable(timeout=0)(top),
        lambda: RetryPolicy(on=(int,)),  # type: ignore[arg-type]
        lambda: RetryPolicy(on=()),
        lambda: RetryPolicy(backoff=600.0),
        lambda: note.configure(idempotency_key=""),
        lambda: note.configure(idempotency_key="nul \0"),
        lambda: note.configure(idempotency_key="surrogate \ud800"),
        lambda: note.configure(idempotency_key="long" * 126),
        lambda: TaskScheduler(engine="postgresql://"),  # type: ignore[arg-type]
        lambda: TaskScheduler(engine=ListEngine(), engine_fallback="drop"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_are_refused(make: Any) -> None:
    with pytest.raises(InvalidConfigError):
        make()


def test_retry_policy_travels_as_data() -> None:
    policy = RetryPolicy(attempts=3, backoff=2.0, max_delay=3.0, on=(ConnectionError, "builtins:TimeoutError"))
    assert RetryPolicy.from_json(policy.as_json()) == policy
    assert [policy.pause(ConnectionResetError(), n) for n in (1, 2, 3)] == [2.0, 3.0, None]
    assert policy.pause(TimeoutError(), 1) == 2.0
    assert policy.pause(ValueError(), 1) is None


# ---- arguments ----


async def test_arguments_travel_and_arrive_as_their_types() -> None:
    args = (datetime(2026, 1, 2, tzinfo=UTC), uuid4(), [Line(1, 2.5)], {3, 4})
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(rich, *args)
        await scheduler.schedule(plain, 1, 2, 3, factor=2, colour="red")
    arguments = rich.codec.decode(engine.calls[0].args)
    assert arguments.args == args
    assert plain.codec.decode(engine.calls[1].args).args == (1, 2, 3)
    assert plain.codec.decode(engine.calls[1].args).kwargs == {"factor": 2.0, "colour": "red"}
    assert "red" not in repr(engine.calls[1])


@pytest.mark.parametrize(
    "value, kind",
    [
        (threading.Lock(), "_thread.lock"),
        ({1, 2}, "set"),
        ((1, 2), "tuple"),
        (b"\xff", "bytes"),
        (float("nan"), "float"),
        ({1: "x"}, "dict"),
        ("a\0b", "text with a NUL"),
    ],
)
async def test_argument_that_cannot_travel_fails_at_the_call(value: object, kind: str) -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(ArgumentCodecError, match=f"untyped: parameter 'value' was given a {kind}"):
            scheduler.schedule(untyped, value)
        assert scheduler.statistics().scheduled == 0


async def test_argument_of_another_type_fails_at_the_call() -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(ArgumentCodecError, match="plain: parameter 'number' was given a str") as caught:
            scheduler.schedule(plain, "secret")  # type: ignore[call-overload]
        assert "secret" not in str(caught.value)
        with pytest.raises(InvalidTaskError, match="missing a required argument"):
            scheduler.schedule(plain)  # type: ignore[call-overload]


async def test_annotation_that_cannot_travel_fails_at_the_call() -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(ArgumentCodecError, match="odd: parameter 'thread' is annotated Thread, which JSON cannot"):
            scheduler.schedule(odd, threading.current_thread())


async def test_annotation_for_type_checkers_only_is_plain_json() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(hidden, 1.5)  # type: ignore[call-overload]  # as a checker says
        with pytest.raises(ArgumentCodecError, match=r"parameter 'price' was given a decimal\.Decimal"):
            scheduler.schedule(hidden, Decimal(1))
    assert engine.calls[0].args == {"price": 1.5}


async def test_backslashes_before_u0000_are_a_text_like_any_other() -> None:
    assert untyped.codec.encode(("\\u0000",), {}) == {"value": "\\u0000"}


@pytest.mark.parametrize("arguments", [{"number": 1, "nonsense": 2}, {}, {"number": "x"}])
def test_arguments_that_do_not_fit_are_refused_on_arrival(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentCodecError):
        plain.codec.decode(arguments)


def test_plain_json_where_pydantic_is_not_installed() -> None:
    """In a process of its own, in which pydantic cannot be imported."""
    code = """
import sys
sys.modules["pydantic"] = None
from tasks_core import durable
from tasks_core.exceptions import ArgumentCodecError
@durable(name="f")
def f(a: int, b: list[str]) -> None: ...
encoded = f.codec.encode((1, ["x"]), {})
assert f.codec.decode(encoded).args == (1, ["x"])
for bad in ({1}, (1,), float("nan"), {1: 2}):
    try:
        f.codec.encode((1, bad), {})
    except ArgumentCodecError:
        continue
    raise SystemExit(repr(bad))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_trace_travels_where_opentelemetry_is_installed_only() -> None:
    """In a process of its own, in which it cannot be imported: all the same, a task is handed over, and runs."""
    code = """
import sys
sys.modules["opentelemetry"] = None
import anyio
from core_engine import ListEngine
from core_durable_functions import note, ran
from tasks_core import TaskScheduler, Worker
async def main():
    engine, stop = ListEngine(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.schedule(note, "x")
    assert engine.calls[0].headers == {}, engine.calls[0].headers
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine).run, stop)
        with anyio.fail_after(30):
            while not ran:
                await anyio.sleep(0.01)
        stop.set()
anyio.run(main)
"""
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_import_is_light() -> None:
    code = """
import sys, tasks_core
heavy = {"procrastinate", "psycopg", "pydantic", "sqlalchemy", "opentelemetry"} & set(sys.modules)
raise SystemExit(repr(heavy) if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- handing over ----


async def test_task_succeeds_when_the_engine_has_acknowledged() -> None:
    engine = ListEngine()
    engine.gate = anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        task = scheduler.task(name="greeting").schedule(note, "hello")
        assert isinstance(task, DurableTask)
        assert (task.func, task.args, task.name, task.state) == (note, ("hello",), "greeting", TaskState.PENDING)
        await anyio.wait_all_tasks_blocked()
        assert (task.state, engine.calls) == (TaskState.RUNNING, [])
        engine.gate.set()
        receipt = await task
    assert receipt == Receipt("list", "1", task.call.idempotency_key)
    assert engine.calls == [task.call]
    assert task.call.dedup is False
    assert engine.log == ["entered", f"asked {note.name}", f"has {note.name}", "left"]
    assert functions.ran == []


async def test_options_of_the_call_reach_the_engine() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        await scheduler.task(delay=60).schedule(note.configure(idempotency_key="welcome-1", transaction="mine"), "x")
        await scheduler.schedule(flaky, 0)
    assert (engine.calls[0].idempotency_key, engine.calls[0].dedup, engine.transactions[0]) == (
        "welcome-1",
        True,
        "mine",
    )
    not_before = engine.calls[0].not_before
    assert not_before is not None
    assert not_before > datetime.now(UTC).timestamp() + 30
    assert engine.calls[1].retry == flaky.retry


async def test_what_belongs_to_the_run_cannot_be_said_at_the_call() -> None:
    config = TaskConfig(timeout=0.001, on_error=functions.report, limiter=anyio.CapacityLimiter(1))
    async with TaskScheduler(engine=ListEngine(), config=config) as scheduler:
        await scheduler.schedule(note, "inherited options are for others")
        for option in ({"timeout": 1.0}, {"on_error": print}, {"limiter": anyio.CapacityLimiter(1)}, {"on_end": print}):
            with pytest.raises(EngineCapabilityError, match=f"another process, where {next(iter(option))}="):
                scheduler.task(**option).schedule(note, "x")


async def test_engine_that_cannot_is_an_error_at_the_call() -> None:
    engine = ListEngine()
    engine.capabilities = frozenset()
    async with TaskScheduler(engine=engine) as scheduler:
        for option, function in (
            ("idempotency_key", note.configure(idempotency_key="k")),
            ("transaction", note.configure(transaction="t")),
        ):
            with pytest.raises(EngineCapabilityError, match=f"with {option}=, which list cannot do"):
                scheduler.schedule(function, "x")
        with pytest.raises(EngineCapabilityError, match="with delay=, which list cannot do"):
            scheduler.task(delay=1.0).schedule(note, "x")


async def test_transaction_that_the_engine_does_not_know_is_an_error_at_the_call() -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(EngineCapabilityError, match="must be a text"):
            scheduler.schedule(note.configure(transaction=1), "x")


async def test_a_call_that_makes_no_new_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine()
    caplog.set_level(logging.INFO, "tasks_core")
    async with TaskScheduler(engine=engine) as scheduler:
        welcome = note.configure(idempotency_key="welcome-17")
        await scheduler.schedule(welcome, "first")
        assert messages(caplog) == []
        receipt = await scheduler.schedule(welcome, "second")
    assert not receipt.created
    (line, _) = messages(caplog)
    assert line.startswith("Task 'note' #")
    assert line.endswith(" made no new task: list has task 1 with idempotency key 'welcome-17' already")


def test_configured_functions_share_nothing_but_the_function() -> None:
    first, second = note.configure(idempotency_key="1"), note.configure(transaction="t")
    assert first.name == second.name == note.name
    assert first.func is second.func is note.func
    assert repr(first) == repr(note)


async def test_no_engine_is_an_error_with_the_line_to_write() -> None:
    async with TaskScheduler() as scheduler:
        with pytest.raises(EngineNotConfiguredError, match=r"TaskScheduler\(engine=\.\.\.\)"):
            scheduler.schedule(note, "x")


async def test_durable_function_inside_of_a_partial_is_refused() -> None:
    async with TaskScheduler(engine=ListEngine()) as scheduler:
        with pytest.raises(NotAddressableError, match=r"schedule\(note, \.\.\.\)"):
            scheduler.schedule(partial(note, "x"))
        assert await scheduler.schedule(partial(top, "another partial")) == "another partial"


async def test_limits_of_the_process_do_not_keep_a_call_from_being_handed_over() -> None:
    async with TaskScheduler(engine=ListEngine(), max_concurrency=1) as scheduler:
        blocker = scheduler.schedule(anyio.sleep_forever)
        await blocker.started.wait()
        await scheduler.schedule(note, "x")
        blocker.cancel()


async def test_from_a_thread() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        task = await anyio.to_thread.run_sync(scheduler.schedule, note, "x")
        assert isinstance(task, DurableTask)
        await task
    assert len(engine.calls) == 1


async def test_shutdown_waits_for_what_is_being_handed_over() -> None:
    engine = ListEngine()
    engine.gate = anyio.Event()
    async with anyio.create_task_group() as group, TaskScheduler(engine=engine, grace_period=0) as scheduler:
        task = scheduler.schedule(note, "x")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(_set_later, scheduler, engine.gate)
    assert task.state is TaskState.SUCCEEDED
    assert engine.log[-1] == "left"


async def _set_later(scheduler: TaskScheduler, gate: anyio.Event) -> None:
    await scheduler.stopping.wait()
    await anyio.wait_all_tasks_blocked()
    gate.set()


async def test_engine_that_cannot_be_entered_keeps_the_scheduler_from_starting() -> None:
    class Broken(ListEngine):
        async def __aenter__(self) -> Broken:
            raise EngineUnavailableError("no such server")

    with pytest.raises(EngineUnavailableError, match="no such server"):
        async with TaskScheduler(engine=Broken()):
            pytest.fail("not reached")


async def test_cancelled_while_it_waits_for_the_engine() -> None:
    class Slow(ListEngine):
        async def __aenter__(self) -> Slow:
            try:
                await anyio.sleep_forever()
            finally:
                self.log.append("given up")
            return self

    engine = Slow()
    async with anyio.create_task_group() as group:
        group.start_soon(TaskScheduler(engine=engine).start)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    await anyio.wait_all_tasks_blocked()
    assert engine.log == ["given up"]


async def test_engine_that_cannot_be_left_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(ListEngine):
        async def __aexit__(self, *_: object) -> None:
            raise ConnectionResetError("in the middle of good-bye")

    async with TaskScheduler(engine=Stuck()) as scheduler:
        await scheduler.schedule(note, "x")
    assert "The engine list could not be left" in caplog.text
    assert "in the middle of good-bye" in caplog.text


# ---- an engine that does not acknowledge ----


async def test_engine_that_is_away_fails_the_task(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskScheduler(engine=ListEngine(down=True)) as scheduler:
        task = scheduler.schedule(note, "secret")
        with pytest.raises(EngineUnavailableError, match="the list is away"):
            await task
    assert task.state is TaskState.FAILED
    assert "failed in attempt 1" in caplog.text
    assert "secret" not in caplog.text


async def test_engine_has_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_core._durable.task._TIME_LIMIT", 0.01)
    engine = ListEngine()
    engine.gate = anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        with pytest.raises(EngineUnavailableError, match=r"list did not acknowledge 'note' within 0\.01 seconds"):
            await scheduler.schedule(note, "x")


async def test_in_memory_when_the_engine_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskScheduler(engine=ListEngine(down=True), engine_fallback="memory") as scheduler:
        batch = DurablePhase(scheduler, "after")
        task = batch.schedule(note.configure(idempotency_key="k"), "hello")
        await batch.submit()
        receipt = task.result()
        assert (receipt.engine, receipt.idempotency_key, functions.ran) == ("memory", "k", [])
        batch.open()
        await scheduler.schedule(flaky, 1)
    assert functions.ran == ["hello", "flaky"] or functions.ran == ["flaky", "hello"]
    assert functions.contexts[0].idempotency_key == "k"
    assert functions.contexts[0].scheduler is scheduler
    assert "runs in this process, and is lost if that ends" in caplog.text
    assert scheduler.report is not None
    assert scheduler.report.clean


@durable(name="hands_back")
def hands_back(text: str) -> str:
    return text


async def test_in_memory_it_is_retried_and_reported_as_on_a_worker() -> None:
    async with TaskScheduler(engine=ListEngine(down=True), engine_fallback="memory") as scheduler:
        receipt = await scheduler.schedule(flaky, 9)
        await scheduler.schedule(reports)  # to nobody
        with pytest.raises(DurableTaskFailedError, match=r"flaky'.*attempt 3: ConnectionResetError"):
            await receipt.result(timeout=20)
        assert not await receipt.cancel()
        assert await (await scheduler.schedule(hands_back, "x")).result(timeout=20) == "x"
    assert functions.reported == [("flaky", 3, "ConnectionResetError")]
    assert functions.ran == ["reported"]


async def test_shutdown_that_is_bounded_says_that_a_task_was_not_handed_over() -> None:
    engine = ListEngine()
    engine.gate = anyio.Event()
    caught: list[EngineUnavailableError] = []

    async def submit(batch: DurablePhase) -> None:
        with pytest.raises(EngineUnavailableError, match="'note' was not submitted to list: ") as error:
            await batch.submit()
        caught.append(error.value)

    scheduler = TaskScheduler(engine=engine, grace_period=0, shield_timeout=0)
    async with anyio.create_task_group() as group, scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        batch.schedule(note, "x")
        group.start_soon(submit, batch)
        await anyio.wait_all_tasks_blocked()
    assert len(caught) == 1


# ---- batches ----


async def test_submit_hands_over_what_is_for_the_outcome_and_waits_for_it() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        first, second = batch.schedule(note, "1"), batch.task(when="always").schedule(note, "2")
        dropped = batch.task(when="error").schedule(note, "3")
        other = batch.schedule(top, "not durable")
        await anyio.wait_all_tasks_blocked()
        assert (engine.calls, batch.unsubmitted) == ([], True)
        await batch.submit("success")
        assert [task.state for task in (first, second)] == [TaskState.SUCCEEDED] * 2
        assert (dropped.state, dropped.reason) == (
            TaskState.DISCARDED,
            "it is for when='error', and after ended in success",
        )
        assert (other.state, batch.unsubmitted) == (TaskState.PENDING, False)
        late, too_late = batch.schedule(note, "4"), batch.task(when="error").schedule(note, "5")
        await late
        assert too_late.state is TaskState.DISCARDED
        batch.open()
        assert await other == "not durable"
    assert len(engine.calls) == 3


async def test_submit_raises_what_the_engine_says_after_all_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine()
    engine.on_submit = lambda call: setattr(engine, "down", call.args["text"] == "bad")
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        tasks = [batch.schedule(note, text) for text in ("good", "bad", "good")]
        with pytest.raises(EngineUnavailableError, match="the list is away"):
            await batch.submit()
    assert [task.state for task in tasks] == [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SUCCEEDED]


async def test_tasks_for_errors_are_kept_when_submit_fails() -> None:
    engine = ListEngine(down=True)
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        task, compensation = batch.schedule(note, "1"), batch.task(when="error").schedule(note, "2")
        with pytest.raises(EngineUnavailableError):
            await batch.submit()
        engine.down = False
        batch.open("error")
        await compensation
        assert task.state is TaskState.FAILED
    assert [call.args for call in engine.calls] == [{"text": "2"}]


async def test_nothing_is_lost_when_whoever_submits_is_cancelled() -> None:
    engine = ListEngine()
    engine.gate = anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        tasks = [batch.schedule(note.configure(transaction=t), "x") for t in (None, "t", "t")]
        tasks.append(batch.task(when="error").schedule(note, "x"))
        with anyio.move_on_after(0.01):
            await batch.submit()
        engine.gate.set()
        batch.open("success")
        for task in tasks[:3]:
            await task
        assert tasks[3].state is TaskState.DISCARDED


async def test_open_without_submit_hands_over_too() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after")
        task, dropped = batch.schedule(note, "1"), batch.task(when="error").schedule(note, "2")
        batch.open()
        await task
        assert dropped.state is TaskState.DISCARDED
        gone = DurablePhase(scheduler, "never")
        gone.schedule(note, "3")
        gone.discard("for a reason")
    assert len(engine.calls) == 1


async def test_open_batch_keeps_tasks_in_a_transaction_until_submit() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "now", opened=True, submit_on="submit")
        at_once, kept = batch.schedule(note, "1"), batch.schedule(note.configure(transaction="t"), "2")
        await at_once
        assert engine.transactions == [None]
        await batch.submit()
        assert kept.state is TaskState.SUCCEEDED


@pytest.mark.parametrize("opened", [True, False])
async def test_nothing_is_left_behind_when_nobody_submits(opened: bool) -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", opened=opened, submit_on="submit")
        task = batch.schedule(note.configure(transaction="t"), "x")
        batch.open()
        with anyio.fail_after(5):
            await task


async def test_tasks_in_a_transaction_go_one_after_the_other() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        for text in "123":
            batch.schedule(note.configure(transaction="t"), text)
        await batch.submit()
    assert engine.log == ["entered", *[f"asked {note.name}", f"has {note.name}"] * 3, "left"]


async def test_batch_that_hands_over_now() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="schedule")
        await batch.schedule(note, "1")
        kept = batch.task(when="error").schedule(note, "2")
        await anyio.wait_all_tasks_blocked()
        assert kept.state is TaskState.PENDING
        batch.open("error")
        await kept


async def test_cancelled_task_is_not_handed_over() -> None:
    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "after", submit_on="submit")
        task = batch.schedule(note, "1")
        task.cancel()
        await batch.submit()
    assert (task.state, engine.calls) == (TaskState.CANCELLED, [])


# ---- observers and tests ----


async def test_observers_step_in_as_with_any_task() -> None:
    class Replacing(TaskObserver):
        async def around_attempt(self, task: Any, run: Any, /) -> Any:
            assert await run(lambda text: text.upper()) == "HELLO"
            return Receipt("nobody", "0", "k")

    engine = ListEngine()
    with observe(Replacing()):
        async with TaskScheduler(engine=engine) as scheduler:
            assert (await scheduler.schedule(note, "hello")).engine == "nobody"
    assert engine.calls == []


async def test_override_takes_the_place_of_every_engine() -> None:
    own, other = ListEngine(), ListEngine()
    with override_engine(other):
        async with TaskScheduler(engine=own) as scheduler:
            await scheduler.schedule(note, "1")
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(note, "2")
    assert (own.log, len(other.calls)) == ([], 2)


def test_context_is_for_durable_tasks_only() -> None:
    with pytest.raises(LookupError, match="no durable task runs this code"):
        durable_context()


async def test_request_headers_of_the_origin_travel() -> None:
    class Origin:
        task_headers = {"x-request-id": "7"}  # noqa: RUF012  as plain as it gets

    engine = ListEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        batch = DurablePhase(scheduler, "now", origin=Origin(), opened=True)
        await batch.schedule(note, "x")
    assert engine.calls[0].headers["x-request-id"] == "7"
