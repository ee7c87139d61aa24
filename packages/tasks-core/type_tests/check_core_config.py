"""
What a type checker knows about the options of a task: read by mypy, pyright, ty and pyrefly, never run.

A line that has to be an error carries the `type: ignore` for it; one that is not needed is an error.
"""

from typing import Any

from tasks_core import Retry, Task, TaskConfig, TaskErrorHandler, TaskPhase, TaskScheduler, by_exception, chain, retry


def sync_handler(task: Task[Any], error: Exception) -> None: ...


async def async_handler(task: Task[Any], error: Exception) -> Retry | None:
    return Retry(delay=1.0) if task.attempts < 3 else None


def takes_too_little(task: Task[Any]) -> None: ...


def takes_one_kind_of_error(task: Task[Any], error: OSError) -> None: ...


def handlers() -> list[TaskErrorHandler | None]:
    TaskConfig(on_error=takes_too_little)  # type: ignore[arg-type]
    TaskConfig(on_error=takes_one_kind_of_error)  # type: ignore[arg-type]
    return [
        None,
        sync_handler,
        async_handler,
        retry(attempts=5, on=ConnectionError),
        retry(attempts=2, on=(OSError, ValueError)),
        chain(sync_handler, async_handler),
    ]


def options(scheduler: TaskScheduler) -> None:
    TaskConfig(name="charge", shield=True, on_error=sync_handler, when="error", timeout=1, delay=0.5)
    TaskConfig("charge")  # type: ignore[call-arg]
    TaskConfig(when="sometimes")  # type: ignore[arg-type]
    TaskConfig(timeout="1 s")  # type: ignore[arg-type]
    TaskConfig(shielded=True)  # type: ignore[call-arg]
    scheduler.task(when="sometimes")  # type: ignore[arg-type]
    scheduler.task(shielded=True)  # type: ignore[call-arg]
    TaskConfig().shield = True  # type: ignore[misc]
    retry(attempts="5", on=ConnectionError)  # type: ignore[arg-type]
    by_exception({OSError: sync_handler, ValueError: retry(attempts=2, on=ValueError)})


def phases(scheduler: TaskScheduler) -> None:
    batch = TaskPhase(scheduler, "after_commit")
    batch.open("error")
    batch.open("sometimes")  # type: ignore[arg-type]
    batch.discard()  # type: ignore[call-arg]
