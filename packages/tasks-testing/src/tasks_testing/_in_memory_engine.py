"""An engine in memory: the smallest that keeps the contract of engines."""

from __future__ import annotations

import time
from collections.abc import Callable
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
)


class InMemoryEngine:
    """
    An engine that keeps durable calls in memory: it acknowledges at once, and loses its calls with the process.

    `Worker(engine).run(stop)` delivers its calls as those of any engine. It has every capability, but a transaction may
    be any object and is not used: a call is submitted even if the transaction is rolled back.
    """

    name = "tasks-testing"
    capabilities: frozenset[Capability] = frozenset(("transaction", "delay", "dedup"))

    def __init__(self) -> None:
        self.calls: list[DurableCall] = []
        """The submitted calls, in order."""
        self._ids: dict[str, int] = {}
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
        """Keep a call; return the receipt of the first call with the same idempotency key."""
        known = self._ids.get(call.idempotency_key)
        if known is not None:
            return Receipt(self.name, str(known), call.idempotency_key, False, self.status)
        number = self._ids[call.idempotency_key] = len(self.calls)
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

    async def work(self, run: RunDelivery, /, *, concurrency: int, stopping: anyio.Event) -> None:
        """Deliver the calls that are due, the longest due first, until *stopping* is set."""
        places = anyio.CapacityLimiter(concurrency)
        async with anyio.create_task_group() as group:
            group.start_soon(self._wake_when, stopping)
            while not stopping.is_set():
                changed = self._changed
                while places.available_tokens and (number := self._take_due()) is not None:
                    places.acquire_on_behalf_of_nowait(number)
                    group.start_soon(self._deliver_once, run, number, places)
                with anyio.move_on_after(self._seconds_until_due()):
                    await changed.wait()

    def _notify(self) -> None:
        """Wake every worker that waits for a change."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _wake_when(self, stopping: anyio.Event) -> None:
        await stopping.wait()
        self._notify()

    def _take_due(self) -> int | None:
        """Take the call that has been due for longest, if one is due now."""
        number = min(self._due, key=lambda number: self._due[number], default=None)
        if number is None or self._due[number] > time.time():
            return None
        del self._due[number]
        return number

    def _seconds_until_due(self) -> float | None:
        return max(0.0, min(self._due.values()) - time.time()) if self._due else None

    async def _deliver_once(self, run: RunDelivery, number: int, places: anyio.CapacityLimiter) -> None:
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
            places.release_on_behalf_of(number)
            self._notify()

    def _set_state(self, number: int, state: DurableState, attempts: int) -> None:
        self._statuses[number] = replace(self._statuses[number], state=state, attempts=attempts)
