"""Durable tasks whose worker dies at each of their suspensions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tasks_core import DurableFunction, RetryPolicy, TaskScheduler, durable, durable_context
from tasks_testing import TasksRecorder, record_tasks

world: dict[str, int] = {}
log: list[str] = []
HERE = "test_testing_cuts.py"


def reset() -> None:
    world.clear()
    log.clear()


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    reset()
    yield
    reset()


def add(name: str) -> None:
    world[name] = world.get(name, 0) + 1


def outcome() -> dict[str, int]:
    return dict(world)


async def gateway() -> None:
    await asyncio.sleep(0)  # the call is on its way
    add("charged")


@durable(name="cuts_pay_twice")
async def pay_twice() -> None:
    """Look before it acts, and charge again all the same if its worker dies between the two acts."""
    if "paid" not in world:
        await gateway()
        await asyncio.sleep(0)  # the update is on its way
        add("paid")


@durable(name="cuts_pay_once")
async def pay_once() -> None:
    if "charged" not in world:
        await gateway()
    await asyncio.sleep(0)
    world["paid"] = 1


@durable(name="cuts_clean_up")
async def clean_up() -> None:
    try:
        log.append(f"attempt {durable_context().attempt}")
        await asyncio.sleep(0)
        log.append("middle")
    finally:
        log.append("finally")


@durable(name="cuts_plain")
def plain() -> None:
    add("plain")


@durable(name="cuts_plain_once")
def plain_once() -> None:
    world["plain"] = 1


async def child(number: int) -> None:
    await asyncio.sleep(0.001)
    add(f"child {number}")


@durable(name="cuts_group")
async def group() -> None:
    async with anyio.create_task_group() as children, anyio.create_task_group() as more:
        with anyio.CancelScope(shield=True):
            children.start_soon(child, 1)
            more.start_soon(child, 2)
            own = asyncio.create_task(child(3))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    await own
    world.clear()


@durable(name="cuts_fails_after_a_cut", retry=RetryPolicy(attempts=1))
async def fails_after_a_cut() -> None:
    if "begun" in world:
        raise ValueError("begun already")
    add("begun")
    await asyncio.sleep(0)


@durable(name="cuts_timed", timeout=30)
async def timed() -> None:
    with anyio.move_on_after(10):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    world["timed"] = 1


@durable(name="cuts_gives_up")
async def gives_up() -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.001)
    world["gave up"] = 1


@durable(name="cuts_submits")
async def submits() -> None:
    await durable_context().scheduler.schedule(pay_once.configure(idempotency_key="from cuts_submits"))
    add("submitted")


def submit(*functions: DurableFunction[[], Any, Any]) -> None:
    async def main() -> None:
        async with TaskScheduler() as scheduler:
            for function in functions:
                await scheduler.schedule(function)

    anyio.run(main)


def test_running_twice_does_not_find_what_a_cut_finds(tasks_recorder: TasksRecorder) -> None:
    submit(pay_twice)
    tasks_recorder.run_durable(times=2)
    assert world == {"charged": 1, "paid": 1}


def test_a_task_that_acts_twice_is_found_at_its_line(tasks_recorder: TasksRecorder) -> None:
    submit(pay_twice)
    with pytest.raises(AssertionError) as failure:
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)
    lines = str(failure.value).splitlines()
    assert lines[:2] == [
        "cuts_pay_twice has another outcome when its worker dies",
        "the worker was cut off while it ran cuts_pay_twice, at place 2 of 3:",
    ]
    assert HERE in lines[2]
    assert lines[2].endswith(", in pay_twice: await asyncio.sleep(0)  # the update is on its way")
    assert lines[3:] == [
        "then it ran again, and check() returned {'charged': 2, 'paid': 1},",
        "without a cut {'charged': 1, 'paid': 1}",
        "  hint: a task runs again from its first line; each step must find out if it was done",
    ]


def test_a_task_that_acts_once_passes(tasks_recorder: TasksRecorder) -> None:
    submit(pay_once)
    checks: list[dict[str, int]] = []
    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=lambda: checks.append(outcome()))
    assert checks == [{"charged": 1, "paid": 1}] * (1 + 4)
    assert tasks_recorder.durable_runs.one(pay_once).attempts == 2


def test_an_assertion_of_the_check_is_raised_with_the_place(tasks_recorder: TasksRecorder) -> None:
    submit(pay_twice)

    def check() -> None:
        assert world["charged"] == 1

    with pytest.raises(AssertionError) as failure:
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=check)
    (note,) = failure.value.__notes__
    assert note.startswith("the worker was cut off while it ran cuts_pay_twice, at place 2 of 3:\n")


def test_an_assertion_that_fails_without_a_cut_says_nothing_of_a_cut(tasks_recorder: TasksRecorder) -> None:
    submit(pay_once)
    with pytest.raises(ZeroDivisionError) as failure:
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=lambda: 1 / 0)
    assert not hasattr(failure.value, "__notes__")


def test_nothing_of_the_function_runs_after_the_cut(tasks_recorder: TasksRecorder) -> None:
    logs: list[list[str]] = []
    submit(clean_up)
    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=lambda: logs.append(list(log)))
    whole = ["middle", "finally"]
    assert logs == [
        ["attempt 1", *whole],
        ["attempt 2", *whole],  # before its first line
        ["attempt 1", "attempt 2", *whole],  # in the middle: no "finally" of the first attempt
        ["attempt 1", *whole, "attempt 2", *whole],  # after its end
    ]


@pytest.mark.parametrize("function, safe", [(plain, False), (plain_once, True)])
def test_a_plain_function_is_cut_before_and_after(
    tasks_recorder: TasksRecorder, function: DurableFunction[[], Any, None], safe: bool
) -> None:
    submit(function)
    if safe:
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)
    else:
        with pytest.raises(AssertionError, match=r"at place 1 of 1:\n.*, in plain: after its end\n"):
            tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)


def test_the_tasks_that_a_function_has_started_are_cut_off_with_it(tasks_recorder: TasksRecorder) -> None:
    submit(group)
    seen: list[dict[str, int]] = []

    def check() -> None:
        seen.append(outcome())

    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=check)
    assert len(seen) > 5
    assert seen == [{}] * len(seen)


def test_a_cut_inside_of_scopes_and_a_timeout(tasks_recorder: TasksRecorder) -> None:
    submit(timed)
    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)
    tasks_recorder.durable_runs.assert_ran(timed)


def test_what_a_function_waits_for_may_raise(tasks_recorder: TasksRecorder) -> None:
    submit(gives_up)
    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)


def test_a_restore_that_fails_says_which_cut_was_next(tasks_recorder: TasksRecorder) -> None:
    calls: list[int] = []

    def restore() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise LookupError

    submit(plain_once)
    with pytest.raises(LookupError) as failure:
        tasks_recorder.run_durable(cut="everywhere", restore=restore, check=outcome)
    assert failure.value.__notes__ == ["a worker was to be cut off while it ran cuts_plain_once, at place 0 of 1"]


def test_another_end_is_another_outcome(tasks_recorder: TasksRecorder) -> None:
    submit(fails_after_a_cut)
    tasks_recorder.expect_failure(fails_after_a_cut)
    with pytest.raises(
        AssertionError,
        match=r"\nthen the durable tasks ended: cuts_fails_after_a_cut failed,\n"
        r"without a cut: cuts_fails_after_a_cut succeeded\n",
    ):
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=lambda: None)


def test_each_submitted_task_is_cut_and_those_that_it_submits(tasks_recorder: TasksRecorder) -> None:
    submit(plain_once, submits)
    checks: list[int] = []

    def check() -> set[str]:
        checks.append(len(tasks_recorder.durable_calls))
        return set(world)

    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=check)
    assert set(checks) == {3}
    assert len(checks) == 1 + 2 + 3 + 4
    assert [task.name for task in tasks_recorder.durable_runs] == [plain_once.name, submits.name, pay_once.name]


def test_a_stub_is_cut_in_place_of_the_function(tasks_recorder: TasksRecorder) -> None:
    async def instead() -> None:
        await asyncio.sleep(0)
        add("stubbed")

    submit(pay_twice)
    tasks_recorder.stub(pay_twice.name, instead)
    with pytest.raises(AssertionError, match=r"at place 2 of 2:\n.*after its end\n.*check\(\) returned {'stubbed': 2}"):
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)


def test_threads_of_a_function_that_was_cut_off_do_not_keep_the_process(tasks_recorder: TasksRecorder) -> None:
    submit(starts_a_thread)
    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=lambda: None)
    assert len(never_ending) > 1
    assert all(thread.daemon for thread in never_ending)


def test_an_attempt_that_waits_for_what_the_one_before_has_open(tasks_recorder: TasksRecorder) -> None:
    locks = [asyncio.Lock()]

    def new_lock() -> None:
        locks[:] = [asyncio.Lock()]

    async def holds_a_lock() -> None:
        async with locks[0]:
            await asyncio.sleep(0)

    submit(plain_once)
    tasks_recorder.stub(plain_once.name, holds_a_lock)
    with pytest.raises(AssertionError, match="a durable task has not ended") as failure:
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=lambda: None, timeout=2)
    place, hint = failure.value.__notes__
    assert place.startswith("the worker was cut off while it ran cuts_plain_once, at place 1 of 2:\n")
    assert hint == "  hint: what the attempt had open at the cut may block the next one; on_cut= can close it"
    tasks_recorder.run_durable(cut="everywhere", restore=new_lock, check=lambda: None, on_cut=new_lock)


never_ending: list[threading.Thread] = []


@durable(name="cuts_starts_a_thread")
async def starts_a_thread() -> None:
    never_ending.append(threading.Thread(target=threading.Event().wait))
    never_ending[-1].start()
    await asyncio.sleep(0)


class Outbox(list[str]):
    def __call__(self) -> None:
        self.append("sent")


def test_a_stub_that_is_false_is_cut_in_place_of_the_function(tasks_recorder: TasksRecorder) -> None:
    outbox = Outbox()
    submit(pay_twice)
    tasks_recorder.stub(pay_twice.name, outbox)
    with pytest.raises(AssertionError, match=r"check\(\) returned \['sent', 'sent'\]"):
        tasks_recorder.run_durable(cut="everywhere", restore=outbox.clear, check=lambda: list(outbox))
    assert world == {}


def test_a_thread_ends_before_the_next_attempt(tasks_recorder: TasksRecorder) -> None:
    submit(in_thread)
    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=lambda: world.setdefault("overlaps", 0))
    assert world["overlaps"] == 0


@durable(name="cuts_in_thread")
async def in_thread() -> None:
    def work() -> None:
        if world.get("running"):
            add("overlaps")
        world["running"] = 1
        threading.Event().wait(0.02)
        world["running"] = 0

    await anyio.to_thread.run_sync(work)


def test_what_on_cut_raises_is_raised_with_the_place(tasks_recorder: TasksRecorder) -> None:
    def fail() -> None:
        raise OSError("the connection is closed already")

    submit(pay_once)
    tasks_recorder.allow_running(pay_once)
    with pytest.raises(ExceptionGroup) as failure:
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome, on_cut=fail)
    assert [str(error) for error in failure.value.exceptions] == ["the connection is closed already"]
    assert "cuts_pay_once, at place 0 of 3" in "\n".join(failure.value.__notes__)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_the_check_raises_on_an_event_loop_is_raised_with_the_place() -> None:
    checks: list[dict[str, int]] = []

    async def check() -> None:
        checks.append(outcome())
        if len(checks) == 2:
            raise LookupError

    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(pay_once)
            with pytest.raises(LookupError) as failure:
                await recorder.arun_durable(cut="everywhere", restore=reset, check=check)
    assert "cuts_pay_once, at place 0 of 3" in "\n".join(failure.value.__notes__)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_other_tasks_of_the_event_loop_are_not_cut() -> None:
    ended, stop = 0, asyncio.Event()

    async def step() -> None:
        nonlocal ended
        await asyncio.sleep(0)
        ended += 1

    async def others() -> None:
        while not stop.is_set():
            await asyncio.create_task(step())

    background = asyncio.create_task(others())
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(pay_once)
            await recorder.arun_durable(cut="everywhere", restore=reset, check=outcome)
    before = ended
    while ended == before:
        await asyncio.sleep(0)
    stop.set()
    await background


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_on_an_event_loop_with_coroutine_functions() -> None:
    seen: list[dict[str, int]] = []
    cuts: list[int] = []

    async def restore() -> None:
        await asyncio.sleep(0)
        reset()

    async def on_cut() -> None:
        await asyncio.sleep(0)
        cuts.append(1)

    async def check() -> dict[str, int]:
        await asyncio.sleep(0)
        seen.append(outcome())
        return outcome()

    before = asyncio.all_tasks()
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(pay_once)
            await recorder.arun_durable(cut="everywhere", restore=restore, check=check, on_cut=on_cut)
            assert (len(seen), len(cuts)) == (5, 4)
            await scheduler.schedule(pay_twice)
            with pytest.raises(AssertionError, match=r"at place 2 of 3:\n"):
                await recorder.arun_durable(cut="everywhere", restore=restore, check=check)
        assert asyncio.all_tasks() == before


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused() -> None:
    with record_tasks() as recorder:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(pay_once)
            restored: list[int] = []
            with pytest.raises(
                RuntimeError, match=r"^arun_durable\(.* needs asyncio.*: tasks_recorder\.run_durable\(cut="
            ):
                await recorder.arun_durable(cut="everywhere", restore=lambda: restored.append(1), check=outcome)
            assert restored == []


def test_the_line_that_the_refusal_on_trio_says_runs_the_tasks_of_trio_on_asyncio(
    tasks_recorder: TasksRecorder,
) -> None:
    async def main() -> None:
        async with TaskScheduler() as scheduler:
            await scheduler.schedule(group)

    anyio.run(main, backend="trio")
    tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)
    assert tasks_recorder.durable_runs.one(group).attempts == 2


@pytest.mark.parametrize(
    "options, text",
    [
        (
            {"cut": "everywhere", "check": outcome},
            r'run_durable(cut="everywhere") needs restore=: a function that brings',
        ),
        (
            {"cut": "everywhere", "restore": reset},
            r'run_durable(cut="everywhere") needs check=: a function that asserts',
        ),
        (
            {"cut": "everywhere", "restore": reset, "check": outcome, "times": 2},
            "times=2) runs each task again after each cut, so it takes no times=",
        ),
        ({"restore": reset}, 'restore= has a meaning with cut="everywhere" only'),
        ({"check": outcome}, 'check= has a meaning with cut="everywhere" only'),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tasks_recorder: TasksRecorder, options: dict[str, Any], text: str
) -> None:
    submit(plain_once)
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the text is compared below
        tasks_recorder.run_durable(**options)
    assert text in str(refused.value)


async def restore_later() -> None: ...


def test_a_coroutine_function_is_refused_without_an_event_loop(tasks_recorder: TasksRecorder) -> None:
    submit(plain_once)
    with pytest.raises(TypeError, match=r"^restore= of run_durable\(\) must be a plain function; for a coroutine func"):
        tasks_recorder.run_durable(cut="everywhere", restore=restore_later, check=outcome)


def test_no_durable_task_is_an_error(tasks_recorder: TasksRecorder) -> None:
    with pytest.raises(AssertionError, match=r"no durable task waits to be run$"):
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome)


def test_a_task_with_too_many_suspensions_is_an_error(tasks_recorder: TasksRecorder) -> None:
    submit(pay_once)
    with pytest.raises(ValueError, match=r"^cuts_pay_once is suspended 2 times, and limit=1: pass a higher limit"):
        tasks_recorder.run_durable(cut="everywhere", restore=reset, check=outcome, limit=1)
