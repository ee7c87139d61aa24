"""One delivery whose task stores its end in a transaction of its own: `durable_context().complete(session)`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeAlias

import anyio

from tasks_core.engines import (
    CompletionOutcome,
    DurableTaskTakenOverError,
    EngineCapabilityError,
    Json,
    RunDelivery,
    StoredResult,
)
from tasks_core.engines import Delivery as CoreDelivery

from . import _reports
from ._connection import WorkerConnection
from ._errors import is_outage
from ._events import EventSink, EventWriter
from ._rows import Row
from ._sql import BEGIN_COMPLETE, COMPLETE, SETTLED
from ._ways import Statement, way_into

logger = logging.getLogger("tasks_core")

# Seconds between two looks at a row that a transaction has locked: at first, and at most.
_LOOK, _LOOK_MAX = 0.01, 1.0
# Seconds after the end of a task until a WARNING says that its transaction is still open.
_LONG = 5.0

SaveProgress: TypeAlias = Callable[[Row, Json], Awaitable[None]]


class Unreported(Exception):  # noqa: N818  an outcome, not an error
    """Raised in place of what a task did, which the worker does not report."""

    def __init__(self, outcome: CompletionOutcome) -> None:
        self.outcome = outcome
        super().__init__(outcome.value)


class Completing:
    """
    The `Completion` of one delivery, and what else the delivery writes to its row while that may be locked.

    From the call of `store()` on, nothing else writes to the row: what the task emits and reports is held back until it
    is known whether the transaction was committed.
    """

    def __init__(self, row: Row, connection: WorkerConnection, events: EventWriter, stopping: anyio.Event) -> None:
        self._row = row
        self._connection = connection
        self._events = events
        self._stopping = stopping
        self._sink: EventSink | None = None
        self._writing = asyncio.Lock()
        self._storing = 0
        self._stored = False
        self._closed = False
        self._outcome: CompletionOutcome | None = None
        self.used = False

    # ---- what the task writes ----

    def open_sink(self) -> EventSink:
        """Return where the delivery writes what it emits."""
        if self._sink is None:
            self._sink = self._events.sink(self._row)
        return self._sink

    async def save_progress(self, progress: Json, save: SaveProgress) -> None:
        """Store the progress; after `store()`, hold it back."""
        async with self._writing:
            if not self.used:
                await save(self._row, progress)
                return
        self.open_sink().report(json.dumps(progress).encode())

    async def store(self, transaction: Any, result: StoredResult | None) -> None:
        """Do what `Completion.store()` promises."""
        way = way_into(transaction, "complete()")
        if self._closed:
            raise DurableTaskTakenOverError(f"complete(): this attempt of {self._row.label} is over")
        self._storing += 1
        try:
            async with self._writing:
                self.used = True
                await self._events.hold(self._row)
                await way.fetch(Statement(BEGIN_COMPLETE, lambda: {"id": self._row.id}))
                ended, in_transaction = await way.fetch(Statement(COMPLETE, lambda: self._parameters(result)))
        finally:
            self._storing -= 1
        if not in_transaction:
            raise EngineCapabilityError(
                "complete() was given a connection in autocommit mode, or one that is not in a transaction: begin one, "
                "so that the end of the task is committed together with its rows"
            )
        if not ended:
            raise DurableTaskTakenOverError(
                f"complete(): {self._row.label} is no longer the call of this worker: another one has it, or its end "
                "is stored already (or the session leads to another database than the engine)"
            )
        self._stored = True

    def _parameters(self, result: StoredResult | None) -> dict[str, Any]:
        return {
            "id": self._row.id,
            "attempts": self._row.attempts,
            "key": self._row.key,
            "note": None if result is None else self._row.history.as_json(result),
        }

    # ---- what became of it ----

    async def outcome(self) -> CompletionOutcome:
        """Do what `Completion.outcome()` promises."""
        self._closed = True
        if self._outcome is None:
            self._outcome = await self._settle()
        return self._outcome

    async def _settle(self) -> CompletionOutcome:
        began, pause, warned = monotonic(), _LOOK, False
        gives_up_at: float | None = None
        while True:
            try:
                rows = [] if self._storing else await self._connection.fetch(SETTLED, {"id": self._row.id})
            except Exception as error:
                if not is_outage(error):
                    label = self._row.label
                    logger.exception(
                        "%s has ended: what became of its transaction is not known, and is asked again",
                        label,
                        extra=label.fields,
                    )
                pause = _reports.RECONNECT
            else:
                if rows:
                    return self._read(*rows[0])
                if not warned and monotonic() - began >= _LONG:
                    warned = True
                    self._warn()
            if gives_up_at is None and self._stopping.is_set():
                gives_up_at = monotonic() + _reports.LAST_WORDS
            if gives_up_at is not None and monotonic() >= gives_up_at:
                return CompletionOutcome.OPEN
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LOOK_MAX)

    def _read(self, state: str, attempts: int) -> CompletionOutcome:
        if self._stored and state in ("succeeded", "gone"):
            return CompletionOutcome.ENDED
        if state == "doing" and attempts == self._row.attempts:
            return CompletionOutcome.ROLLED_BACK
        return CompletionOutcome.LOST

    def _warn(self) -> None:
        label = self._row.label
        logger.warning(
            "%s has ended, and the transaction that it called complete() with is still open: its slot is taken until "
            "that is committed or rolled back",
            label,
            extra=label.fields,
        )

    async def run(self, run: RunDelivery, delivery: CoreDelivery) -> StoredResult | None:
        """
        Have the call run.

        Raises:
            Unreported: what it did does not count, because `complete()` has decided how the call ends.
        """
        try:
            result = await run(delivery)
        except (Exception, asyncio.CancelledError):
            await self._end()
            raise
        await self._end()
        return result

    async def _end(self) -> None:
        self._closed = True
        if not self.used:
            return
        settling = asyncio.create_task(self.outcome())
        while not settling.done():  # also if receipt.cancel() reaches this worker now: the task has ended as it did
            with suppress(asyncio.CancelledError):
                await asyncio.shield(settling)
        outcome = CompletionOutcome.OPEN if settling.cancelled() else settling.result()
        self._events.release(self._row, store=outcome is CompletionOutcome.ROLLED_BACK)
        if outcome is not CompletionOutcome.ROLLED_BACK:
            raise Unreported(outcome) from None
