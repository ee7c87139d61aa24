"""Durable tasks in a test: kept without a server, and run in the process of the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio
from tasks_core import (
    Capability,
    Delivery,
    DurableState,
    DurableStatus,
    Json,
    Receipt,
    Redeliver,
    RunDelivery,
    TaskCall,
    Worker,
)


class KeptCalls:
    """The engine of a recording: it has every capability, acknowledges at once, and forgets when the test ends."""

    name = "tasks-testing"
    capabilities: frozenset[Capability] = frozenset(("transaction", "delay", "dedup", "status", "progress"))

    def __init__(self) -> None:
        self.calls: list[TaskCall] = []
        self._ids: dict[str, int] = {}
        self._states: list[DurableStatus] = []
        self._waiting: list[int] = []
        self._times = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def join(self, transaction: Any, call: TaskCall, wanted: Callable[[], bool], /) -> Any:
        return transaction  # whatever it is: a test need not have the real one

    async def submit(self, call: TaskCall, /, *, transaction: Any = None) -> Receipt:
        known = self._ids.get(call.key)
        if known is not None:
            return Receipt(self.name, str(known), call.key, False, self.status)
        number = self._ids[call.key] = len(self.calls)
        self.calls.append(call)
        self._states.append(DurableStatus(DurableState.WAITING, 0))
        self._waiting.append(number)
        return Receipt(self.name, str(number), call.key, True, self.status)

    async def status(self, number: str) -> DurableStatus:
        return self._states[int(number)]

    async def run(self, times: int) -> None:
        """Run what is waiting, *times* times each; also what those tasks hand over."""
        self._times = times
        await Worker(self).run(anyio.Event())

    async def work(self, run: RunDelivery, /, *, concurrency: int, stopping: anyio.Event) -> None:
        while self._waiting:
            number = self._waiting.pop(0)
            for _ in range(self._times):
                await self._deliver(run, number)

    async def _deliver(self, run: RunDelivery, number: int) -> None:
        """Deliver until the task succeeds or fails for good; pauses take no time."""

        async def report_progress(progress: Json) -> None:
            self._states[number] = DurableStatus(DurableState.RUNNING, counts["attempts"], progress)

        counts: Counter[str] = Counter()
        while True:
            counts["attempts"] += 1
            delivery = Delivery(self.calls[number], counts["attempts"], counts["failures"], report_progress)
            try:
                await run(delivery)
            except Redeliver as again:
                if again.failed:
                    counts["failures"] += 1
                    continue
                state = DurableState.WAITING  # no function of this name in this process
            except Exception:
                state = DurableState.FAILED  # reported as what became of the task that ran it
            else:
                state = DurableState.SUCCEEDED
            break
        self._states[number] = DurableStatus(state, counts["attempts"], self._states[number].progress)
