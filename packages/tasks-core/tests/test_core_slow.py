"""What keeps the event loop from turning is named, and nothing else is."""

from __future__ import annotations

import gc
import logging
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import pytest
from core_support import messages, noop
from tasks_core import TaskPhase, TaskScheduler
from tasks_core.exceptions import InvalidConfigError

pytestmark = pytest.mark.anyio

LIMIT = 0.1


async def block() -> None:
    time.sleep(0.6)  # noqa: ASYNC251  what a task must not do


async def block_in_a_call() -> None:
    wait_for_the_network()


def wait_for_the_network() -> None:
    time.sleep(0.6)


async def keep_the_interpreter() -> None:
    """Without giving any other thread its turn, as a bad regular expression does."""
    length = 18
    began = time.perf_counter()
    while time.perf_counter() - began < 0.3:
        length += 1
        began = time.perf_counter()
        re.match(r"(a+)+$", "a" * length + "b")


def slow_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in messages(caplog, logging.WARNING) if "kept the event loop from turning" in line]


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tasks event loop watch"]


async def turn() -> None:
    """Give the watch time to ask."""
    await anyio.sleep(LIMIT)


async def after_a_warning(caplog: pytest.LogCaptureFixture) -> list[str]:
    with anyio.move_on_after(5):
        while not slow_lines(caplog):
            await anyio.sleep(0.01)
    return slow_lines(caplog)


@pytest.mark.parametrize("options", [{}, {"timeout": 60}])
@pytest.mark.parametrize("function", [block, block_in_a_call])
async def test_a_task_that_blocks_the_event_loop_is_named_once(
    function: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with TaskScheduler(slow_callback_duration=LIMIT, grace_period=20) as scheduler:
        phase = TaskPhase(scheduler, "after_commit")
        task = phase.task(name="charge", **options).schedule(function)
        await turn()
        phase.open()
        await task.wait()
        (line,) = await after_a_warning(caplog)
    assert line.startswith(f"Task 'charge' #{task.id} (after_commit, scheduled at {task.where}) kept the event loop")
    seconds = re.search(r"turning for (?:more than )?(\d+\.\d+) s", line)
    assert seconds is not None
    assert float(seconds[1]) > LIMIT
    assert f"in {function.__name__}" in line
    assert ("in wait_for_the_network, called at " in line) is (function is block_in_a_call)


async def test_a_task_that_lets_no_other_thread_run_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Not each time: the watch may get its turn only after the loop has answered."""

    def named() -> list[str]:  # a busy machine keeps other code of this process as well
        return [line for line in slow_lines(caplog) if line.startswith("Task 'match'")]

    async with TaskScheduler(slow_callback_duration=LIMIT, grace_period=60) as scheduler:
        with anyio.fail_after(90):
            while not named():
                await scheduler.task(name="match").schedule(keep_the_interpreter).wait()
                await turn()
    assert "in keep_the_interpreter" in named()[0]


async def test_an_event_loop_that_waits_for_its_own_events_is_not_kept_by_any_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on a machine that gives it no time: the innermost frame is that of the selector."""
    async with TaskScheduler(slow_callback_duration=LIMIT):
        await turn()
        with selectors.DefaultSelector() as selector:
            selector.select(0.6)
        await turn()
    assert slow_lines(caplog) == []


async def test_a_process_that_gets_no_time_of_the_processor_is_not_blamed_on_its_code(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, stopped_for = 0, 0.0
    blocked = False

    def clock() -> float:
        nonlocal looks, stopped_for
        if blocked and threading.current_thread().name == "tasks event loop watch":
            looks += 1
            stopped_for += 1000.0  # since the watch looked before
        return time.monotonic() + stopped_for

    monkeypatch.setattr("tasks_core._run.watch._clock", clock)
    async with TaskScheduler(slow_callback_duration=LIMIT):
        await turn()
        blocked = True
        while looks < 3:
            time.sleep(0.001)  # noqa: ASYNC251  what a task must not do
        blocked = False
        await turn()
    assert slow_lines(caplog) == []


async def test_code_that_is_no_task_is_named_as_such(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskScheduler(slow_callback_duration=LIMIT):
        await turn()
        await block()
        (line,) = await after_a_warning(caplog)
    assert line.startswith("Code that is no task kept the event loop from turning for ")
    assert f"{__file__}:" in line
    assert "in block" in line


async def test_a_block_that_does_not_end_is_logged_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    async def wait_for_the_line() -> None:
        began = time.monotonic()
        while not slow_lines(caplog) and time.monotonic() < began + 20:
            time.sleep(0.01)  # noqa: ASYNC251  what a task must not do

    async with TaskScheduler(slow_callback_duration=LIMIT, grace_period=30) as scheduler:
        await turn()
        await scheduler.schedule(wait_for_the_line).wait()
    (line,) = slow_lines(caplog)
    assert "from turning for more than " in line


async def test_a_garbage_collection_is_not_blamed_on_a_task(caplog: pytest.LogCaptureFixture) -> None:
    async def collect() -> None:
        gc.collect()

    gc.disable()
    try:
        many: list[Any] = [[] for _ in range(2_000_000)]
        began = time.perf_counter()
        gc.collect()
        took = time.perf_counter() - began
        async with TaskScheduler(slow_callback_duration=took / 4) as scheduler:
            await anyio.sleep(took)
            for _ in range(3):
                await scheduler.schedule(collect).wait()
                await anyio.sleep(took / 4)
        del many
    finally:
        gc.enable()
    assert [line for line in slow_lines(caplog) if "'test_a_garbage" in line] == []


STOPPED = """
import anyio, logging, sys
from tasks_core import TaskScheduler
logging.basicConfig(stream=sys.stdout)
async def main():
    async with TaskScheduler(slow_callback_duration=0.2):
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
anyio.run(main)
"""


def test_a_process_that_was_stopped_is_not_blamed_on_its_code() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(3):
            time.sleep(0.1)
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        output, _ = process.communicate("end\n")
    assert "kept the event loop" not in output
    assert process.returncode == 0


async def test_schedulers_of_one_event_loop_share_a_watch_that_ends_with_the_last() -> None:
    before = watches()
    async with TaskScheduler(slow_callback_duration=LIMIT) as outer:
        async with TaskScheduler(slow_callback_duration=LIMIT):
            assert len(watches()) == len(before) + 1
        assert len(watches()) == len(before) + 1
        await outer.schedule(noop)
    assert watches() == before


async def test_without_a_duration_nothing_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    before = watches()
    async with TaskScheduler(slow_callback_duration=None):
        assert watches() == before
        await block()
        await turn()
    assert slow_lines(caplog) == []


@pytest.mark.parametrize("value", [0, -1, "1", True])
def test_a_duration_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InvalidConfigError, match="slow_callback_duration must be a number of seconds above 0"):
        TaskScheduler(slow_callback_duration=value)
