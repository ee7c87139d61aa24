"""Durable tasks in a test: kept without a server, and run in the process of the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio
from tasks_core import Receipt, Worker, current_task
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

from tasks_testing._recording.durable_run import DurableRun
from tasks_testing._recording.recording import Recording


class KeptCalls:
    """The engine of a recording: it has every capability, acknowledges at once, and forgets when the test ends."""

    name = "tasks-testing"
    capabilities: frozenset[Capability] = frozenset(("transaction", "delay", "dedup"))

    def __init__(self, recording: Recording) -> None:
        self.calls: list[DurableCall] = []
        self._recording = recording
        self._ids: dict[str, int] = {}
        self._places: list[str] = []
        self._states: list[DurableStatus] = []
        self._times = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Any:
        return transaction  # whatever it is: a test need not have the real one

    async def submit(self, call: DurableCall, /, *, transaction: Any = None) -> Receipt:
        known = self._ids.get(call.idempotency_key)
        if known is not None:
            return Receipt(self.name, str(known), call.idempotency_key, False, self.status)
        handing_over = current_task()
        assert handing_over is not None, "an engine is given calls by the tasks that hand them over"
        number = self._ids[call.idempotency_key] = len(self.calls)
        self.calls.append(call)
        self._places.append(handing_over.where)
        self._states.append(DurableStatus(DurableState.PENDING, 0))
        return Receipt(self.name, str(number), call.idempotency_key, True, self.status)

    async def status(self, number: str) -> DurableStatus:
        return self._states[int(number)]

    async def run(self, times: int) -> None:
        """Run what is waiting, *times* times each; also what those tasks hand over."""
        self._times = times
        async with self:
            await Worker(self, shield_timeout=0).run(anyio.Event())

    async def work(self, run: RunDelivery, /, *, concurrency: int, stopping: anyio.Event) -> None:
        while not stopping.is_set() and (number := self._next()) is not None:
            for _ in range(self._times):
                await self._deliver(run, number)

    def _next(self) -> int | None:
        waiting = (number for number, status in enumerate(self._states) if status.state is DurableState.PENDING)
        return next(waiting, None)

    async def _deliver(self, run: RunDelivery, number: int) -> None:
        """Deliver until the task succeeds or fails for good; pauses take no time."""

        async def report_progress(progress: Json) -> None:
            self._states[number] = DurableStatus(DurableState.RUNNING, counts["attempts"], progress)

        counts: Counter[str] = Counter()
        durable_run = DurableRun(self._places[number])
        while True:
            counts["attempts"] += 1
            delivery = Delivery(self.calls[number], counts["attempts"], counts["failures"], report_progress)
            try:
                with durable_run.next_attempt():
                    await run(delivery)
            except Redeliver as again:
                if again.failed:
                    counts["failures"] += 1
                    self._recording.attempt_failed(durable_run, again.delay)
                    continue
                state = DurableState.PENDING  # the worker was stopped
            except Exception:
                if durable_run.task is None:
                    raise
                state = DurableState.FAILED
            else:
                state = DurableState.SUCCEEDED
            break
        self._recording.run_ended(durable_run)
        self._states[number] = DurableStatus(state, counts["attempts"], self._states[number].progress)
