"""
What a type checker knows about the recorder: read by mypy, pyright, ty and pyrefly, never run.

A line that has to be an error carries the `type: ignore` for it; one that is not needed is an error.
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, assert_type

from tasks_core import Clock, TaskScheduler
from tasks_testing import (
    Call,
    ExploredOrders,
    RecordedTask,
    Step,
    TaskEvent,
    TasksRecorder,
    TaskView,
    VirtualClock,
    call,
    call_like,
    finished,
    opened,
    record_tasks,
    scheduled,
    started,
)


async def send_email(to: str, *, urgent: bool = False) -> int:
    return len(to) + urgent


def resize(image: bytes, width: int) -> bytes:
    return image[:width]


class Mailer:
    async def send(self, to: str) -> float:
        return float(len(to))

    async def __call__(self, to: str) -> str:
        return to


def calls(mailer: Mailer) -> None:
    assert_type(call(send_email, "ann@x"), Call[int])
    assert_type(call(send_email, to="ann@x", urgent=True), Call[int])
    assert_type(call(resize, b"", 5), Call[bytes])
    assert_type(call(mailer.send, "ann@x"), Call[float])
    assert_type(call(mailer, "ann@x"), Call[str])
    assert_type(call(partial(resize, b""), 5), Call[bytes])
    assert_type(call_like(send_email, to="ann@x"), Call[int])
    assert_type(call_like(resize), Call[bytes])

    call(send_email, 5)  # type: ignore[call-overload]
    call(send_email)  # type: ignore[call-overload]
    call(send_email, "ann@x", "bob@x")  # type: ignore[call-overload]
    call(send_email, too="ann@x")  # type: ignore[call-overload]
    call(send_email, "ann@x", urgent="yes")  # type: ignore[arg-type]
    call(resize, b"", "5")  # type: ignore[call-overload]
    call(mailer.send, 5)  # type: ignore[call-overload]
    call("send_email")  # type: ignore[call-overload]


def tasks(recorder: TasksRecorder, mailer: Mailer) -> None:
    assert_type(recorder.one(send_email), RecordedTask[int])
    assert_type(recorder.one(resize), RecordedTask[bytes])
    assert_type(recorder.one(mailer.send), RecordedTask[float])
    assert_type(recorder.one(call(send_email, "ann@x")), RecordedTask[int])
    assert_type(recorder.one("charge"), RecordedTask[Any])
    assert_type(recorder.one(), RecordedTask[Any])
    assert_type(recorder.one(send_email).result, int)
    assert_type(recorder.one(resize).result, bytes)
    assert_type(recorder.after_response.of(send_email).request(0).in_state("failed"), TaskView)
    assert_type(recorder.durable_runs, TaskView)
    assert_type(recorder[0], RecordedTask[Any])
    assert_type(recorder.events, tuple[TaskEvent, ...])
    assert_type([task.name for task in recorder], list[str])
    recorder.one(5)  # type: ignore[call-overload]
    recorder.of(5)  # type: ignore[arg-type]
    recorder.in_state("late")  # type: ignore[arg-type]


def assertions(recorder: TasksRecorder) -> None:
    assert_type(recorder.assert_ran(call(send_email, "ann@x"), times=1), RecordedTask[Any])
    recorder.assert_failed(send_email, ConnectionError, match="down")
    recorder.assert_failed(send_email, (ConnectionError, OSError))
    recorder.assert_order("route_returned", opened("after_route"), send_email, call(resize, b"", 5), finished("charge"))
    assert_type(scheduled(send_email), Step)
    assert_type(started("charge"), Step)
    recorder.assert_failed(send_email, "ConnectionError")  # type: ignore[arg-type]
    recorder.assert_ran(send_email, 1)  # type: ignore[call-arg]
    opened("after_lunch")  # type: ignore[arg-type]


def control(recorder: TasksRecorder) -> None:
    assert_type(recorder.hold(send_email, keep=[resize]), AbstractContextManager[None])
    assert_type(recorder.release(send_email, count=1), list[RecordedTask[Any]])
    recorder.fail(send_email, ConnectionError("down"), times=None, after_run=True)
    recorder.stub(send_email)
    recorder.stub(send_email, resize)
    recorder.fail(send_email, "down")  # type: ignore[arg-type]
    recorder.stub(send_email, "nothing")  # type: ignore[arg-type]
    recorder.wait_for(send_email, "late")  # type: ignore[arg-type]


async def acheck() -> int:
    return 1


def cuts_and_orders(recorder: TasksRecorder) -> None:
    recorder.run_durable(times=2, timeout=1)
    recorder.run_durable(cut="everywhere", restore=lambda: None, check=lambda: 1, on_cut=lambda: None, limit=5)
    recorder.run_durable(cut="everywhere")  # type: ignore[call-overload]
    recorder.run_durable(cut="somewhere", restore=lambda: None, check=lambda: 1)  # type: ignore[call-overload]
    recorder.run_durable(times=2, cut="everywhere", restore=lambda: None, check=lambda: 1)  # type: ignore[call-overload]
    explored = recorder.explore_orders(lambda: None, restore=lambda: None, keep=[send_email], seed=1, order=[1, 0])
    assert_type(explored, ExploredOrders)
    assert_type(explored.run, int)
    recorder.explore_orders(lambda: None)  # type: ignore[call-arg]


async def acuts_and_orders(recorder: TasksRecorder) -> None:
    await recorder.arun_durable(cut="everywhere", restore=acheck, check=acheck)
    assert_type(await recorder.aexplore_orders(acheck, restore=acheck), ExploredOrders)


def outside_of_pytest() -> None:
    with record_tasks(mode="hold", virtual_time=True, failures="ignore", leaks="ignore", timeout=1) as recorder:
        assert_type(recorder, TasksRecorder)
    record_tasks(mode="fake")  # type: ignore[arg-type]
    record_tasks(failures="warn")  # type: ignore[arg-type]


async def time(recorder: TasksRecorder) -> None:
    clock: Clock = VirtualClock(start=5, auto=False)
    TaskScheduler(clock=clock)
    assert_type(recorder.clock.now, float)
    recorder.clock.advance(5)
    await recorder.clock.aadvance(5, while_running=True)
