"""Services, periodic tasks and keys have the types of the functions that they run; each ignored line must fail."""

from typing import assert_type

from tasks_core import PeriodicTask, Service, Task, TaskRegistry, TaskScheduler, cron, every


async def consume(queue: str, size: int) -> None: ...


async def report() -> int:
    return 1


def export(path: str) -> bytes:
    return path.encode()


def check_services(scheduler: TaskScheduler) -> None:
    assert_type(scheduler.service(consume, "orders", 5, grace=2), Service)
    scheduler.service(consume, "orders")  # type: ignore[arg-type]  # no error for ty
    scheduler.service(consume, "orders", "5")  # type: ignore[arg-type]  # no error for ty
    scheduler.service(report, grace="2")  # type: ignore[arg-type]


def check_periodic(scheduler: TaskScheduler) -> None:
    assert_type(scheduler.periodic(every(minutes=10)).schedule(report), PeriodicTask[int])
    assert_type(scheduler.periodic(cron("0 3 * * *")).task(timeout=5).schedule(export, "a"), PeriodicTask[bytes])
    scheduler.periodic(every(minutes=10)).schedule(export, 1)  # type: ignore[call-overload]
    scheduler.periodic(10)  # type: ignore[arg-type]
    every(10)  # type: ignore[call-arg]


def check_keys(scheduler: TaskScheduler) -> None:
    assert_type(scheduler.task(key="report", on_conflict="queue").schedule(report), Task[int])
    scheduler.task(key="report", on_conflict="maybe")  # type: ignore[arg-type]
    scheduler.task(key=5)  # type: ignore[arg-type]


registry = TaskRegistry()


@registry.periodic(every(hours=1))
async def nightly() -> int:
    return 1


async def check_registry() -> None:
    assert_type(await nightly(), int)
