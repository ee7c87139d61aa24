"""What one worker of a queue does for all: deleting old rows, and looking after calls that no worker knows."""

from __future__ import annotations

import asyncio
import logging

import psycopg

from tasks_core.engines import CallLabel, registered_names

from ._connection import WorkerConnection
from ._errors import is_outage
from ._liveness import MISSED
from ._options import WorkOptions
from ._slots import WorkerSlots
from ._sql import (
    ANALYZE,
    FILL_KEYS,
    FORGET_WORKERS,
    GIVE_UP_UNKNOWN,
    HOUSEKEEPING_LOCK,
    IS_ANALYZED,
    MARK_UNKNOWN,
    PURGE,
    UNKNOWN,
    UNSERVED,
)

logger = logging.getLogger("tasks_core")

# Seconds between two rounds.
PAUSE = 60.0
# Seconds between two batches of a round: other statements come first.
_BREATH = 0.05


class Housekeeping:
    """Rounds that go on until they are cancelled; an error ends a round, and not the rounds."""

    def __init__(self, conninfo: str, options: WorkOptions, slots: WorkerSlots) -> None:
        self._connection = WorkerConnection(conninfo)
        self._options = options
        self._slots = slots
        self._reported: set[tuple[str, str]] = set()
        self._unserved: set[str] = set()

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._analyze()
                    await self._look_after_unserved()
                    unknown = [await self._look_after_unknown(queue) for queue in self._slots.queues]
                    self._reported = set().union(*unknown)
                    await self._connection.fetch(FILL_KEYS)
                    await self._purge()
                except (psycopg.Error, OSError) as error:
                    if is_outage(error):
                        logger.debug("Housekeeping waits for the database (%s)", type(error).__name__)
                    else:
                        logger.exception("Housekeeping failed, and is tried again in %g s", PAUSE)
                await self._connection.close()
                await asyncio.sleep(PAUSE)
        finally:
            await self._connection.close()

    async def _analyze(self) -> None:
        """Give the planner statistics before autovacuum comes for the first time."""
        [[analyzed]] = await self._connection.fetch(IS_ANALYZED)
        if not analyzed:
            await self._connection.fetch(ANALYZE)

    # ---- calls that no worker knows ----

    async def _look_after_unserved(self) -> None:
        """Warn about each queue that no living worker serves and that has calls of functions of this worker."""
        parameters = {"names": registered_names(), "silence": self._options.heartbeat * MISSED}
        waiting: dict[str, list[str]] = {}
        for queue, name in await self._connection.fetch(UNSERVED, parameters):
            if queue not in self._slots.queues:  # this worker may not be in the database yet
                waiting.setdefault(queue, []).append(name)
        for queue, names in waiting.items():
            if queue not in self._unserved:
                name = self._options.queue_of(queue)
                logger.warning(
                    "No worker serves the queue %r, where calls of %s wait. Run one: python -m tasks_core worker ... "
                    "--queue %s=4",
                    name,
                    ", ".join(map(repr, sorted(names))),
                    name,
                )
        self._unserved = set(waiting)

    async def _look_after_unknown(self, queue_name: str) -> set[tuple[str, str]]:
        """Mark, and in the end give up, the calls of a queue that no worker knows; return the queue with each name."""
        options = self._options
        queue = {"queue": queue_name}
        rows = await self._connection.fetch(UNKNOWN, {**queue, "silence": options.heartbeat * MISSED})
        own = registered_names()  # which may not be in the database yet
        names = [row[0] for row in rows if row[0] not in own]
        for name in names:
            if (queue_name, name) not in self._reported:
                logger.error(
                    "No worker of queue %r knows the function %r: its calls wait, and fail after %g s",
                    queue_name,
                    name,
                    options.unknown_for,
                )
            marked = True
            while marked:
                marked = bool(await self._connection.fetch(MARK_UNKNOWN, {**queue, "name": name}))
            while given_up := await self._connection.fetch(
                GIVE_UP_UNKNOWN, {**queue, "name": name, "unknown_for": options.unknown_for}
            ):
                for job_id, key in given_up:
                    label = CallLabel(name, str(key), str(job_id), options.queue_of(queue_name))
                    logger.error(
                        "%s has failed: no worker knew its function for %g s",
                        label,
                        options.unknown_for,
                        extra=label.fields,
                    )
        return {(queue_name, name) for name in names}

    # ---- rows that were kept for their time ----

    async def _purge(self) -> None:
        kept = self._options.kept
        after: int | None = 0
        deleted = 0
        async with self._connection.session() as connection:
            while after is not None:
                async with connection.transaction():
                    lock = await (await connection.execute(HOUSEKEEPING_LOCK)).fetchone()
                    if lock is None or not lock[0]:
                        break  # another worker goes on
                    parameters = {**kept, "queues": self._slots.queues, "after": after, "least": min(kept.values())}
                    row = await (await connection.execute(PURGE, parameters)).fetchone()
                    if row is not None and not after:
                        await connection.execute(FORGET_WORKERS)
                assert row is not None
                last, gone, more = row
                deleted += gone
                after = last if more else None
                await asyncio.sleep(_BREATH)
        if deleted:
            logger.info("Deleted %d tasks that had been kept for their time", deleted)
