"""What running tasks emit and report: written in batches by a worker, read for followers by any process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from threading import RLock
from time import monotonic
from typing import Any

import anyio

from tasks_core.engines import MOST_EVENT_BYTES, MOST_EVENTS, DurableState, DurableStatus, StoredEvents
from tasks_core.types import EmittedEvent

from . import _reports
from ._connection import WorkerConnection
from ._errors import is_outage
from ._rows import STATES, Row, ended_attempts
from ._sql import ADD_EVENTS, ADD_PROGRESS, TRIM_EVENTS

logger = logging.getLogger("tasks_core")

# Seconds for which events are collected: a language model emits fifty tokens in a second.
_PAUSE = 0.1
# Seconds between two progress values of a task that are stored: each of them writes the row of the task anew.
_PROGRESS_PAUSE = 1.0
# Events in one statement.
_BATCH = 1000
# Events, and bytes of them, after which those that are too many are deleted.
_TRIM_AFTER, _TRIM_AFTER_BYTES = 1000, MOST_EVENT_BYTES // 4


class EventSink:
    """What one delivery has emitted and reported, and is not stored yet. Written from any thread."""

    __slots__ = ("_writer", "events", "position", "progress", "row", "size", "untrimmed", "untrimmed_bytes", "wrote_at")

    def __init__(self, writer: EventWriter, row: Row) -> None:
        self._writer = writer
        self.row = row
        self.events: deque[tuple[int, bytes]] = deque()
        self.size = 0
        self.position = 0
        self.progress: bytes | None = None
        self.wrote_at = 0.0
        self.untrimmed = self.untrimmed_bytes = 0

    def emit(self, text: bytes) -> None:
        """Add an event. While the database is away, the oldest are dropped."""
        with self._writer.lock:
            self.position += 1
            self.events.append((self.position, text))
            self.size += len(text)
            while len(self.events) > MOST_EVENTS or self.size > MOST_EVENT_BYTES:
                self.size -= len(self.events.popleft()[1])
        self._writer.mark(self)

    def report(self, progress: bytes) -> None:
        """Replace the progress value."""
        with self._writer.lock:
            self.progress = progress
        self._writer.mark(self)

    def remove(self, upto: int) -> None:
        """Remove the events that are stored."""
        while self.events and self.events[0][0] <= upto:
            text = self.events.popleft()[1]
            self.size -= len(text)
            self.untrimmed += 1
            self.untrimmed_bytes += len(text)


class EventWriter:
    """Writes what the tasks of a worker emit and report, a batch after the other, on an event loop of asyncio."""

    def __init__(self, connection: WorkerConnection, stopping: anyio.Event) -> None:
        self.lock = RLock()  # reentrant: a finalizer that emits may run in the middle
        self._connection = connection
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stored = asyncio.Event()
        self._dirty: dict[int, EventSink] = {}
        self._held: dict[int, EventSink | None] = {}
        self._woken = False
        self._gives_up_at: float | None = None

    def sink(self, row: Row) -> EventSink:
        """Return where a delivery writes; asked for when it emits or reports for the first time."""
        return EventSink(self, row)

    def mark(self, sink: EventSink) -> None:
        """Note that something waits; from any thread."""
        with self.lock:
            if sink.row.id in self._held:
                self._held[sink.row.id] = sink
                return
            self._dirty[sink.row.id] = sink
            woken, self._woken = self._woken, True
        if not woken:
            with suppress(RuntimeError):  # an abandoned thread that emits after the end of the worker
                self._loop.call_soon_threadsafe(self._wake.set)

    async def flush(self, row: Row) -> None:
        """Return when all that a delivery has emitted is stored, or when a worker that is stopped gives up."""
        while row.id in self._dirty:
            self._hurry.set()
            self._wake.set()
            await self._stored.wait()

    async def hold(self, row: Row) -> None:
        """Do what `flush()` does; from then on nothing of the delivery is stored, because its row is locked."""
        while True:
            await self.flush(row)
            with self.lock:
                if row.id not in self._dirty:  # pragma: no branch  # a thread may emit in between
                    self._held.setdefault(row.id, None)
                    return

    def release(self, row: Row, *, store: bool) -> None:
        """Store what was held back, or drop it."""
        with self.lock:
            sink = self._held.pop(row.id, None)
        if sink is not None and store:
            self.mark(sink)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), _PAUSE)
            with self.lock:
                self._wake.clear()
                self._woken = False
                sinks = list(self._dirty.values())
            hurry = self._hurry.is_set()
            self._hurry.clear()
            try:
                await self._store(sinks, hurry)
            except Exception as error:
                await self._when_failed(sinks, error)
            stored, self._stored = self._stored, asyncio.Event()
            stored.set()

    async def _store(self, sinks: list[EventSink], hurry: bool) -> None:
        await self._store_events(sinks)
        await self._store_progress(sinks, hurry)
        await self._trim(sinks)
        with self.lock:
            for sink in sinks:
                if sink.events or sink.progress is not None:
                    self._woken = True
                    self._wake.set()
                else:
                    self._dirty.pop(sink.row.id, None)

    async def _store_events(self, sinks: Iterable[EventSink]) -> None:
        with self.lock:
            batch = [(sink, position, text) for sink in sinks for position, text in sink.events][:_BATCH]
        if not batch:
            return
        await self._connection.fetch(
            ADD_EVENTS,
            {
                "ids": [sink.row.id for sink, _, _ in batch],
                "attempts": [sink.row.attempts for sink, _, _ in batch],
                "positions": [position for _, position, _ in batch],
                "texts": [text.decode() for _, _, text in batch],
            },
        )
        with self.lock:
            for sink, position, _ in batch:
                sink.remove(position)

    async def _store_progress(self, sinks: Iterable[EventSink], hurry: bool) -> None:
        now = monotonic()
        due = [
            (sink, sink.progress)
            for sink in sinks
            if sink.progress is not None and (hurry or now - sink.wrote_at >= _PROGRESS_PAUSE)
        ]
        if not due:
            return
        await self._connection.fetch(
            ADD_PROGRESS,
            {
                "ids": [sink.row.id for sink, _ in due],
                "attempts": [sink.row.attempts for sink, _ in due],
                "texts": [progress.decode() for _, progress in due],
            },
        )
        with self.lock:
            for sink, progress in due:
                sink.wrote_at = now
                if sink.progress is progress:
                    sink.progress = None

    async def _trim(self, sinks: Iterable[EventSink]) -> None:
        large = [s for s in sinks if s.untrimmed >= _TRIM_AFTER or s.untrimmed_bytes >= _TRIM_AFTER_BYTES]
        if large:
            await self._connection.fetch(
                TRIM_EVENTS,
                {"ids": [sink.row.id for sink in large], "most": MOST_EVENTS, "most_bytes": MOST_EVENT_BYTES},
            )
            for sink in large:
                sink.untrimmed = sink.untrimmed_bytes = 0

    async def _when_failed(self, sinks: list[EventSink], error: Exception) -> None:
        if not is_outage(error):
            if len(sinks) > 1:  # one task must not keep the events of the others from being stored
                for sink in sinks:
                    try:
                        await self._store([sink], True)
                    except Exception as single:
                        await self._when_failed([sink], single)
                return
            label = sinks[0].row.label
            logger.error(
                "%s has emitted what could not be stored, and is dropped", label, exc_info=error, extra=label.fields
            )
            self._drop(sinks)
        elif self._is_enough():
            logger.warning("What %d tasks emitted at last could not be stored (%s)", len(sinks), type(error).__name__)
            self._drop(sinks)
        else:
            await asyncio.sleep(_reports.RECONNECT)
            self._wake.set()

    def _is_enough(self) -> bool:
        now = monotonic()
        if self._gives_up_at is None and self._stopping.is_set():
            self._gives_up_at = now + _reports.LAST_WORDS
        return self._gives_up_at is not None and now >= self._gives_up_at

    def _drop(self, sinks: Iterable[EventSink]) -> None:
        with self.lock:
            for sink in sinks:
                sink.events.clear()
                sink.size = 0
                sink.progress = None
                self._dirty.pop(sink.row.id, None)


def stored_events(rows: Iterable[Any], wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], StoredEvents]:
    """Make what `read_events()` returns of the rows of its statement; what has no row is unknown."""
    events: dict[tuple[str, int], list[EmittedEvent]] = {key: [] for key in wanted}
    statuses: dict[tuple[str, int], DurableStatus] = {}
    for id_, after, state, attempts, returns, given_up, failed, progress, number, text in rows:
        key = str(id_), after
        ended = ended_attempts(STATES[state], attempts, returns, given_up, failed)
        statuses[key] = DurableStatus(STATES[state], ended, progress)
        if number is not None:
            events[key].append(EmittedEvent(number, text.encode()))
    unknown = DurableStatus(DurableState.UNKNOWN, 0)
    return {key: StoredEvents(tuple(found), statuses.get(key, unknown)) for key, found in events.items()}
