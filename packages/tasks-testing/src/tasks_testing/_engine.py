"""The engine of a recording: durable tasks run on request, and their deliveries are in the record."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
from tasks_core import Cancel, Receipt, Worker, current_task
from tasks_core.engines import (
    Delivery,
    DurableCall,
    DurableState,
    DurableStatus,
    Json,
    NotUnderstood,
    Redeliver,
    RunDelivery,
    Slots,
)
from tasks_core.frameworks import Provider

from ._completion import WatchedCompletion
from ._in_memory_engine import Events, InMemoryEngine, Lines
from ._recording.cut import Cut, WorkerKilled
from ._recording.durable_run import DurableRun
from ._recording.recording import Recording, RecordMark

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class RecordedEngine(InMemoryEngine):
    """
    An engine that delivers on request: `run()` delivers what was submitted, and returns.

    It delivers one call after another, and retries without a pause. Its deliveries are recorded, and may be cut off.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording
        self._put_back: set[int] = set()
        self._snoozed: dict[int, DurableRun] = {}
        self._times = 1
        self._provider: Provider | None = None
        self.cut_for: Callable[[int], Cut | None] = _no_cut
        """Returns the cut for the first attempt of a delivery, by the number of the delivery in this run."""
        self.on_cut: Callable[[], object] = _do_nothing
        """Called, and awaited if possible, between a cut and the next attempt."""
        self.deliveries: list[DurableRun] = []
        """The deliveries of this run."""

    async def submit(self, call: DurableCall, /, *, transaction: object = None) -> Receipt[Any]:
        """Keep a call, and the provider of the scheduler that submits it, which the runs need."""
        submitting = current_task()
        if submitting is not None:  # an occurrence of a periodic function is submitted by the recorder itself
            assert submitting.scheduler is not None
            self._provider = submitting.scheduler.provider
        return await super().submit(call, transaction=transaction)

    async def occurrences(self, names: Sequence[str], /) -> tuple[datetime, list[datetime]]:
        """Say that nothing is due: the test runs occurrences, and not the worker that delivers its calls."""
        return _NEVER, [_NEVER] * len(names)

    async def run(self, times: int = 1) -> None:
        """Deliver each waiting call *times* times, and those that are submitted meanwhile; return when none waits."""
        self._times = times
        self._put_back.clear()
        self.deliveries.clear()
        async with self:
            await Worker(self, provider=self._provider, shield_timeout=0).run(anyio.Event())

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        """Deliver the waiting calls one after another, those of the highest priority first."""
        while not stopping.is_set() and (number := self._next()) is not None:
            for _ in range(self._times):
                if number not in self._put_back and self._statuses[number].state is not DurableState.CANCELLED:
                    await self._deliver(run, number)

    async def _wait_for_change(self) -> None:
        await anyio.sleep(0.01)  # run_durable() may run on another event loop than that of the caller

    def _next(self) -> int | None:
        waiting = (
            number
            for number, status in enumerate(self._statuses)
            if status.state is DurableState.PENDING
            and number not in self._put_back
            and not self._is_paused(number)
            and self._lines.is_first(self.calls[number], number)
        )
        return min(waiting, key=lambda number: (-self.calls[number].priority, number), default=None)

    async def _deliver(self, run: RunDelivery, number: int) -> None:
        """Deliver a call until it succeeds or fails for good."""

        async def report_progress(progress: Json) -> None:
            self._statuses[number] = replace(self._statuses[number], progress=progress)

        attempt, failures = self._attempts.pop(number, (1, 0))
        counts = Counter(attempts=attempt - 1, failures=failures)
        recorded = self._snoozed.pop(number, None) or DurableRun(self._places[number])
        first = attempt
        cut = self.cut_for(len(self.deliveries))
        self.deliveries.append(recorded)
        self._lines.started.add(number)
        self._due.pop(number, None)
        state = DurableState.SUCCEEDED
        while True:
            self._set_state(number, DurableState.RUNNING, counts["attempts"])
            counts["attempts"] += 1
            completion = WatchedCompletion()
            if cut is not None:
                cut.is_in_commit = partial(getattr, completion, "committing")
            delivery = Delivery(
                self.calls[number],
                counts["attempts"],
                counts["failures"],
                report_progress,
                open_events=partial(Events, self, number),
                progress=self._statuses[number].progress,
                completion=completion,
            )
            began = time.time()
            scope = self._scopes[number] = anyio.CancelScope()
            try:
                with _attempt(recorded, cut if counts["attempts"] == first else None), scope:
                    self._results[number] = await completion.run(run, delivery)
            except WorkerKilled:
                self._recording.worker_killed(recorded)
                closed = self.on_cut()
                if inspect.isawaitable(closed):
                    await closed
                if not completion.committed:
                    continue
            except NotUnderstood as error:
                # Nothing has run, and no other worker will come: the test has changed the function, or its name.
                raise error.__cause__ or error from None
            except Redeliver as again:
                if again.failed:
                    counts["failures"] += 1
                    self._note_error(number, counts["attempts"], began, again.__cause__ or again)
                    self._recording.attempt_failed(recorded, again.delay)
                    continue
                self._attempts[number] = (counts["attempts"], counts["failures"])
                counts["attempts"] -= 1
                state = DurableState.PENDING
                self._put_back.add(number)
            except Cancel as cancel:
                self._note_cancel(number, counts["attempts"], began, cancel)
                state = DurableState.CANCELLED
            except Exception as error:
                self._note_error(number, counts["attempts"], began, error)
                state = DurableState.FAILED
            else:
                state = DurableState.CANCELLED if scope.cancelled_caught else DurableState.SUCCEEDED
            break
        if completion.committed:
            self._results[number] = completion.result
            recorded.completed = True
            self._put_back.add(number)  # not delivered again by run_durable(times=2)
            state = DurableState.SUCCEEDED
        del self._scopes[number]
        if self._recording.is_snoozed(recorded):
            self._snoozed[number] = recorded
        self._recording.run_ended(recorded)
        self._set_state(number, state, counts["attempts"])

    def snapshot(self) -> EngineSnapshot:
        """Return which calls are stored, and how far they are."""
        return EngineSnapshot(
            len(self.calls),
            tuple(self._statuses),
            dict(self._ids),
            dict(self._attempts),
            self._lines.copy(),
            self._recording.mark(),
        )

    def rewind(self, snapshot: EngineSnapshot) -> None:
        """Bring back a state of before, in the record too."""
        del self.calls[snapshot.calls :], self._places[snapshot.calls :]
        self._statuses[:] = snapshot.statuses
        self._ids = dict(snapshot.ids)
        self._attempts = dict(snapshot.attempts)
        self._snoozed.clear()  # each run is recorded by itself
        self._lines = snapshot.lines.copy()
        waiting = (number for number, status in enumerate(self._statuses) if status.state is DurableState.PENDING)
        self._due = dict.fromkeys(waiting, 0.0)
        self._recording.rewind(snapshot.mark)


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The state of a `RecordedEngine`."""

    calls: int
    statuses: tuple[DurableStatus, ...]
    ids: dict[tuple[str, str, str], int]
    attempts: dict[int, tuple[int, int]]
    lines: Lines
    mark: RecordMark


@contextmanager
def _attempt(run: DurableRun, cut: Cut | None) -> Iterator[None]:
    with run.next_attempt(), nullcontext() if cut is None else cut.planned():
        yield


def _no_cut(delivery: int) -> None: ...


def _do_nothing() -> None: ...
