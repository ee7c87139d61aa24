"""An engine in memory: the smallest that keeps the contract of engines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio
from tasks_core import Cancel, Receipt, current_task
from tasks_core.engines import (
    EVENTS_AT_ONCE,
    AttemptRecord,
    Capability,
    Delivery,
    DurableCall,
    DurableEnd,
    DurableState,
    DurableStatus,
    FollowedCall,
    Json,
    Redeliver,
    RunDelivery,
    Slots,
    StoredEvents,
    StoredResult,
)
from tasks_core.types import EmittedEvent

from ._completion import WatchedCompletion
from ._in_memory_operate import InMemoryOperations, WorkerSlots, identity


class InMemoryEngine(InMemoryOperations):
    """
    An engine that keeps durable calls in memory: it acknowledges at once, and loses its calls with the process.

    `Worker(engine).run(stop)` delivers its calls as those of any engine. It has every capability, but a transaction may
    be any object and is not used: a call is submitted even if the transaction is rolled back. Operators may ask of it
    what they ask of any engine (`OperableEngine`). `durable_context().complete(session)` ends a task with the commit of
    a `Session` or an `AsyncSession` of SQLAlchemy; of a fake of a session, at once.
    """

    name = "tasks-testing"
    capabilities: frozenset[Capability] = frozenset(
        ("transaction", "delay", "dedup", "queues", "priority", "key", "complete")
    )

    def __init__(self) -> None:
        super().__init__()
        self._places: list[str] = []
        self._emitted: dict[int, list[bytes]] = {}
        self._lines = Lines()
        self._occurrences: dict[str, datetime] = {}
        self._results: dict[int, StoredResult | None] = {}
        self._followers: dict[str, tuple[int, str | None]] = {}  # further tokens: the call, and the owner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Any:
        """Accept any object as a transaction, because a test need not have a database."""
        return transaction

    async def submit(self, call: DurableCall, /, *, transaction: Any = None) -> Receipt[Any]:
        """Keep a call; return the receipt of the first one of its function and queue with its idempotency key."""
        number = len(self.calls)
        joined, replaced = self._ids.get(identity(call)), list[int]()
        if joined is None:
            joined, replaced = self._lines.enter(call, number)
        if joined is not None:
            self._ids[identity(call)] = joined
            if (token := call.headers.get("follow")) is not None:
                self._followers[token] = joined, call.headers.get("follow-owner")
            return Receipt(self.name, str(joined), self.calls[joined].idempotency_key, False, self)
        for other in replaced:
            self._due.pop(other, None)
            self._set_state(other, DurableState.CANCELLED, 0)
        self._ids[identity(call)] = number
        submitting = current_task()
        self.calls.append(call)
        self._places.append("" if submitting is None else submitting.where)
        self._statuses.append(DurableStatus(DurableState.PENDING, 0))
        self._due[number] = call.not_before or 0.0
        self._note(number, DurableState.PENDING.value)
        self._notify()
        return Receipt(self.name, str(number), call.idempotency_key, True, self, tuple(map(str, replaced)))

    async def status(self, number: str, /) -> DurableStatus:
        """Return the status of the call with the id *number* of its receipt."""
        if not number.isdecimal() or int(number) >= len(self._statuses):
            return DurableStatus(DurableState.UNKNOWN, 0)
        return self._statuses[int(number)]

    async def find_followed(self, token: str, /) -> FollowedCall | None:
        """Return the call whose header is *token*, or which a call with that header has joined."""
        tokens = {call.headers.get("follow"): number for number, call in enumerate(self.calls)}
        joined, owner = self._followers.get(token, (None, None))
        number = tokens.get(token, joined)
        if number is None:
            return None
        call = self.calls[number]
        receipt: Receipt[Any] = Receipt(self.name, str(number), call.idempotency_key, True, self)
        return FollowedCall(receipt, call.headers.get("follow-owner") if "follow" in call.headers else owner)

    async def read_events(self, wanted: Collection[tuple[str, int]], /) -> Mapping[tuple[str, int], StoredEvents]:
        """Return what the calls have emitted."""
        found: dict[tuple[str, int], StoredEvents] = {}
        for number, after in wanted:
            status = await self.status(number)
            texts = self._emitted.get(int(number), []) if status.state is not DurableState.UNKNOWN else []
            events = [EmittedEvent(position, text) for position, text in enumerate(texts, 1) if position > after]
            found[number, after] = StoredEvents(tuple(events[:EVENTS_AT_ONCE]), status)
        return found

    async def ended(self, number: str, /) -> DurableEnd:
        """Return when a task has ended."""
        while (status := await self.status(number)).state in (DurableState.PENDING, DurableState.RUNNING):
            await self._wait_for_change()
        if status.state is DurableState.UNKNOWN:
            return DurableEnd(status)
        return DurableEnd(status, self.calls[int(number)].name, self._results.get(int(number)))

    async def _wait_for_change(self) -> None:
        await self._changed.wait()

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        """Deliver the calls that are due, those of the highest priority first, until *stopping* is set."""
        slots = WorkerSlots(concurrency)
        self._workers.append(slots)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._wake_when, stopping)
                while not stopping.is_set():
                    changed = self._changed
                    while (number := self._take_due(slots)) is not None:
                        group.start_soon(self._deliver_once, run, number, slots)
                    with anyio.move_on_after(self._seconds_until_due(slots)):
                        await changed.wait()
        finally:
            self._workers.remove(slots)

    async def occurrences(self, names: Sequence[str], /) -> tuple[datetime, list[datetime]]:
        """Return the time, and the last occurrence of each function."""
        now = datetime.now(UTC)
        return now, [self._occurrences.setdefault(name, now) for name in names]

    async def submit_occurrence(self, call: DurableCall, at: datetime, /) -> Receipt[Any] | None:
        """Submit the call, unless its occurrence is not later than the last one."""
        return await self.submit(call) if await self.skip_occurrences(call.name, at) else None

    async def skip_occurrences(self, name: str, until: datetime, /) -> bool:
        """Note the occurrence alone."""
        if (last := self._occurrences.get(name)) is not None and last >= until:
            return False
        self._occurrences[name] = until
        return True

    async def _wake_when(self, stopping: anyio.Event) -> None:
        await stopping.wait()
        self._notify()

    def _take_due(self, slots: WorkerSlots) -> int | None:
        """Take the first call that is due and has a slot, if there is one."""
        now = time.time()
        due = [number for number, at in self._due.items() if at <= now and self._may_take(number, slots)]
        if not due:
            return None
        number = min(due, key=lambda number: (-self.calls[number].priority, self._due[number]))
        del self._due[number]
        self._lines.started.add(number)
        slots.taken[self.calls[number].queue] += 1
        return number

    def _may_take(self, number: int, slots: WorkerSlots) -> bool:
        call = self.calls[number]
        return slots.has_free(call.queue) and not self._is_paused(number) and self._lines.is_first(call, number)

    def _seconds_until_due(self, slots: WorkerSlots) -> float | None:
        """Return the seconds until a call is due for which there is a slot; `None` if only a change can help."""
        due = [at for number, at in self._due.items() if self._may_take(number, slots)]
        return max(0.0, min(due) - time.time()) if due else None

    async def _deliver_once(self, run: RunDelivery, number: int, slots: WorkerSlots) -> None:
        async def report_progress(progress: Json) -> None:
            self._statuses[number] = replace(self._statuses[number], progress=progress)

        attempt, failures = self._attempts.pop(number, (1, 0))
        self._set_state(number, DurableState.RUNNING, attempt - 1)
        began = time.time()
        scope = self._scopes[number] = anyio.CancelScope()
        completion = WatchedCompletion()
        try:
            with scope:
                delivery = Delivery(
                    self.calls[number],
                    attempt,
                    failures,
                    report_progress,
                    id=str(number),
                    open_events=partial(Events, self, number),
                    progress=self._statuses[number].progress,
                    completion=completion,
                )
                self._results[number] = await completion.run(run, delivery)
            cancelled = scope.cancelled_caught and not completion.committed
            self._set_state(number, DurableState.CANCELLED if cancelled else DurableState.SUCCEEDED, attempt)
        except Redeliver as again:
            self._attempts[number] = (attempt + again.failed, failures + again.failed)
            if again.failed:
                self._note_error(number, attempt, began, again.__cause__ or again)
            if scope.cancel_called:
                state = DurableState.CANCELLED
            else:
                state = DurableState.PENDING
                self._due[number] = time.time() + again.delay
            self._set_state(number, state, attempt - 1 + again.failed)
        except Cancel as cancel:
            self._note_cancel(number, attempt, began, cancel)
            self._set_state(number, DurableState.CANCELLED, attempt)
        except Exception as error:
            self._note_error(number, attempt, began, error)
            self._set_state(number, DurableState.FAILED, attempt)
        finally:
            if completion.committed:
                self._results[number] = completion.result
            del self._scopes[number]
            slots.taken[self.calls[number].queue] -= 1
            self._notify()

    def _note_error(self, number: int, attempt: int, began: float, error: BaseException) -> None:
        record = AttemptRecord.of(error, attempt=attempt, began=began, ended=time.time())
        status = self._statuses[number]
        self._statuses[number] = replace(status, errors=record.added_to(status.errors))

    def _note_cancel(self, number: int, attempt: int, began: float, cancel: Cancel) -> None:
        if cancel.__cause__ is not None:
            self._note_error(number, attempt, began, cancel.__cause__)
        self._statuses[number] = replace(self._statuses[number], reason=cancel.reason)

    def _set_state(self, number: int, state: DurableState, attempts: int) -> None:
        super()._set_state(number, state, attempts)
        if state is DurableState.PENDING:
            self._lines.stay(self.calls[number], number)
        elif state is not DurableState.RUNNING:
            self._lines.leave(self.calls[number], number)


class Lines:
    """The calls that have a key and have not ended, by function and queue, in the order in which they run."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, str], list[int]] = {}
        self.started: set[int] = set()

    def copy(self) -> Lines:
        lines = Lines()
        lines._numbers = {key: line[:] for key, line in self._numbers.items()}
        lines.started = self.started.copy()
        return lines

    def enter(self, call: DurableCall, number: int) -> tuple[int | None, list[int]]:
        """Return the call that this one joins, if it joins one, and those that it replaces."""
        if call.key is None:
            return None, []
        line = self._numbers.setdefault((call.queue, call.name, call.key), [])
        if line and call.on_conflict == "join":
            return line[-1], []
        replaced = [other for other in line if other not in self.started] if call.on_conflict == "replace" else []
        line.append(number)
        return None, replaced

    def is_first(self, call: DurableCall, number: int) -> bool:
        """Return whether no other call is before this one."""
        return call.key is None or self._numbers[call.queue, call.name, call.key][0] == number

    def stay(self, call: DurableCall, number: int) -> None:
        """Note that a call waits to be delivered again, be it that an operator retries it after its end."""
        if call.key is not None:
            line = self._numbers.setdefault((call.queue, call.name, call.key), [])
            if number not in line:
                line.append(number)

    def leave(self, call: DurableCall, number: int) -> None:
        """Note that a call has ended."""
        self.started.discard(number)
        key = (call.queue, call.name, call.key or "")
        if number in (line := self._numbers.get(key, [])):
            line.remove(number)
            if not line:
                del self._numbers[key]


class Events:
    """What the deliveries of a call emit and report."""

    def __init__(self, engine: InMemoryEngine, number: int) -> None:
        self._engine = engine
        self._number = number

    def emit(self, text: bytes) -> None:
        self._engine._emitted.setdefault(self._number, []).append(text)

    def report(self, progress: bytes) -> None:
        statuses = self._engine._statuses
        statuses[self._number] = replace(statuses[self._number], progress=json.loads(progress))
