"""What operators ask of the engine: numbers, stored tasks, and the verbs that act on them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, LiteralString, Unpack

from tasks_core.engines import (
    COUNT_BOUND,
    ENDED,
    CallLabel,
    DurableState,
    EngineError,
    EngineHealth,
    Pause,
    QueueStatistics,
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

from ._liveness import MISSED
from ._options import WorkOptions
from ._rows import STATES, ended_attempts, is_job_id, read_errors, read_reason, read_result
from ._sql import (
    CANCEL,
    COUNT_CANCEL,
    COUNT_DISCARD,
    COUNT_RETRY,
    DISCARD,
    FIND,
    FIND_IDS,
    PAUSE,
    PAUSES,
    PURGE,
    RESUME,
    RETRY,
    SHOW,
    STATISTICS,
    TAKE_TURNS,
)

logger = logging.getLogger("tasks_core")

# Rows that one page reads at most: a filter that fits few of them returns a page with fewer tasks.
_LOOK_MOST = 10_000
# Tasks that a verb acts on in one statement.
_BATCH = 500
# Later than any task that is kept.
_NEVER = 1e10
_LAST_ID = 2**63 - 1

_RETRIABLE = (DurableState.FAILED, DurableState.CANCELLED, DurableState.PENDING)
_CANCELLABLE = (DurableState.PENDING, DurableState.RUNNING)
_DISCARDABLE = (DurableState.FAILED, DurableState.CANCELLED)


class Operations(ABC):
    """The methods of `OperableEngine`; the engine is a subclass, which asks the database."""

    __slots__ = ()

    _work_options: WorkOptions

    @abstractmethod
    async def _ask(self, query: LiteralString, parameters: dict[str, Any]) -> list[Any]:
        """Run a statement for an operator, and raise an `EngineError` if that fails."""

    def _queues(self, queue: str | None) -> list[str]:
        """Return what the queues are called in the database that are meant: the given one, or those of this engine."""
        names = registered_queues() if queue is None else (queue,)
        return sorted(map(self._work_options.stored_queue, names))

    # ---- looking ----

    async def statistics(self, *, count_to: int = COUNT_BOUND) -> tuple[QueueStatistics, ...]:
        """Return the numbers of each queue of the engine, by one statement; no count goes beyond *count_to*."""
        check_operation(count_to=count_to)
        return await self._statistics(self._queues(None), count_to)

    async def statistics_in_turn(self, seconds: float, /) -> tuple[QueueStatistics, ...]:
        """Return the numbers of those queues whose turn this process has; see `MeteredEngine.statistics_in_turn()`."""
        parameters = {"queues": self._queues(None), "holder": self._work_options.holder, "seconds": seconds}
        queues = [queue for [queue] in await self._ask(TAKE_TURNS, parameters)]
        return await self._statistics(queues, COUNT_BOUND) if queues else ()

    async def _statistics(self, queues: list[str], count_to: int) -> tuple[QueueStatistics, ...]:
        rows = await self._ask(
            STATISTICS,
            {
                "queues": queues,
                "count_to": count_to,
                "silence": self._work_options.heartbeat * MISSED,
            },
        )
        return tuple(
            QueueStatistics(
                queue=self._work_options.queue_of(queue),
                waiting=waiting,
                running=running,
                failed=failed,
                delayed=delayed,
                oldest_waiting=age if any_waits else None,
                ended_per_second=rate,
                workers_alive=alive,
                workers_silent=silent,
                paused=paused,
                paused_names=tuple(names),
            )
            for queue, waiting, running, failed, delayed, age, rate, alive, silent, paused, names, any_waits in rows
        )

    async def find(self, *, after: str | None = None, limit: int = 50, **which: Unpack[TaskFilter]) -> StoredTaskPage:
        """Return stored tasks, those first that were submitted last; see `OperableEngine.find()`."""
        check_operation(after=after, limit=limit, **which)
        ids, last = await self._find_ids(_kind(which.get("state")), which, after, limit)
        rows = await self._ask(FIND, {"ids": ids}) if ids else []
        return StoredTaskPage(tuple(self._task(row) for row in rows), last)

    async def _find_ids(
        self, kind: str, which: TaskFilter, after: str | None, limit: int
    ) -> tuple[list[int], str | None]:
        """Return ids in descending order, and where the next page begins."""
        found: list[int] = []
        place = _LAST_ID if after is None else int(after) if is_job_id(after) else 0
        look, looked_at = max(limit, 100), 0
        while True:
            [(seen, least, fits)] = await self._ask(
                FIND_IDS[kind],
                {
                    "queues": self._queues(which.get("queue")),
                    "name": which.get("name"),
                    "error": which.get("error"),
                    "older_than": which.get("older_than"),
                    "after": place,
                    "look": look,
                    "limit": limit - len(found),
                },
            )
            found += fits
            looked_at += seen
            full = len(found) == limit
            if not full and seen < look:
                return found, None
            place = found[-1] if full else least
            if full or looked_at >= _LOOK_MOST:
                return found, str(place)
            look = min(look * 10, _LOOK_MOST - looked_at)

    def _task(self, row: Sequence[Any]) -> StoredTask:
        id_, key, name, queue, state, attempts, returns, given_up, failed, submitted_at, changed_at, due_at, error = row
        submitted_at, changed_at, due_at = (
            None if moment is None else moment.astimezone(UTC) for moment in (submitted_at, changed_at, due_at)
        )
        return StoredTask(
            id=str(id_),
            key=str(key),
            name=str(name),
            queue=self._work_options.queue_of(queue),
            state=STATES[state],
            attempts=ended_attempts(STATES[state], attempts, returns, given_up, failed),
            submitted_at=submitted_at,
            changed_at=changed_at,
            due_at=due_at,
            error=error,
        )

    async def show(self, task_id: str, /, *, arguments: bool = False) -> StoredTaskDetails | None:
        """Return all that is known of a task, with its arguments only if *arguments*; `None` if there is no such."""
        if not is_job_id(task_id):
            return None
        rows = await self._ask(SHOW, {"id": int(task_id), "arguments": arguments, "queues": self._queues(None)})
        if not rows:
            return None
        [(*task, fields, events)] = rows
        return StoredTaskDetails(
            task=self._task(task),
            events=tuple(StoredTaskEvent(type_, _moment(at)) for type_, at in events or ()),
            errors=read_errors(fields.get("errors")),
            progress=fields.get("progress"),
            reason=read_reason(STATES[task[4]], fields.get("given_up"), fields.get("reason")),
            result=None if (result := read_result(fields.get("result"))) is None else result.value,
            headers=headers if isinstance(headers := fields.get("headers"), dict) else {},
            arguments=fields.get("args") if arguments else None,
        )

    async def health(self) -> EngineHealth:
        """Return whether the database answers, and what is wrong with the queues."""
        began = perf_counter()
        try:
            statistics = await self.statistics(count_to=1)
        except EngineError as error:
            return EngineHealth(reachable=False, problems=(str(error),))
        problems = problems_of(statistics)
        seconds = perf_counter() - began
        if seconds > 1:
            problems = (f"PostgreSQL took {seconds:.1f} s to answer", *problems)
        return EngineHealth(reachable=True, problems=problems)

    def last_beat(self) -> float | None:
        """Return the seconds since the last heartbeat of a worker in this process; see `OperableEngine.last_beat()`."""
        return self._work_options.beats.age()

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
        which = check_verb("retry", task_id, which, _RETRIABLE, DurableState.FAILED)
        return await self._act(_RETRY, task_id, which, _kind(which.get("state")), dry_run, on_progress)

    async def cancel(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """Cancel tasks that are pending, and have workers cancel those that run; see `OperableEngine.cancel()`."""
        which = check_verb("cancel", task_id, which, _CANCELLABLE, None)
        kind = "unfinished" if "state" not in which else which["state"].value
        return await self._act(_CANCEL, task_id, which, kind, dry_run, on_progress)

    async def discard(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """Delete tasks that failed or were cancelled, and their keys; see `OperableEngine.discard()`."""
        which = check_verb("discard", task_id, which, _DISCARDABLE, DurableState.FAILED)
        return await self._act(_DISCARD, task_id, which, _kind(which.get("state")), dry_run, on_progress)

    async def _act(
        self,
        verb: _Verb,
        task_id: str | None,
        which: TaskFilter,
        kind: str,
        dry_run: bool,
        on_progress: Callable[[int], object] | None,
    ) -> int:
        if task_id is not None:
            return await self._act_on(verb, [int(task_id)], self._queues(None), dry_run) if is_job_id(task_id) else 0
        total, after = 0, None
        while True:
            ids, after = await self._find_ids(kind, which, after, _BATCH)
            if ids:
                total += await self._act_on(verb, ids, self._queues(which.get("queue")), dry_run)
            if on_progress is not None:
                on_progress(total)
            if after is None:
                return total

    async def _act_on(self, verb: _Verb, ids: list[int], queues: list[str], dry_run: bool) -> int:
        parameters = {"ids": ids, "queues": queues}
        if dry_run:
            [(count,)] = await self._ask(verb.count, parameters)
            return int(count)
        rows = await self._ask(verb.statement, parameters)
        for job_id, name, key, queue, *_ in rows:
            label = CallLabel(str(name), str(key), str(job_id), self._work_options.queue_of(queue))
            logger.info("%s %s, by an operator", label, verb.says, extra=label.fields)
        return len(rows)

    # ---- pauses ----

    async def pause(self, *, queue: str | None = None, name: str | None = None) -> None:
        """Have workers take no more tasks of a queue, or of a function; see `OperableEngine.pause()`."""
        check_pause("pause", queue, name)
        for [paused] in await self._ask(PAUSE, {"queues": self._queues(queue), "name": name or ""}):
            logger.warning("Queue %r: %s paused, by an operator", self._work_options.queue_of(paused), _named(name))

    async def resume(self, *, queue: str | None = None, name: str | None = None) -> None:
        """End what `pause()` with the same arguments began, and wake the workers."""
        check_pause("resume", queue, name)
        for resumed, _ in await self._ask(RESUME, {"queues": self._queues(queue), "name": name or ""}):
            logger.warning("Queue %r: %s resumed, by an operator", self._work_options.queue_of(resumed), _named(name))

    async def pauses(self) -> tuple[Pause, ...]:
        """Return what is paused."""
        rows = await self._ask(PAUSES, {"queues": self._queues(None)})
        return tuple(Pause(self._work_options.queue_of(queue), name, since) for queue, name, since in rows)

    # ---- purging ----

    async def purge(
        self,
        *,
        older_than: float | None = None,
        state: DurableState | None = None,
        queue: str | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> int:
        """Delete tasks that have ended, in batches; see `OperableEngine.purge()`."""
        check_operation(older_than=older_than, queue=queue)
        if state is not None:
            check_verb("purge", None, {"state": state}, ENDED, None)
        kept = {
            one: (seconds if older_than is None else older_than) if state in (None, one) else _NEVER
            for one, seconds in self._work_options.kept.items()
        }
        total = 0
        after: int | None = 0
        while after is not None:
            parameters = {**kept, "queues": self._queues(queue), "after": after, "least": min(kept.values())}
            [(last, gone, more)] = await self._ask(PURGE, parameters)
            total += gone
            after = last if more else None
            if on_progress is not None:
                on_progress(total)
        if total:
            logger.info("Deleted %d tasks that had ended, by an operator", total)
        return total


class _Verb:
    """The two statements of a verb, and what its log line says."""

    __slots__ = ("count", "says", "statement")

    def __init__(self, statement: LiteralString, count: LiteralString, says: str) -> None:
        self.statement: LiteralString = statement
        self.count: LiteralString = count
        self.says = says


_RETRY = _Verb(RETRY, COUNT_RETRY, "is back in the queue")
_CANCEL = _Verb(CANCEL, COUNT_CANCEL, "is cancelled")
_DISCARD = _Verb(DISCARD, COUNT_DISCARD, "is deleted")


def _kind(state: DurableState | None) -> str:
    return "any" if state is None else state.value


def _named(name: str | None) -> str:
    return "all functions are" if name is None else f"{name!r} is"


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(float(seconds), UTC)
