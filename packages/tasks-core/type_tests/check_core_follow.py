"""What a type checker says about following a task."""

from typing import assert_type

from tasks_core import Task, TaskScheduler, TaskState, emit, report
from tasks_core.types import EmittedEvent, KeptTask, TaskFollower, TaskUpdate


async def generate(words: int) -> str:
    emit({"token": "Hello", "logprob": -0.5})
    emit([1, "a", None])
    report(words)
    report({"done": 1, "of": words})
    emit(object())  # type: ignore[arg-type]
    report({1, 2})  # type: ignore[arg-type]
    emit()  # type: ignore[call-arg]
    emit({}, {})  # type: ignore[call-arg]
    return "done"


async def follow(scheduler: TaskScheduler, task: Task[str]) -> None:
    assert_type(task.follow(), TaskFollower)
    async for update in task.follow(after=3):
        assert_type(update, TaskUpdate)
        assert_type(update.events, tuple[EmittedEvent, ...])
        assert_type(update.state, TaskState)
        assert_type(update.events[0].number, int)
    task.follow("3")  # type: ignore[arg-type]
    task.emit({"token": "Hello"})
    task.report(0.5)
    kept_id = scheduler.keep(task, owner="ann")
    assert_type(kept_id, str)
    assert_type(scheduler.find_kept(kept_id), KeptTask | None)
    scheduler.keep(task, owner=3)  # type: ignore[arg-type]
