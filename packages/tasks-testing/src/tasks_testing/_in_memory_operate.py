"""What operators may ask of the engine in memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Unpack

import anyio
from tasks_core.engines import (
    COUNT_BOUND,
    ENDED,
    DurableCall,
    DurableState,
    DurableStatus,
    EngineHealth,
    Pause,
    QueueStatistics,
    Slots,
    StoredTask,
    StoredTaskDetails,
    StoredTaskEvent,
    StoredTaskPage,
    TaskFilter,
    check_operation,
    check_pause,
    check_verb,
    problems_of,
    registered_queues,
)

_LATELY = 60.0


class WorkerSlots:
    """How many calls of which queue a worker may take."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.taken: Counter[str] = Counter()

    def has_free(self, queue: str) -> bool:
        if isinstance(self._slots, Mapping):
            return self.taken[queue] < self._slots.get(queue, 0)
        return queue in registered_queues() and self.taken.total() < self._slots

    def serves(self, queue: str) -> bool:
        return queue in self._slots if isinstance(self._slots, Mapping) else queue in registered_queues()


def identity(call: DurableCall) -> tuple[str, str, str]:
    """Return what an idempotency key belongs to, together with it."""
    return call.queue, call.name, call.idempotency_key


class InMemoryOperations:
    """The calls of an engine in memory, and the methods of `OperableEngine` on them."""

    def __init__(self) -> None:
        self.calls: list[DurableCall] = []
        """The submitted calls, in order."""
        self._ids: dict[tuple[str, str, str], int] = {}
        self._statuses: list[DurableStatus] = []
        self._attempts: dict[int, tuple[int, int]] = {}  # of calls that failed: the next attempt, and failures so far
        self._due: dict[int, float] = {}  # of calls that wait for a worker: when, in seconds since the epoch
        self._changed = anyio.Event()
        self._events: dict[int, list[StoredTaskEvent]] = {}
        self._scopes: dict[int, anyio.CancelScope] = {}  # of the deliveries that run
        self._pauses: dict[tuple[str, str | None], datetime] = {}  # by queue and name; `None`: all of the queue
        self._workers: list[WorkerSlots] = []

    def _notify(self) -> None:
        """Wake every worker that waits for a change."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _set_state(self, number: int, state: DurableState, attempts: int) -> None:
        self._statuses[number] = replace(self._statuses[number], state=state, attempts=attempts)
        self._note(number, state.value)

    def _note(self, number: int, event: str) -> None:
        self._events.setdefault(number, []).append(StoredTaskEvent(event, datetime.now(UTC)))

    def _is_paused(self, number: int) -> bool:
        call = self.calls[number]
        return bool(self._pauses) and not self._pauses.keys().isdisjoint({(call.queue, None), (call.queue, call.name)})

    def _queues(self) -> list[str]:
        """Return the queues that there are: those of functions, and those of calls."""
        return sorted(registered_queues().union(call.queue for call in self.calls))

    # ---- looking ----

    async def statistics(self, *, count_to: int = COUNT_BOUND) -> tuple[QueueStatistics, ...]:
        """Return the numbers of each queue."""
        check_operation(count_to=count_to)
        return tuple(self._count(queue, count_to) for queue in self._queues())

    def _count(self, queue: str, count_to: int) -> QueueStatistics:
        now = time.time()
        numbers = [number for number, call in enumerate(self.calls) if call.queue == queue]
        states = [self._statuses[number].state for number in numbers]
        due = {number: self._due[number] for number in numbers if number in self._due}
        pending = {number: at for number, at in due.items() if self._statuses[number].state is DurableState.PENDING}
        # A call that was put back has waited since then, whenever it was due before.
        since = [max(at, self._events[number][-1].at.timestamp()) for number, at in pending.items() if at <= now]
        ends = [
            number
            for number in numbers
            if self._statuses[number].state in ENDED and now - self._events[number][-1].at.timestamp() < _LATELY
        ]
        return QueueStatistics(
            queue=queue,
            waiting=min(len(since), count_to),
            running=min(states.count(DurableState.RUNNING), count_to),
            failed=min(states.count(DurableState.FAILED), count_to),
            delayed=min(len(pending) - len(since), count_to),
            oldest_waiting=max(0.0, now - min(since)) if since else None,
            ended_per_second=len(ends) / _LATELY,
            workers_alive=sum(worker.serves(queue) for worker in self._workers),
            workers_silent=0,
            paused=(queue, None) in self._pauses,
            paused_names=tuple(sorted(name for one, name in self._pauses if one == queue and name is not None)),
        )

    async def find(self, *, after: str | None = None, limit: int = 50, **which: Unpack[TaskFilter]) -> StoredTaskPage:
        """Return stored tasks, those first that were submitted last; see `OperableEngine.find()`."""
        check_operation(after=after, limit=limit, **which)
        numbers = self._numbers(which, len(self.calls) if after is None else int(after) if after.isdecimal() else 0)
        page = numbers[:limit]
        return StoredTaskPage(
            tuple(self._stored(number) for number in page), str(page[-1]) if len(numbers) > limit else None
        )

    def _numbers(self, which: TaskFilter, before: int) -> list[int]:
        return [number for number in range(min(before, len(self.calls)) - 1, -1, -1) if self._fits(number, which)]

    def _fits(self, number: int, which: TaskFilter) -> bool:
        task = self._stored(number)
        submitted = self._events[number][0].at.timestamp()
        return (
            task.state is not DurableState.UNKNOWN
            and which.get("state", task.state) is task.state
            and which.get("name", task.name) == task.name
            and which.get("queue", task.queue) == task.queue
            and which.get("error", "").lower() in (task.error or "").lower()
            and time.time() - submitted >= which.get("older_than", 0.0)
        )

    def _stored(self, number: int) -> StoredTask:
        call, status, events = self.calls[number], self._statuses[number], self._events[number]
        errors, due = status.errors, self._due.get(number, 0.0)
        return StoredTask(
            id=str(number),
            key=call.idempotency_key,
            name=call.name,
            queue=call.queue,
            state=status.state,
            attempts=status.attempts,
            submitted_at=events[0].at,
            changed_at=events[-1].at,
            due_at=datetime.fromtimestamp(due, UTC) if due > time.time() else None,
            error=errors[-1].error if errors else None,
        )

    async def show(self, task_id: str, /, *, arguments: bool = False) -> StoredTaskDetails | None:
        """Return all that is known of a task, with its arguments only if *arguments*; `None` if there is no such."""
        number = self._number(task_id)
        if number is None:
            return None
        call = self.calls[number]
        return StoredTaskDetails(
            task=self._stored(number),
            events=tuple(self._events[number]),
            errors=self._statuses[number].errors,
            progress=self._statuses[number].progress,
            reason=self._statuses[number].reason,
            headers=call.headers,
            arguments=call.args if arguments else None,
        )

    def _number(self, task_id: str) -> int | None:
        if not task_id.isdecimal() or int(task_id) >= len(self.calls):
            return None
        number = int(task_id)
        return None if self._statuses[number].state is DurableState.UNKNOWN else number

    async def health(self) -> EngineHealth:
        """Return what is wrong with the queue; memory is always reachable."""
        return EngineHealth(reachable=True, problems=problems_of(await self.statistics()))

    def last_beat(self) -> float | None:
        """Return 0 while a worker runs: memory has acknowledged it always."""
        return 0.0 if self._workers else None

    # ---- verbs ----

    async def retry(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """Have tasks that failed, or were cancelled, begin again at once; see `OperableEngine.retry()`."""
        allowed = (DurableState.FAILED, DurableState.CANCELLED, DurableState.PENDING)
        which = check_verb("retry", task_id, which, allowed, DurableState.FAILED)
        return self._act(self._retry, task_id, which, dry_run, on_progress)

    def _retry(self, number: int, dry_run: bool) -> bool:
        status = self._statuses[number]
        if status.state not in (DurableState.FAILED, DurableState.CANCELLED):
            if self._due.get(number, 0.0) <= time.time():
                return False
        elif not dry_run:
            self._attempts[number] = (status.attempts + 1, 0)
            self._statuses[number] = replace(status, reason=None)
            self._set_state(number, DurableState.PENDING, status.attempts)
        if not dry_run:
            self._due[number] = time.time()
        return True

    async def cancel(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """Cancel tasks that are pending, and those that run; see `OperableEngine.cancel()`."""
        which = check_verb("cancel", task_id, which, (DurableState.PENDING, DurableState.RUNNING), None)
        return self._act(self._cancel, task_id, which, dry_run, on_progress)

    def _cancel(self, number: int, dry_run: bool) -> bool:
        status = self._statuses[number]
        scope = self._scopes.get(number)
        if status.state is DurableState.RUNNING and scope is not None and not scope.cancel_called:
            if not dry_run:
                scope.cancel()
        elif status.state is DurableState.PENDING:
            if not dry_run:
                self._due.pop(number, None)
                self._set_state(number, DurableState.CANCELLED, status.attempts)
                self._notify()
        else:
            return False
        return True

    async def discard(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """Forget tasks that failed or were cancelled, and their keys; see `OperableEngine.discard()`."""
        allowed = (DurableState.FAILED, DurableState.CANCELLED)
        which = check_verb("discard", task_id, which, allowed, DurableState.FAILED)
        return self._act(self._discard, task_id, which, dry_run, on_progress)

    def _discard(self, number: int, dry_run: bool) -> bool:
        if self._statuses[number].state not in (DurableState.FAILED, DurableState.CANCELLED):
            return False
        if not dry_run:
            self._forget(number)
        return True

    def _forget(self, number: int) -> None:
        del self._ids[identity(self.calls[number])]
        self._set_state(number, DurableState.UNKNOWN, 0)

    def _act(
        self,
        verb: Callable[[int, bool], bool],
        task_id: str | None,
        which: TaskFilter,
        dry_run: bool,
        on_progress: Callable[[int], object] | None,
    ) -> int:
        if task_id is None:
            numbers = self._numbers(which, len(self.calls))
        else:
            numbers = [] if (number := self._number(task_id)) is None else [number]
        total = sum(verb(number, dry_run) for number in numbers)
        if on_progress is not None:
            on_progress(total)
        self._notify()
        return total

    async def pause(self, *, queue: str | None = None, name: str | None = None) -> None:
        """Have workers take no more calls, or none of a function; see `OperableEngine.pause()`."""
        check_pause("pause", queue, name)
        for one in self._queues() if queue is None else [queue]:
            self._pauses.setdefault((one, name), datetime.now(UTC))

    async def resume(self, *, queue: str | None = None, name: str | None = None) -> None:
        """End what `pause()` with the same arguments began."""
        check_pause("resume", queue, name)
        for one in self._queues() if queue is None else [queue]:
            self._pauses.pop((one, name), None)
        self._notify()

    async def pauses(self) -> tuple[Pause, ...]:
        """Return what is paused."""
        return tuple(Pause(queue, name, since) for (queue, name), since in self._pauses.items())

    async def purge(
        self,
        *,
        older_than: float | None = None,
        state: DurableState | None = None,
        queue: str | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> int:
        """Forget tasks that have ended; without *older_than* all of them, because memory has no times for them."""
        check_operation(older_than=older_than, queue=queue)
        if state is not None:
            check_verb("purge", None, {"state": state}, ENDED, None)
        now = time.time()
        gone = [
            number
            for number, status in enumerate(self._statuses)
            if status.state in (ENDED if state is None else (state,))
            and queue in (None, self.calls[number].queue)
            and now - self._events[number][-1].at.timestamp() >= (older_than or 0.0)
        ]
        for number in gone:
            self._forget(number)
        if on_progress is not None:
            on_progress(len(gone))
        return len(gone)
