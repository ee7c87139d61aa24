"""What a type checker knows about durable functions: read by mypy, pyright, ty and pyrefly, never run."""

from collections.abc import Sequence
from typing import assert_type

from tasks_core import (
    Cancel,
    DurableFunction,
    Receipt,
    RetryPolicy,
    Snooze,
    Task,
    TaskPhase,
    TaskScheduler,
    Worker,
    cron,
    durable,
    durable_context,
    every,
)
from tasks_core.engines import Engine, MeteredEngine, QueueStatistics


@durable
async def charge(order: int, *, currency: str = "EUR") -> bool:
    return order > 0 and bool(currency)


@durable(name="render", aliases=["draw"], retry=RetryPolicy(attempts=5, on=ConnectionError), shield=True)
def render(order: int, scale: float) -> bytes:
    return bytes(int(order * scale))


def still() -> None: ...


@durable(queue="payments", priority=10)
def refund(order: int) -> None:
    assert order


@durable(periodic=cron("0 3 * * *", timezone="Europe/Berlin"), catch_up=7200)
async def report(pages: int = 1) -> bool:
    return pages > 0


@durable
async def fetch(order: int) -> str | Snooze | Cancel:
    if order < 0:
        raise Cancel("there is no such order")
    return Snooze(60) if order else "fetched"


@durable(retry=None, on_error=lambda task, error: Snooze(60))
def sweep(order: int) -> Snooze | None:
    return Snooze(delay=1.5) if order else None


Snooze()  # type: ignore[call-arg]
Snooze("60")  # type: ignore[arg-type]
Cancel()  # type: ignore[call-arg]
Cancel(reason=17)  # type: ignore[arg-type]

assert_type(durable(periodic=every(hours=6))(still), DurableFunction[[], None, None])
durable(periodic="0 3 * * *")  # type: ignore[call-overload]
durable(periodic=every(hours=6), catch_up="an hour")  # type: ignore[call-overload]
durable(queue=7)  # type: ignore[call-overload]
durable(priority="high")  # type: ignore[call-overload]


def workers(engine: Engine) -> None:
    Worker(engine, queues={"payments": 4, "default": 32})
    Worker(engine, concurrency=4)
    Worker(engine, queues={"payments": "4"})  # type: ignore[dict-item]
    Worker(engine, queues=["payments"])  # type: ignore[arg-type]
    Worker(engine, telemetry={"tracing": False, "queue_interval": 60.0})
    Worker(engine, telemetry={"trace": False})  # type: ignore[arg-type]
    Worker(engine, telemetry={"queue_interval": "often"})  # type: ignore[arg-type]


async def measured(engine: MeteredEngine) -> None:
    assert_type(await engine.statistics_in_turn(30.0), Sequence[QueueStatistics])
    await engine.statistics_in_turn()  # type: ignore[call-arg]


def running() -> None:
    context = durable_context()
    assert_type((context.queue, context.receipt_id), tuple[str, str])
    context.queue = "mail"  # type: ignore[misc]


async def still_a_function() -> None:
    assert_type(render(1, 2.0), bytes)
    await charge("1")  # type: ignore[arg-type]
    assert_type(await charge(1), bool)


def scheduled(scheduler: TaskScheduler) -> None:
    batch = TaskPhase(scheduler, "after_commit")
    assert_type(scheduler.schedule(charge, 1, currency="USD"), Task[Receipt[bool]])
    assert_type(batch.schedule(render, 1, 2.0), Task[Receipt[bytes]])
    assert_type(batch.schedule(charge.configure(idempotency_key="k", transaction=object()), 1), Task[Receipt[bool]])
    assert_type(batch.schedule(charge.configure(queue="slow", priority=-5), 1), Task[Receipt[bool]])
    charge.configure(priority="high")  # type: ignore[arg-type]
    charge.configure(key="k")  # type: ignore[arg-type]
    assert_type(batch.task(key="k", on_conflict="queue").schedule(charge, 1), Task[Receipt[bool]])
    scheduler.schedule(charge)  # type: ignore[call-overload]
    scheduler.schedule(charge, "1")  # type: ignore[call-overload]
    batch.schedule(render.configure(idempotency_key="k"), 1)  # type: ignore[call-overload]


async def receipts(scheduler: TaskScheduler) -> None:
    receipt = await scheduler.schedule(charge, 1)
    assert_type(receipt.id, str)
    assert_type((await receipt.status()).attempts, int)
    assert_type(receipt.replaced, tuple[str, ...])
    assert_type(await receipt.result(timeout=1.0), bool)
    assert_type(await (await scheduler.schedule(render, 1, 2.0)).result(), bytes)
    assert_type(await (await scheduler.schedule(fetch, 1)).result(), str)
    await (await scheduler.schedule(sweep, 1)).result()
    await receipt.result("1")  # type: ignore[arg-type]
    other: Receipt[str] = receipt  # type: ignore[assignment]
    assert_type(other, Receipt[str])
    wider: Receipt[object] = receipt
    await wider.result()
    assert_type(await receipt.cancel(), bool)
    assert_type((await receipt.status()).errors[-1].traceback, str)


def without_an_engine() -> None:
    TaskScheduler(engine=None, without_engine="memory")
    TaskScheduler(without_engine="sqlite")  # type: ignore[arg-type]


async def progress() -> None:
    context = durable_context()
    for page in range(context.progress or 0, 10):
        await context.checkpoint({"page": page})
    context.checkpoint_from_thread([1, 2.5, None])
    await context.checkpoint()  # type: ignore[call-arg]
    await context.checkpoint(object())  # type: ignore[arg-type]
    context.checkpoint_from_thread({1})  # type: ignore[arg-type]
    context.progress = 1  # type: ignore[misc]


class AsyncSession:
    async def commit(self) -> None: ...


class Session:
    def commit(self) -> None: ...


async def completed(session: AsyncSession, plain: Session) -> None:
    context = durable_context()
    assert_type(await context.complete(session), None)
    await context.complete(session, result={"pages": 17})
    await context.complete(plain)  # type: ignore[misc]
    await context.complete(object())  # type: ignore[call-overload]
    await context.complete(session, 17)  # type: ignore[call-overload]


def completed_by_a_plain_function(session: Session) -> None:
    context = durable_context()
    context.complete(session)
    context.complete(session, result=17)
    context.complete("session")  # type: ignore[call-overload]
