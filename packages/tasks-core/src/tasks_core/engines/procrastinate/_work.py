"""A worker: claims calls, has them run, and reports how they ended."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any

import anyio
from psycopg.sql import SQL, Identifier

from tasks_core import Cancel, TasksError
from tasks_core.engines import (
    CompletionOutcome,
    Delivery,
    Json,
    NotUnderstood,
    Redeliver,
    RunDelivery,
    Slots,
    registered_names,
)

from . import _reports
from ._completing import Completing, Unreported
from ._connection import WorkerConnection, address_of_worker
from ._errors import is_outage
from ._events import EventWriter
from ._housekeeping import Housekeeping
from ._liveness import Liveness
from ._options import WorkOptions
from ._reports import Report, Reports
from ._rows import History, Row
from ._slots import WorkerSlots
from ._sql import ABORTED, CLAIM, NEXT_DUE, PROGRESS, REGISTER, UNREGISTER

logger = logging.getLogger("tasks_core")

# Seconds between two looks for calls, for those of which the notification was lost.
POLL = 2.0
# How much longer a worker waits between them while it listens.
_LISTENING = 2.5
# Candidates for each call that is to be claimed: as many workers may claim at the same moment.
_LOOK = 4
# Seconds for which a registration is kept after the answer to a claim was lost: the server may execute it still.
_FORMER = 60.0
# Seconds until a call that was not understood is offered again: the first time, and at most.
_MISFIT_PAUSE, _MISFIT_PAUSE_MAX = 5.0, 300.0


async def work(
    conninfo: str, options: WorkOptions, run: RunDelivery, concurrency: Slots, stopping: anyio.Event
) -> None:
    """Do what `Engine.work()` promises."""
    await _Work(address_of_worker(conninfo), options, run, concurrency, stopping).work()


class _Work:
    def __init__(
        self, conninfo: str, options: WorkOptions, run: RunDelivery, concurrency: Slots, stopping: anyio.Event
    ) -> None:
        self._conninfo = conninfo
        self._options = options
        self._run = run
        self._slots = WorkerSlots(concurrency, options)
        self._stopping = stopping
        self._claims = WorkerConnection(conninfo)
        self._writes = WorkerConnection(conninfo)
        self._progress = WorkerConnection(conninfo)
        self._of_events = WorkerConnection(conninfo)
        self._settling = WorkerConnection(conninfo)
        self._events = EventWriter(self._of_events, stopping)
        self._reports = Reports(self._writes, self._when_stored, stopping)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, Row] = {}  # running, or ended and not yet reported
        self._suspect: int | None = None  # the one that was running when a worker died
        self._aborted: set[int] = set()
        self._claiming = False
        self._number: int | None = None  # of this worker in the database
        self._names: list[str] = []
        self._former: dict[int, float] = {}  # earlier numbers, and since when
        self._lost: str | None = None  # the error because of which the worker cannot claim
        self._listening = False
        self._wake = asyncio.Event()

    async def work(self) -> None:
        liveness = Liveness(self._conninfo, self._options, self, asyncio.get_running_loop())
        reports = asyncio.create_task(self._reports.run(), name="tasks reports")
        beside = [
            asyncio.create_task(side, name=f"tasks {name}")
            for name, side in (
                ("listen", self._listen()),
                ("housekeeping", Housekeeping(self._conninfo, self._options, self._slots).run()),
                ("stop", self._wake_when_stopped()),
                ("events", self._events.run()),
            )
        ]
        liveness.start()
        try:
            await self._claim_until_stopped()
        finally:
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            self._reports.close()
            await reports
            liveness.stop()
            await self._end(beside)
            await asyncio.to_thread(liveness.join)
            await self._leave()

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        # A cancellation may get lost: when a query ends at that very moment, wait_for() of Python 3.11, in which
        # psycopg waits, returns as if nothing had happened. So it is repeated until the task has ended.
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=1.0)
        for task in tasks:
            if not task.cancelled() and task.exception() is not None:  # pragma: no cover  # a fault of this package
                logger.error("The worker ended with an error beside its tasks", exc_info=task.exception())

    async def _leave(self) -> None:
        """Sign off, unless there are calls that other workers have to miss this worker for."""
        numbers = [*self._former, *([] if self._number is None else [self._number])]
        if numbers and not self._reports.abandoned:
            with suppress(Exception):
                await self._claims.fetch(UNREGISTER, {"ids": numbers})
        for connection in (self._claims, self._writes, self._progress, self._of_events, self._settling):
            await connection.close()

    async def _wake_when_stopped(self) -> None:
        await self._stopping.wait()
        self.wake()

    # ---- claims ----

    async def _claim_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            timeout = None
            free = self._slots.free()
            if free["queues"]:
                try:
                    if await self._claim(free):
                        continue
                    timeout = await self._next_due(free["queues"])
                except Exception as error:
                    self._when_claim_failed(error)
                    self._wake.clear()
                    timeout = _reports.RECONNECT
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)

    async def _claim(self, free: dict[str, Any]) -> bool:
        """Start the calls that are claimed, and return whether there were any."""
        await self._register()
        self._claiming = True
        try:
            rows = await self._claims.fetch(
                CLAIM,
                {
                    **free,
                    "names": self._names,
                    "worker": self._number,
                    "look": max(free["free"]) * _LOOK,
                    "suspects": self._suspect is None,
                },
            )
            for row in rows:
                self._start(Row.read(self._options, *row))
        finally:
            self._claiming = False
            self._aborted &= self._running.keys()
        if self._lost is not None:
            self._lost = None
            logger.info("The worker has its database again")
        return bool(rows)

    async def _register(self) -> None:
        names = sorted(registered_names())
        if self._number is not None and names != self._names:
            self._leave_registration()
        if self._former and not self._held:
            oldest = monotonic() - _FORMER
            self._former = {number: since for number, since in self._former.items() if since > oldest}
        if self._number is None:
            self._slots.refresh()
            [[self._number]] = await self._claims.fetch(REGISTER, {"queues": self._slots.queues, "names": names})
            self._names = names

    async def _next_due(self, queues: list[str]) -> float:
        # Of those queues only that have a free slot: what is due in another queue would be looked for without a pause.
        [[seconds]] = await self._claims.fetch(NEXT_DUE, {"queues": queues, "names": self._names})
        poll = POLL * _LISTENING if self._listening else POLL
        return poll if seconds is None else min(poll, max(0.01, seconds))

    def _when_claim_failed(self, error: Exception) -> None:
        """Leave the registration: the database may have claimed calls for it, and the answer was lost."""
        self._leave_registration()
        if not is_outage(error):
            logger.error("The worker cannot claim tasks, and tries again", exc_info=error)
        elif type(error).__name__ != self._lost:
            logger.warning("The worker lost its database (%s) and tries again", type(error).__name__)
        self._lost = type(error).__name__

    def _leave_registration(self) -> None:
        if self._number is not None:
            self._former[self._number] = monotonic()
            self._number = None

    # ---- what the heartbeat asks, from its thread, and reports, on the event loop ----

    def registered(self) -> tuple[int | None, list[int]]:
        return self._number, list(self._former)

    def queues(self) -> list[str]:
        return self._slots.queues

    def held(self) -> list[int]:
        return list(self._held)

    def forget_registration(self, number: int) -> None:
        if number == self._number:
            self._number = None

    def abort(self, ids: list[int]) -> None:
        for id_ in ids:
            task = self._running.get(id_)
            if task is not None and id_ not in self._aborted:
                self._aborted.add(id_)
                # Not at once: a native task that is cancelled before its first step would report nothing.
                asyncio.get_running_loop().call_soon(task.cancel)
            elif self._claiming:
                self._aborted.add(id_)  # the notification has come before the answer that says who has the call

    def wake(self) -> None:
        self._wake.set()

    # ---- notifications ----

    async def _listen(self) -> None:
        connection = WorkerConnection(self._conninfo)
        while True:
            with suppress(Exception):  # a worker that cannot listen still looks every two seconds
                async with connection.session() as listening:
                    if connection.pooled:
                        logger.warning(
                            "The worker is connected to PostgreSQL through a pooler. Notifications need a session of "
                            "their own: unless it pools sessions, tasks start up to %g s late. Give the worker the "
                            "address of the server itself",
                            POLL,
                        )
                    for queue in self._slots.queues:
                        channel = Identifier(f"procrastinate_queue_v1#{queue}")
                        await listening.execute(SQL("LISTEN {}").format(channel))
                    self._listening = not connection.pooled
                    self.wake()
                    # What was cancelled before now was notified to no connection.
                    cursor = await listening.execute(ABORTED, {"held": self.held()})
                    self.abort([row[0] for row in await cursor.fetchall()])
                    async for notification in listening.notifies():
                        self._when_notified(notification.payload)
            self._listening = False
            await asyncio.sleep(_reports.RECONNECT)

    def _when_notified(self, payload: str) -> None:
        if "abort_job_requested" in payload:
            with suppress(ValueError, KeyError):
                self.abort([json.loads(payload)["job_id"]])
        else:
            self._wake.set()

    # ---- one call ----

    def _start(self, row: Row) -> None:
        self._held[row.id] = row
        if row.history.deaths:
            self._suspect = row.id
        self._slots.take(row.queue)
        task = asyncio.create_task(self._deliver(row), name=f"tasks {row.name}")
        self._running[row.id] = task
        task.add_done_callback(lambda _: self._when_ended(row))

    def _when_ended(self, row: Row) -> None:
        del self._running[row.id]
        self._slots.give_back(row.queue)
        self._wake.set()

    def _when_stored(self, report: Report) -> None:
        self._forget(report.row.id)

    def _forget(self, id_: int) -> None:
        self._held.pop(id_, None)
        if self._suspect == id_:
            self._suspect = None
            self._wake.set()

    async def _deliver(self, row: Row) -> None:
        completing = Completing(row, self._settling, self._events, self._stopping)
        try:
            if row.id in self._aborted:
                raise asyncio.CancelledError
            report = await self._report_of(row, completing)
        except Unreported as unreported:
            self._aborted.discard(row.id)
            self._when_unreported(row, unreported.outcome)
            return
        except BaseException as error:
            report = self._report_of_error(row, error)
            if not isinstance(error, Exception | asyncio.CancelledError):  # pragma: no cover  # the process ends
                self._reports.add(report)
                raise
        self._aborted.discard(row.id)
        try:
            await self._events.flush(row)  # before the report, which tells followers that there are no more events
        finally:
            self._reports.add(replace(report, strict=completing.used))

    def _when_unreported(self, row: Row, outcome: CompletionOutcome) -> None:
        if outcome is CompletionOutcome.OPEN:
            self._reports.abandoned += 1  # other workers have to miss this one for the call
        else:
            self._forget(row.id)

    async def _report_of(self, row: Row, completing: Completing) -> Report:
        try:
            call = row.call()
        except Exception as error:
            return self._misfit(row, error)

        async def report_progress(progress: Json) -> None:
            await completing.save_progress(progress, self._save_progress)

        delivery = Delivery(
            call,
            row.attempt,
            row.history.failures,
            report_progress,
            row.history.given_up,
            id=str(row.id),
            open_events=completing.open_sink,
            progress=row.fields.get("progress"),
            completion=completing,
        )
        try:
            result = await completing.run(self._run, delivery)
        except NotUnderstood as error:
            return self._misfit(row, error.__cause__ or error)
        except Redeliver as again:
            history = row.history.when_understood()
            if again.failed:
                errors = row.failed(again.__cause__ or again).errors
                history = replace(history, failures=history.failures + 1, errors=errors)
            else:
                history = replace(history, returns=history.returns + 1)
                if not again.delay:
                    logger.info("%s is back in the queue", row.label, extra=row.label.fields)
            # A pause of nothing is no time at all: the call is at its place in the queue, and workers are notified.
            return Report(row, "todo", again.delay or None, 0, history.as_json())
        except Cancel as cancel:
            history = row.history.when_understood() if cancel.__cause__ is None else row.failed(cancel.__cause__)
            return Report(row, "aborted", note=history.as_json(reason=cancel.reason))
        return Report(row, "succeeded", note=None if result is None else row.history.as_json(result))

    def _report_of_error(self, row: Row, error: BaseException) -> Report:
        if isinstance(error, asyncio.CancelledError):
            if row.id in self._aborted:
                logger.info("%s is cancelled, as was asked for", row.label, extra=row.label.fields)
                return Report(row, "aborted")
            logger.info("%s is back in the queue: the event loop of its worker ends", row.label, extra=row.label.fields)
            return Report(row, "todo", None, 0, replace(row.history, returns=row.history.returns + 1).as_json())
        logger.warning("%s has failed for good (%s)", row.label, type(error).__name__, extra=row.label.fields)
        return Report(row, "failed", note=row.failed(error).after_failure().as_json())

    def _misfit(self, row: Row, error: BaseException) -> Report:
        """Put a call back that another release of its function may understand, for a limited time."""
        history = row.history
        since = row.claimed_at if history.misfit_since is None else history.misfit_since
        waited = row.claimed_at - since
        if history.given_up is not None:
            logger.error(
                "%s has failed: this worker cannot read it (%s)",
                row.label,
                type(error).__name__,
                extra=row.label.fields,
            )
            return Report(row, "failed", note=row.failed(error).after_failure().as_json())
        pause: float | None = min(_MISFIT_PAUSE * 2.0 ** min(history.misfits, 16), _MISFIT_PAUSE_MAX)
        given_up = None
        if waited >= self._options.unknown_for:
            given_up, pause = f"no worker understood it for {waited:.0f} s", None
        logger.log(
            logging.ERROR if not history.misfits else logging.DEBUG,
            "%s is not understood by this worker, whose release may be another one (%s). It is %s",
            row.label,
            error if isinstance(error, TasksError) else type(error).__name__,  # whose text may have arguments in it
            "given up" if given_up else f"offered again in {pause:g} s, for {self._options.unknown_for:g} s at most",
            extra=row.label.fields,
        )
        history = History(
            failures=history.failures,
            returns=history.returns + 1,
            deaths=history.deaths,
            misfits=history.misfits + 1,
            misfit_since=since,
            given_up=given_up,
            errors=history.errors,
        )
        return Report(row, "todo", pause, -1 if history.misfits == 1 else 0, history.as_json())

    async def _save_progress(self, row: Row, progress: Json) -> None:
        text = json.dumps(progress)
        await self._events.flush(row)  # what was reported before must not be stored after this
        while True:
            try:
                await self._progress.fetch(PROGRESS, {"id": row.id, "attempts": row.attempts, "progress": text})
                return
            except Exception as error:
                if not is_outage(error):
                    raise
            await asyncio.sleep(_reports.RECONNECT)
