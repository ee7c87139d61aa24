"""What a type checker knows about the methods for operators: read by mypy, pyright, ty and pyrefly, never run."""

from typing import assert_type

from tasks_core.engines import (
    DurableState,
    Engine,
    OperableEngine,
    QueueStatistics,
    StoredTaskDetails,
    StoredTaskPage,
)
from tasks_core.engines.procrastinate import ProcrastinateEngine


async def look(engine: ProcrastinateEngine) -> None:
    operated: OperableEngine = engine
    for numbers in await operated.statistics(count_to=10):
        assert_type(numbers, QueueStatistics)
        assert_type(numbers.oldest_waiting, float | None)
    assert_type(await engine.find(state=DurableState.FAILED, name="charge", older_than=60.0, limit=10), StoredTaskPage)
    assert_type(await engine.show("17"), StoredTaskDetails | None)
    await engine.find(state=1)  # type: ignore[arg-type]
    await engine.find(where="x")  # type: ignore[call-arg]  # no error for ty


async def act(engine: OperableEngine) -> None:
    assert_type(await engine.retry("17"), int)
    assert_type(await engine.cancel(name="charge", dry_run=True, on_progress=print), int)
    assert_type(await engine.discard(state=DurableState.CANCELLED), int)
    await engine.pause(queue="mail")
    await engine.retry(17)  # type: ignore[arg-type]
    await engine.pause("mail")  # type: ignore[call-arg]


async def any_engine(engine: Engine) -> None:
    await engine.statistics()  # type: ignore[attr-defined]
    if isinstance(engine, OperableEngine):
        await engine.statistics()
