"""A worker: what it runs, what it refuses, what it says to the engine, and how it stops."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import core_durable_functions as functions
import pytest
from core_durable_functions import (
    asks_again,
    cancels_itself,
    flaky,
    forget,
    hands_on,
    note,
    plain,
    shielded,
    unshielded,
)
from core_engine import ListEngine, until, working
from tasks_core import TaskScheduler, Worker
from tasks_core.engines import DurableCall, RunDelivery, Slots
from tasks_core.exceptions import InvalidConfigError
from tasks_core.testing import override_engine

__all__ = ("forget",)

pytestmark = pytest.mark.anyio


async def hand_over(engine: ListEngine, *calls: tuple[Any, ...]) -> None:
    async with TaskScheduler(engine=engine) as scheduler:
        for function, *args in calls:
            await scheduler.schedule(function, *args)
    engine.log.clear()


def says(engine: ListEngine, *lines: str) -> Callable[[], bool]:
    return lambda: len(engine.log) >= len(lines) and engine.log[: len(lines)] == list(lines)


async def test_runs_what_was_handed_over() -> None:
    engine = ListEngine()
    await hand_over(engine, (note, "hello"), (plain, 1, 2))
    key = engine.calls[0].idempotency_key
    async with working(engine):
        await until(lambda: len(functions.ran) == 2)
        await until(lambda: len(engine.log) == 2)
    assert "hello" in functions.ran
    assert (1, (2,), 1.0, {}, False) in functions.ran
    assert (functions.contexts[0].idempotency_key, functions.contexts[0].attempt) == (key, 1)
    assert sorted(engine.log) == ["done core_durable_functions:note", "done plain", "left"]


async def test_what_follows_goes_into_the_scheduler_of_the_worker() -> None:
    """A durable function to the engine, and before the task that asks for it has ended; another one runs here."""
    engine = ListEngine()
    await hand_over(engine, (hands_on, "x"))
    key = engine.calls[0].idempotency_key
    async with working(engine):
        await until(lambda: len(functions.ran) == 2)
        await until(lambda: len(engine.log) == 4)
    assert (f"{key}-note", "X", False) in functions.ran
    assert "x" in functions.ran
    assert functions.contexts[0].idempotency_key == f"{key}-note"
    assert engine.log.index(f"has {note.name}") < engine.log.index(f"done {hands_on.name}")


async def test_scheduler_of_a_task_is_not_kept_alive_by_its_context() -> None:
    engine = ListEngine()
    await hand_over(engine, (note, "x"))
    async with working(engine):
        await until(says(engine, f"done {note.name}"))
    gc.collect()
    with pytest.raises(LookupError, match=f"The scheduler that ran '{note.name}' has ended"):
        _ = functions.contexts[0].scheduler


async def test_former_name_is_known() -> None:
    engine = ListEngine()
    engine.calls.append(DurableCall("old-plain", {"number": 1}, "k"))
    async with working(engine):
        await until(says(engine, "done old-plain"))


@pytest.mark.parametrize("error", ["ConnectionResetError", "TimeoutError"])
async def test_failure_is_delivered_again_until_it_succeeds(error: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tasks_core")
    engine = ListEngine()
    await hand_over(engine, (flaky, 2, error))
    async with working(engine):
        await until(says(engine, *[f"again {flaky.name} in 0 failed"] * 2, f"done {flaky.name}"))
    assert (functions.ran, functions.reported) == (["flaky"], [])
    assert f"failed in attempt 2 ({error}) and is delivered again in 0 s" in caplog.text
    told = [(line.levelname, line.getMessage().split(",")[0]) for line in caplog.records if line.exc_info]
    assert told == [
        ("WARNING", f"Task '{flaky.name}'"),
        ("DEBUG", f"The traceback of attempt 2 of task '{flaky.name}'"),
    ]


async def test_last_failure_is_reported_on_the_worker() -> None:
    engine = ListEngine()
    await hand_over(engine, (flaky, 9))
    async with working(engine):
        await until(says(engine, *[f"again {flaky.name} in 0 failed"] * 2, f"failed {flaky.name} ConnectionResetError"))
    assert functions.reported == [(flaky.name, 3, "ConnectionResetError")]


async def test_exception_that_is_not_worth_another_attempt() -> None:
    engine = ListEngine()
    await hand_over(engine, (flaky, 9, "KeyError"))
    async with working(engine):
        await until(says(engine, f"failed {flaky.name} KeyError"))
    assert functions.reported == [(flaky.name, 1, "KeyError")]


async def test_handler_may_ask_for_another_delivery() -> None:
    engine = ListEngine()
    await hand_over(engine, (asks_again,))
    async with working(engine):
        await until(says(engine, f"again {asks_again.name} in 0.25 failed", f"done {asks_again.name}"))


async def test_unknown_name_is_left_in_the_queue_and_runs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine()
    calls = [DurableCall("os:system", {"command": "touch /tmp/tampered"}, "1"), DurableCall("os:system", {}, "2")]
    engine.calls += calls
    async with working(engine):
        await until(says(engine, *["again os:system in 5"] * 2))
    assert caplog.text.count("No durable function is registered as 'os:system' in this process") == 1
    assert "touch" not in caplog.text


async def test_arguments_that_do_not_fit_are_given_back(caplog: pytest.LogCaptureFixture) -> None:
    engine = ListEngine()
    engine.calls.append(DurableCall("plain", {"number": "secret"}, "1"))
    async with working(engine):
        await until(says(engine, "again plain in 5"))
    assert functions.ran == []
    assert "secret" not in caplog.text


async def test_stop_gives_unshielded_tasks_back_and_lets_shielded_ones_end() -> None:
    engine = ListEngine()
    await hand_over(engine, (shielded, "shielded"), (unshielded, "unshielded"))
    for name in ("shielded", "unshielded"):
        functions.waiting[name], functions.released[name] = anyio.Event(), anyio.Event()
    async with working(engine, grace_period=0.0) as stop:
        await functions.waiting["shielded"].wait()
        await functions.waiting["unshielded"].wait()
        stop.set()
        await until(says(engine, f"again {unshielded.name} in 0"))
        functions.released["shielded"].set()
    assert functions.ran == ["shielded"]
    assert engine.log == [f"again {unshielded.name} in 0", f"done {shielded.name}", "left"]


async def test_call_that_is_taken_at_the_moment_of_the_stop_goes_back() -> None:
    class Late(ListEngine):
        async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
            await stopping.wait()
            await self._deliver(run, self.calls.pop(), Counter())

    engine = Late()
    await hand_over(engine, (note, "x"))
    async with working(engine) as stop:
        stop.set()
    assert engine.log == [f"again {note.name} in 0", "left"]
    assert functions.ran == []


async def test_engine_may_cancel_a_delivery() -> None:
    engine = ListEngine()
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with TaskScheduler(engine=engine) as scheduler:
        receipt = await scheduler.schedule(unshielded, "x")
        async with working(engine, grace_period=60.0):
            await functions.waiting["x"].wait()
            assert await receipt.cancel()
            await until(says(engine, f"cancelled {unshielded.name}"))
    assert functions.ran == []


async def test_task_that_is_cancelled_is_failed() -> None:
    engine = ListEngine()
    await hand_over(engine, (cancels_itself,))
    async with working(engine):
        await until(says(engine, f"failed {cancels_itself.name} TaskCancelledError"))


async def test_grace_period_lets_everything_end() -> None:
    engine = ListEngine()
    await hand_over(engine, (unshielded, "x"))
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    async with working(engine, grace_period=60.0) as stop:
        await functions.waiting["x"].wait()
        stop.set()
        functions.released["x"].set()
    assert engine.log == [f"done {unshielded.name}", "left"]


async def test_cancellation_stops_the_worker_without_grace() -> None:
    engine = ListEngine()
    await hand_over(engine, (unshielded, "x"))
    functions.waiting["x"], functions.released["x"] = anyio.Event(), anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(Worker(engine, grace_period=60.0).run, anyio.Event())
            await functions.waiting["x"].wait()
            group.cancel_scope.cancel()
    assert engine.log == ["entered", f"again {unshielded.name} in 0", "left"]


async def test_does_not_start_beside_an_override(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with override_engine(ListEngine()), anyio.fail_after(1):
        await Worker(ListEngine()).run(anyio.Event())
    assert "override_engine() is in force" in caplog.text


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"concurrency": True}, {"grace_period": -1}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigError):
        Worker(ListEngine(), **options)
