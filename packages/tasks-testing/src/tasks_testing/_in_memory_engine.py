"""An engine in memory: the smallest that keeps the contract of engines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import anyio
from tasks_core import Receipt, current_task
from tasks_core.engines import (
    Capability,
    Delivery,
    DurableCall,
    DurableState,
    DurableStatus,
    Json,
    Redeliver,
    RunDelivery,
    Slots,
    registered_queues,
)


class InMemoryEngine:
    """
    An engine that keeps durable calls in memory: it acknowledges at once, and loses its calls with the process.

    `Worker(engine).run(stop)` delivers its calls as those of any engine. It has every capability, but a transaction may
    be any object and is not used: a call is submitted even if the transaction is rolled back.
    """

    name = "tasks-testing"
    capabilities: frozenset[Capability] = frozenset(("transaction", "delay", "dedup", "queues", "priority"))

    def __init__(self) -> None:
        self.calls: list[DurableCall] = []
        """The submitted calls, in order."""
        self._ids: dict[tuple[str, str, str], int] = {}
        self._places: list[str] = []
        self._statuses: list[DurableStatus] = []
        self._attempts: dict[int, tuple[int, int]] = {}  # of calls that failed: the next attempt, and failures so far
        self._due: dict[int, float] = {}  # of calls that wait for a worker: when, in seconds since the epoch
        self._changed = anyio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Any:
        """Accept any object as a transaction, because a test need not have a database."""
        return transaction

    async def submit(self, call: DurableCall, /, *, transaction: Any = None) -> Receipt:
        """Keep a call; return the receipt of the first one of its function and queue with its idempotency key."""
        known = self._ids.get(identity(call))
        if known is not None:
            return Receipt(self.name, str(known), call.idempotency_key, False, self.status)
        number = self._ids[identity(call)] = len(self.calls)
        submitting = current_task()
        self.calls.append(call)
        self._places.append("" if submitting is None else submitting.where)
        self._statuses.append(DurableStatus(DurableState.PENDING, 0))
        self._due[number] = call.not_before or 0.0
        self._notify()
        return Receipt(self.name, str(number), call.idempotency_key, True, self.status)

    async def status(self, number: str, /) -> DurableStatus:
        """Return the status of the call with the id *number* of its receipt."""
        if not number.isdecimal() or int(number) >= len(self._statuses):
            return DurableStatus(DurableState.UNKNOWN, 0)
        return self._statuses[int(number)]

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        """Deliver the calls that are due, those of the highest priority first, until *stopping* is set."""
        slots = _WorkerSlots(concurrency)
        async with anyio.create_task_group() as group:
            group.start_soon(self._wake_when, stopping)
            while not stopping.is_set():
                changed = self._changed
                while (number := self._take_due(slots)) is not None:
                    group.start_soon(self._deliver_once, run, number, slots)
                with anyio.move_on_after(self._seconds_until_due(slots)):
                    await changed.wait()

    def _notify(self) -> None:
        """Wake every worker that waits for a change."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _wake_when(self, stopping: anyio.Event) -> None:
        await stopping.wait()
        self._notify()

    def _take_due(self, slots: _WorkerSlots) -> int | None:
        """Take the first call that is due and has a slot, if there is one."""
        now = time.time()
        due = [number for number, at in self._due.items() if at <= now and slots.has_free(self.calls[number].queue)]
        if not due:
            return None
        number = min(due, key=lambda number: (-self.calls[number].priority, self._due[number]))
        del self._due[number]
        slots.taken[self.calls[number].queue] += 1
        return number

    def _seconds_until_due(self, slots: _WorkerSlots) -> float | None:
        """Return the seconds until a call is due for which there is a slot; `None` if only a change can help."""
        due = [at for number, at in self._due.items() if slots.has_free(self.calls[number].queue)]
        return max(0.0, min(due) - time.time()) if due else None

    async def _deliver_once(self, run: RunDelivery, number: int, slots: _WorkerSlots) -> None:
        async def report_progress(progress: Json) -> None:
            self._statuses[number] = replace(self._statuses[number], progress=progress)

        attempt, failures = self._attempts.pop(number, (1, 0))
        self._set_state(number, DurableState.RUNNING, attempt - 1)
        try:
            await run(Delivery(self.calls[number], attempt, failures, report_progress))
        except Redeliver as again:
            self._attempts[number] = (attempt + again.failed, failures + again.failed)
            self._due[number] = time.time() + again.delay
            self._set_state(number, DurableState.PENDING, attempt - 1 + again.failed)
        except Exception:
            self._set_state(number, DurableState.FAILED, attempt)
        else:
            self._set_state(number, DurableState.SUCCEEDED, attempt)
        finally:
            slots.taken[self.calls[number].queue] -= 1
            self._notify()

    def _set_state(self, number: int, state: DurableState, attempts: int) -> None:
        self._statuses[number] = replace(self._statuses[number], state=state, attempts=attempts)


class _WorkerSlots:
    """How many calls of which queue a worker may take."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.taken: Counter[str] = Counter()

    def has_free(self, queue: str) -> bool:
        if isinstance(self._slots, Mapping):
            return self.taken[queue] < self._slots.get(queue, 0)
        return queue in registered_queues() and self.taken.total() < self._slots


def identity(call: DurableCall) -> tuple[str, str, str]:
    """Return what an idempotency key belongs to, together with it."""
    return call.queue, call.name, call.idempotency_key
