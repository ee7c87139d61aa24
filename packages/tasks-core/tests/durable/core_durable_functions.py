"""Durable functions at the top of a module, where a worker finds them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest
from tasks_core import DurableContext, Retry, RetryPolicy, Task, current_task, durable, durable_context

if TYPE_CHECKING:
    from decimal import Decimal

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
ANN = UUID(int=7)

ran: list[Any] = []
contexts: list[DurableContext] = []
reported: list[tuple[str, int, str]] = []


@dataclass
class Line:
    article: int
    price: float


@durable
async def note(text: str) -> None:
    ran.append(text)
    contexts.append(durable_context())


@durable(name="plain", aliases=("old-plain",), timeout=30.0)
def plain(number: int, *more: int, factor: float = 1.0, **labels: str) -> None:
    ran.append((number, more, factor, labels, threading.current_thread() is threading.main_thread()))


@durable
async def rich(when: datetime, who: UUID, lines: list[Line], tags: set[int]) -> None:
    ran.append((when, who, lines, tags))


@durable
async def untyped(value) -> None:  # type: ignore[no-untyped-def]  # what an annotation is missing from
    ran.append(value)


def report(task: Task[Any], exception: Exception) -> bool:
    reported.append((task.name, task.attempts, type(exception).__name__))
    return True


@durable(retry=RetryPolicy(attempts=3, backoff=0.0, on=(ConnectionError, "builtins:TimeoutError")), on_error=report)
async def flaky(failures: int, error: str = "ConnectionResetError") -> None:
    if durable_context().attempt <= failures:
        raise {"ConnectionResetError": ConnectionResetError, "TimeoutError": TimeoutError, "KeyError": KeyError}[error]
    ran.append("flaky")


@durable(retry=None, on_error=lambda _task, _exception: Retry(0.25))
async def asks_again() -> None:
    if durable_context().attempt == 1:
        raise ValueError
    ran.append("asked again")


@durable(shield=True)
async def shielded(path: str) -> None:
    await _wait(path)


@durable
async def unshielded(path: str) -> None:
    await _wait(path)


@durable
async def hands_on(text: str) -> None:
    context = durable_context()
    receipt = await context.scheduler.schedule(note.configure(idempotency_key=f"{context.idempotency_key}-note"), text)
    here = await context.scheduler.schedule(str.upper, text)
    ran.append((receipt.idempotency_key, here, context.scheduler.stopping.is_set()))


@durable
async def reports() -> None:
    await durable_context().report_progress({"done": 1})
    ran.append("reported")


@durable
async def cancels_itself() -> None:
    task = current_task()
    assert task is not None
    task.cancel()
    await anyio.lowlevel.checkpoint()


@durable
async def odd(thread: threading.Thread) -> None: ...


@durable
async def hidden(price: Decimal) -> None: ...


waiting: dict[str, anyio.Event] = {}
released: dict[str, anyio.Event] = {}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Empty the records behind each test; for every test of a module that imports it."""
    yield
    for record in (ran, contexts, reported, waiting, released):
        record.clear()


async def _wait(name: str) -> None:
    waiting[name].set()
    await released[name].wait()
    ran.append(name)
