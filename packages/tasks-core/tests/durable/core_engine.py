"""An engine for tests that need no server: it keeps calls in a list, and does what it is told."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio
from tasks_core import Receipt
from tasks_core.engines import (
    Capability,
    Delivery,
    DurableCall,
    EngineCapabilityError,
    EngineUnavailableError,
    Json,
    Redeliver,
    RunDelivery,
    Slots,
)


class ListEngine:
    """Acknowledges at once, unless `down` is set, or when `gate` opens; runs its calls in `work()`, one by one."""

    name = "list"
    capabilities: frozenset[Capability] = frozenset(("transaction", "delay", "dedup", "queues", "priority"))

    def __init__(self, *, down: bool = False) -> None:
        self.down = down
        self.gate: anyio.Event | None = None
        self.calls: list[DurableCall] = []
        self.transactions: list[object] = []
        self.log: list[str] = []
        self.progress: list[Json] = []
        self.on_submit: Callable[[DurableCall], object] | None = None
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
        known = [other.idempotency_key for other in self.calls]
        if call.dedup and call.idempotency_key in known:
            number = known.index(call.idempotency_key) + 1
            return Receipt(self.name, str(number), call.idempotency_key, created=False)
        self.calls.append(call)
        self.transactions.append(transaction)
        self.log.append(f"has {call.name}")
        return Receipt(self.name, str(len(self.calls)), call.idempotency_key)

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        attempts: dict[str, list[int]] = {}
        async with anyio.create_task_group() as group:
            while not stopping.is_set():
                while self.calls:
                    group.start_soon(self._deliver, run, self.calls.pop(0), attempts)
                await anyio.sleep(0.005)

    async def _deliver(self, run: RunDelivery, call: DurableCall, attempts: dict[str, list[int]]) -> None:
        counts = attempts.setdefault(call.idempotency_key, [1, 0])
        try:
            await run(Delivery(call, counts[0], counts[1], self._report))
        except Redeliver as again:
            self.log.append(f"again {call.name} in {again.delay:g}{' failed' if again.failed else ''}")
            if again.failed:
                counts[0] += 1
                counts[1] += 1
                self.calls.append(call)
        except Exception as error:
            self.log.append(f"failed {call.name} {type(error).__name__}")
        else:
            self.log.append(f"done {call.name}")

    async def _report(self, progress: Json) -> None:
        self.progress.append(progress)
