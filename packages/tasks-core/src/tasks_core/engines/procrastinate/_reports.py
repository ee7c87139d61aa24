"""How deliveries ended, stored in batches: a report waits for no other, and those that come meanwhile go together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Literal

import anyio

from ._connection import WorkerConnection
from ._errors import is_outage
from ._rows import Row
from ._sql import REPORT

logger = logging.getLogger("tasks_core")

# Seconds between two attempts to reach a database that is away.
RECONNECT = 1.0
# Seconds for which a worker that is being stopped tries to report how its last tasks ended.
LAST_WORDS = 10.0
# Reports in one statement.
_BATCH = 500

ReportedState = Literal["succeeded", "failed", "aborted", "todo"]


@dataclass(frozen=True, slots=True)
class Report:
    """How a delivery ended."""

    row: Row
    state: ReportedState
    delay: float | None = None
    """Seconds until a call that is put back is due; `None`: at once."""
    priority: int = 0
    """What is added to the priority of a call that is put back."""
    note: str | None = None
    """The history of the call as JSON; `None`: it remains as it is."""
    strict: bool = False
    """Whether a success counts only if the call is still that of this delivery."""


class Reports:
    """
    Reports deliveries, one batch after the other, until all are stored.

    The database may be away for any time; a worker that is stopped gives up after `LAST_WORDS`. A report that
    the database refuses is tried again for as long, and holds up no other.
    """

    def __init__(
        self, connection: WorkerConnection, when_stored: Callable[[Report], None], stopping: anyio.Event
    ) -> None:
        self._connection = connection
        self._when_stored = when_stored
        self._stopping = stopping
        self._waiting: list[Report] = []
        self._wake = asyncio.Event()
        self._refused = 0  # reports that the database has refused, and that are added again in a while
        self._closed = False
        self._gives_up_at = inf
        self.abandoned = 0
        """Reports that could not be stored before the worker ended."""

    def add(self, report: Report) -> None:
        self._waiting.append(report)
        self._wake.set()

    def close(self) -> None:
        """Let `run()` return as soon as all reports are stored."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        while self._waiting or self._refused or not self._closed:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = self._waiting[:_BATCH]
            del self._waiting[:_BATCH]
            await self._store(batch)

    async def _store(self, batch: list[Report]) -> None:
        while True:
            try:
                await self._send(batch)
                break
            except Exception as error:
                if self._is_enough():
                    self._abandon(batch, error)
                    return
                if not is_outage(error):
                    if len(batch) == 1:
                        self._put_off(batch[0], error)
                    else:  # one report must not keep the others from being stored
                        for report in batch:
                            await self._store([report])
                    return
            await asyncio.sleep(RECONNECT)
        for report in batch:
            self._when_stored(report)

    def _put_off(self, report: Report, error: Exception) -> None:
        label = report.row.label
        logger.error(
            "%s has ended: that could not be stored, and is tried again", label, exc_info=error, extra=label.fields
        )
        self._refused += 1
        asyncio.get_running_loop().call_later(RECONNECT, self._take_up, report)

    def _take_up(self, report: Report) -> None:
        self._refused -= 1
        self.add(report)

    async def _send(self, batch: list[Report]) -> None:
        await self._connection.fetch(
            REPORT,
            {
                "ids": [report.row.id for report in batch],
                "attempts": [report.row.attempts for report in batch],
                "states": [report.state for report in batch],
                "delays": [report.delay for report in batch],
                "priorities": [report.priority for report in batch],
                "notes": [report.note for report in batch],
                "strict": [report.strict for report in batch],
            },
        )

    def _is_enough(self) -> bool:
        """Return whether a worker that is being stopped has tried for long enough, with all reports together."""
        now = monotonic()
        if self._stopping.is_set():
            self._gives_up_at = min(self._gives_up_at, now + LAST_WORDS)
        return now >= self._gives_up_at

    def _abandon(self, batch: list[Report], error: Exception) -> None:
        self.abandoned += len(batch)
        for report in batch:
            logger.warning(
                "%s has ended and is delivered again: its end could not be stored (%s)",
                report.row.label,
                type(error).__name__,
                extra=report.row.label.fields,
            )
