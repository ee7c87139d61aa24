"""An engine for tests that need no server: it keeps calls in a list, and does what it is told."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio
from tasks_core import Cancel, Receipt, Worker
from tasks_core.engines import (
    AttemptRecord,
    Capability,
    Delivery,
    DurableCall,
    DurableEnd,
    DurableState,
    DurableStatus,
    EngineCapabilityError,
    EngineUnavailableError,
    Json,
    Redeliver,
    RunDelivery,
    Slots,
    StoredResult,
    registered_queues,
)


@dataclass
class Kept:
    """A call, and what has become of it."""

    call: DurableCall
    due: float
    transaction: Any = None
    failures: int = 0
    status: DurableStatus = field(default_factory=lambda: DurableStatus(DurableState.PENDING, 0))
    result: StoredResult | None = None
    scope: anyio.CancelScope | None = None

    def set(self, state: DurableState, attempts: int = 0) -> None:
        self.status = replace(self.status, state=state, attempts=self.status.attempts + attempts)

    def note_error(self, error: BaseException, attempt: int, began: float) -> None:
        record = AttemptRecord.of(error, attempt=attempt, began=began, ended=time.time())
        self.status = replace(self.status, errors=record.added_to(self.status.errors))


class ListEngine:
    """
    Acknowledges at once, unless `down` is set, or when `gate` opens; runs the calls in its list in `work()`.

    It has what each engine needs, none of the optional protocols, and no keys. It keeps the contract of engines.
    """

    name = "list"
    capabilities: frozenset[Capability] = frozenset(("transaction", "delay", "dedup", "queues", "priority"))

    def __init__(self, *, down: bool = False) -> None:
        self.down = down
        self.gate: anyio.Event | None = None
        self.calls: list[DurableCall] = []  # that wait for a worker; a test may append to it
        self.transactions: list[Any] = []
        self.uncommitted: set[Any] = set()  # transactions whose calls are not delivered yet
        self.log: list[str] = []
        self.progress: list[Json] = []
        self.on_submit: Callable[[DurableCall], object] | None = None
        self._kept: dict[str, Kept] = {}  # by the ids of their receipts
        self._users = 0

    async def __aenter__(self) -> Self:
        self._users += 1
        if self._users == 1:
            self.log.append("entered")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._users -= 1
        if not self._users:
            self.log.append("left")

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Any:
        if not isinstance(transaction, str):
            raise EngineCapabilityError("transaction= must be a text here")
        return transaction

    async def submit(self, call: DurableCall, /, *, transaction: Any = None) -> Receipt[Any]:
        self.log.append(f"asked {call.name}")
        if self.on_submit is not None:
            self.on_submit(call)
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise EngineUnavailableError("the list is away")
        for number, kept in self._kept.items() if call.dedup else ():
            if identity(kept.call) == identity(call):
                return Receipt(self.name, number, call.idempotency_key, created=False, source=self)
        self.calls.append(call)
        self.transactions.append(transaction)
        self.log.append(f"has {call.name}")
        return Receipt(self.name, self._keep(call, transaction), call.idempotency_key, source=self)

    def roll_back(self, transaction: Any) -> None:
        """Forget the calls of a transaction."""
        for number, kept in list(self._kept.items()):
            if kept.transaction == transaction:
                self.calls.remove(kept.call)
                del self._kept[number]

    def _keep(self, call: DurableCall, transaction: Any = None) -> str:
        """Return the id of a call, which may be new."""
        for number, kept in self._kept.items():
            if kept.call is call:
                return number
        number = str(len(self._kept) + 1)
        self._kept[number] = Kept(call, call.not_before or 0.0, transaction)
        return number

    # ---- what receipts ask ----

    async def status(self, receipt_id: str, /) -> DurableStatus:
        kept = self._kept.get(receipt_id)
        return DurableStatus(DurableState.UNKNOWN, 0) if kept is None else kept.status

    async def ended(self, receipt_id: str, /) -> DurableEnd:
        while (status := await self.status(receipt_id)).state in (DurableState.PENDING, DurableState.RUNNING):
            await anyio.sleep(0.005)
        if status.state is DurableState.UNKNOWN:
            return DurableEnd(status)
        kept = self._kept[receipt_id]
        return DurableEnd(status, kept.call.name, kept.result)

    async def cancel(self, receipt_id: str, /) -> int:
        state = (await self.status(receipt_id)).state
        if state is DurableState.PENDING:
            kept = self._kept[receipt_id]
            self.calls.remove(kept.call)
            kept.set(DurableState.CANCELLED)
        elif state is DurableState.RUNNING and (scope := self._kept[receipt_id].scope) is not None:
            scope.cancel()
        return int(state in (DurableState.PENDING, DurableState.RUNNING))

    # ---- a worker ----

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        taken: Counter[str] = Counter()
        async with anyio.create_task_group() as group:
            while not stopping.is_set():
                while (call := self._next(taken, concurrency)) is not None:
                    self.calls.remove(call)
                    taken[call.queue] += 1
                    group.start_soon(self._deliver, run, call, taken)
                await anyio.sleep(0.005)

    def _next(self, taken: Counter[str], slots: Slots) -> DurableCall | None:
        """Return the call that a worker delivers next, which has taken slots of *slots* already."""

        def is_free(queue: str) -> bool:
            if isinstance(slots, Mapping):
                return taken[queue] < slots.get(queue, 0)
            return queue in registered_queues() and taken.total() < slots

        def is_due(call: DurableCall) -> bool:
            kept = self._kept[self._keep(call)]
            return kept.due <= time.time() and kept.transaction not in self.uncommitted and is_free(call.queue)

        due = [] if self.down else [call for call in self.calls if is_due(call)]
        return max(due, key=lambda call: call.priority, default=None)

    async def _deliver(self, run: RunDelivery, call: DurableCall, taken: Counter[str]) -> None:
        kept = self._kept[self._keep(call)]
        kept.set(DurableState.RUNNING)
        kept.scope = anyio.CancelScope()
        began, attempt = time.time(), kept.status.attempts + 1
        try:
            with kept.scope:
                progress = kept.status.progress
                kept.result = await run(
                    Delivery(call, attempt, kept.failures, partial(self._report, kept), progress=progress)
                )
            if kept.scope.cancelled_caught:
                self.log.append(f"cancelled {call.name}")
                kept.set(DurableState.CANCELLED)
            else:
                self.log.append(f"done {call.name}")
                kept.set(DurableState.SUCCEEDED, attempts=1)
        except Cancel as cancel:
            self.log.append(f"cancelled {call.name}")
            if cancel.__cause__ is not None:
                kept.note_error(cancel.__cause__, attempt, began)
            kept.status = replace(kept.status, reason=cancel.reason)
            kept.set(DurableState.CANCELLED, attempts=1)
        except Redeliver as again:
            self.log.append(f"again {call.name} in {again.delay:g}{' failed' if again.failed else ''}")
            if again.failed:
                kept.failures += 1
                kept.note_error(again.__cause__ or again, attempt, began)
            self._put_back(kept, again.delay, again.failed)
        except Exception as error:
            self.log.append(f"failed {call.name} {type(error).__name__}")
            kept.note_error(error, attempt, began)
            kept.set(DurableState.FAILED, attempts=1)
        except BaseException:  # this worker is cancelled, and another one gets the call
            self._put_back(kept, 0.0, 0)
            raise
        finally:
            taken[call.queue] -= 1

    def _put_back(self, kept: Kept, delay: float, attempts: int) -> None:
        if kept.scope is not None and kept.scope.cancel_called:
            kept.set(DurableState.CANCELLED, attempts)
            return
        kept.due = time.time() + delay
        kept.set(DurableState.PENDING, attempts)
        self.calls.append(kept.call)

    async def _report(self, kept: Kept, progress: Json) -> None:
        self.progress.append(progress)
        kept.status = replace(kept.status, progress=progress)


def identity(call: DurableCall) -> tuple[str, str, str]:
    """Return what an idempotency key belongs to, together with it."""
    return call.queue, call.name, call.idempotency_key


@asynccontextmanager
async def working(engine: ListEngine, **options: Any) -> AsyncIterator[anyio.Event]:
    """A worker, stopped at the end of the block at the latest."""
    stop = anyio.Event()
    async with engine:
        engine.log.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(Worker(engine, **options).run, stop)
            yield stop
            stop.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a worker of this process comes to do."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)
