"""
What a type checker knows about `schedule()`: read by mypy, pyright, ty and pyrefly, never run.

A line that has to be an error carries the `type: ignore` for it. The checkers complain about an ignore that is not
needed, so a signature that gets looser fails here.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import assert_type

from tasks_core import ScheduleTarget, Task, TaskPhase, TaskScheduler


async def charge(order: int, *, currency: str = "EUR") -> bool:
    return order > 0 and bool(currency)


def render(order: int, scale: float) -> bytes:
    return bytes(int(order * scale))


def no_result() -> None: ...


class Mailer:
    async def send(self, address: str) -> int:
        return len(address)

    def render(self, address: str) -> str:
        return address

    @classmethod
    async def connect(cls, host: str) -> "Mailer":
        return cls()

    @staticmethod
    def quote(address: str) -> str:
        return address


class SyncCall:
    def __call__(self, number: int) -> str:
        return str(number)


class AsyncCall:
    async def __call__(self, number: int) -> str:
        return str(number)


mailer = Mailer()


def result_types(scheduler: TaskScheduler) -> None:
    assert_type(scheduler.schedule(charge, 1), Task[bool])
    assert_type(scheduler.schedule(charge, 1, currency="USD"), Task[bool])
    assert_type(scheduler.schedule(render, 1, 2.0), Task[bytes])
    assert_type(scheduler.schedule(render, order=1, scale=2.0), Task[bytes])
    assert_type(scheduler.schedule(no_result), Task[None])
    assert_type(scheduler.schedule(mailer.send, "a@b.c"), Task[int])
    assert_type(scheduler.schedule(mailer.render, "a@b.c"), Task[str])
    assert_type(scheduler.schedule(Mailer.connect, "localhost"), Task[Mailer])
    assert_type(scheduler.schedule(Mailer.quote, "a@b.c"), Task[str])
    assert_type(scheduler.schedule(SyncCall(), 1), Task[str])
    assert_type(scheduler.schedule(AsyncCall(), 1), Task[str])
    assert_type(scheduler.schedule(partial(render, 1), 2.0), Task[bytes])
    assert_type(scheduler.schedule(partial(render, 1, 2.0)), Task[bytes])
    assert_type(scheduler.schedule(partial(charge, 1)), Task[bool])
    assert_type(scheduler.schedule(partial(charge, currency="USD"), 1), Task[bool])


def wrong_arguments(scheduler: TaskScheduler) -> None:
    scheduler.schedule(charge)  # type: ignore[call-overload]
    scheduler.schedule(charge, "1")  # type: ignore[call-overload]
    scheduler.schedule(charge, 1, 2)  # type: ignore[call-overload]
    scheduler.schedule(charge, 1, currency=978)  # type: ignore[arg-type]
    scheduler.schedule(charge, 1, colour="red")  # type: ignore[call-arg]
    scheduler.schedule(render, 1)  # type: ignore[call-overload]
    scheduler.schedule(render, 1, "2.0")  # type: ignore[call-overload]
    scheduler.schedule(no_result, 1)  # type: ignore[call-overload]
    scheduler.schedule(mailer.send, 1)  # type: ignore[call-overload]
    scheduler.schedule(mailer.render)  # type: ignore[call-overload]
    scheduler.schedule(SyncCall(), "1")  # type: ignore[call-overload]
    scheduler.schedule(AsyncCall(), "1")  # type: ignore[call-overload]


def not_callable(scheduler: TaskScheduler) -> None:
    scheduler.schedule(charge(1))  # type: ignore[call-overload]
    scheduler.schedule("charge", 1)  # type: ignore[call-overload]
    scheduler.schedule()  # type: ignore[call-overload]


def configured(scheduler: TaskScheduler) -> None:
    payment = scheduler.task(name="charge", shield=True, timeout=30, when="always")
    assert_type(payment, ScheduleTarget)
    assert_type(payment.schedule(charge, 1), Task[bool])
    assert_type(payment.task(delay=0.5).schedule(render, 1, 2.0), Task[bytes])
    payment.schedule(charge, "1")  # type: ignore[call-overload]
    payment.task(delay=0.5).schedule(render, 1)  # type: ignore[call-overload]


def batches(scheduler: TaskScheduler) -> None:
    after_commit = TaskPhase(scheduler, "after_commit")
    assert_type(after_commit.schedule(charge, 1, currency="USD"), Task[bool])
    assert_type(after_commit.task(shield=True).schedule(render, 1, 2.0), Task[bytes])
    after_commit.schedule(charge, "1")  # type: ignore[call-overload]
    after_commit.task(shield=True).schedule(render, 1)  # type: ignore[call-overload]


async def results(scheduler: TaskScheduler) -> None:
    task = scheduler.schedule(charge, 1)
    assert_type(await task, bool)
    assert_type(task.result(), bool)
    assert_type(task.exception, BaseException | None)


def any_callable(scheduler: TaskScheduler, func: Callable[[int], Awaitable[str]]) -> None:
    # Only what is a coroutine function for certain has its result awaited: this returns something to await.
    assert_type(scheduler.schedule(func, 1), Task[Awaitable[str]])
