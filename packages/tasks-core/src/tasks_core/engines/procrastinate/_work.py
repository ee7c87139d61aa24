"""Running procrastinate's worker so that it survives its database, and taking over from workers that are dead."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from time import monotonic
from typing import Any, LiteralString

import anyio
import psycopg
from procrastinate import App, BaseRetryStrategy, JobContext, PsycopgConnector, RetryDecision
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.worker import Worker as ProcrastinateWorker
from psycopg_pool import AsyncConnectionPool

from tasks_core import RetryPolicy
from tasks_core.engines import Delivery, DurableCall, Json, Redeliver, RunDelivery

from ._queries import KEEP_ALIVE, PROGRESS, PURGE, REAP
from ._reports import Reports

logger = logging.getLogger("tasks_core")

TASK_NAME = "tasks_core.run"
"""The one task that procrastinate knows: it runs calls, whatever they are named."""

# A worker that misses this many heartbeats is dead.
_MISSED = 4
# Seconds after which procrastinate forgets a worker. Long: one that was only without a database comes back, and its
# tasks, which it still runs, would belong to nobody.
_FORGOTTEN = 24 * 3600.0
# Seconds between two looks for tasks: those that are put back come without a notification.
_POLL = 2.0
# Seconds between two attempts to reach a database that is away.
_RECONNECT = 1.0
# Seconds after which a query that gets no connection takes the database to be away.
_PATIENCE = 5.0
# Seconds that a worker which is being stopped tries to say how its last tasks ended.
_LAST_WORDS = 10.0


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """What `ProcrastinateEngine` was told about workers."""

    queue: str
    heartbeat: float
    max_deaths: int
    keep_finished: float


async def work(conninfo: str, options: WorkOptions, run: RunDelivery, concurrency: int, stopping: anyio.Event) -> None:
    """Do what `Engine.work()` promises."""
    _hide_arguments()
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        conninfo,
        min_size=2,
        max_size=min(concurrency, 8) + 2,
        open=False,
        check=AsyncConnectionPool.check_connection,
        timeout=_PATIENCE,
        name="tasks worker",
    )
    async with pool:
        await _Work(pool, options, run, concurrency, stopping).work()


class _Work:
    def __init__(
        self,
        pool: AsyncConnectionPool[Any],
        options: WorkOptions,
        run: RunDelivery,
        concurrency: int,
        stopping: anyio.Event,
    ) -> None:
        self._pool = pool
        self._options = options
        self._run = run
        self._concurrency = concurrency
        self._stopping = stopping
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[int] = set()
        self._workers: dict[asyncio.Task[None], ProcrastinateWorker] = {}  # the last one takes tasks, the others leave
        self._lost = asyncio.Event()
        self._over = False
        self._connector = _PatientConnector(self._lost.set, stopping)
        self._reports = Reports(self._connector)
        self._app = self._new_app()

    def _new_app(self) -> App:
        app = App(connector=self._connector)
        app.job_manager = self._reports
        queue = self._options.queue
        app.task(name=TASK_NAME, queue=queue, pass_context=True, retry=_Again())(self._run_job)
        # Also what keeps the worker's own watch over its side tasks going, which ends with the first that returns.
        purge = app.task(name="tasks_core.purge", queue=queue, queueing_lock=f"tasks_core.purge {queue}")(self._purge)
        app.periodic(cron="*/10 * * * *", periodic_id=queue)(purge)
        return app

    async def work(self) -> None:
        await self._connector.open_async(self._pool)
        watch = asyncio.create_task(self._watch(), name="tasks watch")
        stop = asyncio.create_task(self._stopping.wait(), name="tasks stop")
        try:
            while not stop.done():
                self._lost.clear()
                worker = self._new_worker()
                run = asyncio.create_task(self._run_worker(worker), name="tasks worker")
                self._workers[run] = worker
                lost = asyncio.create_task(self._lost.wait())
                await asyncio.wait((run, lost, stop), return_when=asyncio.FIRST_COMPLETED)
                lost.cancel()
                # One that has lost the database ends when its tasks have; others take its place at once.
                self._workers = {run: worker for run, worker in self._workers.items() if not run.done()}
                if not stop.done():
                    await asyncio.wait((stop,), timeout=_RECONNECT)
        finally:
            # A cancellation alone may get lost: when a query ends at that very moment, wait_for() of Python 3.11,
            # in which older releases of psycopg wait, returns as if nothing had been. So each is told as well.
            for run, worker in self._workers.items():
                worker.stop()  # type: ignore[no-untyped-call]  # procrastinate does not say that it returns nothing
                run.cancel()  # which it takes for another request to stop, and waits for its tasks
            stop.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._over = True
            watch.cancel()
            await asyncio.gather(watch, stop, return_exceptions=True)

    def _new_worker(self) -> ProcrastinateWorker:
        return ProcrastinateWorker(
            self._app,
            queues=[self._options.queue],
            name="tasks_core",
            concurrency=self._concurrency,
            fetch_job_polling_interval=_POLL,
            install_signal_handlers=False,
            update_heartbeat_interval=self._options.heartbeat,
            stalled_worker_timeout=_FORGOTTEN,
        )

    async def _run_worker(self, worker: ProcrastinateWorker) -> None:
        try:
            await worker.run()  # type: ignore[no-untyped-call]  # as above
        except Exception as error:
            if _is_outage(error):
                logger.warning("The worker lost its database (%s) and tries again", type(error.__cause__).__name__)
            else:
                logger.exception("The worker failed, and starts again")

    # ---- one task ----

    async def _run_job(self, context: JobContext, /, **fields: Any) -> None:
        job_id = context.job.id
        assert job_id is not None
        self._running.add(job_id)
        processing = asyncio.current_task()  # procrastinate's, which ends with the report
        assert processing is not None
        processing.add_done_callback(lambda ended: self._when_reported(context.job, ended))
        try:
            async with self._slots:
                await self._run(self._delivery(context.job, job_id, fields))
        except Redeliver as again:
            await self._reports.count(context.job, "failures" if again.failed else "returns")
            raise

    def _when_reported(self, job: Job, processing: asyncio.Task[Any]) -> None:
        """Stop the heartbeat of a job: its end is stored now, which may be long after the end of the function."""
        assert job.id is not None
        self._running.discard(job.id)
        error = None if processing.cancelled() else processing.exception()
        if error is not None:
            logger.warning(
                "Task %r, key %s, job %d, has ended and is delivered again: the database could not be told (%s)",
                job.task_kwargs.get("name"),
                job.task_kwargs.get("key"),
                job.id,
                type(error.__cause__ or error).__name__,
            )

    def _delivery(self, job: Job, job_id: int, fields: dict[str, Any]) -> Delivery:
        retry = fields.get("retry")
        call = DurableCall(
            name=fields["name"],
            args=fields["args"],
            idempotency_key=fields["key"],
            retry=None if retry is None else RetryPolicy.from_json(retry),
            headers=fields.get("headers") or {},
        )

        async def report_progress(progress: Json) -> None:
            await self._connector.execute_query_async(PROGRESS, job_id=job_id, progress=json.dumps(progress))

        return Delivery(call, job.attempts - fields.get("returns", 0) + 1, fields.get("failures", 0), report_progress)

    # ---- what has to be done beside ----

    async def _purge(self, timestamp: int) -> None:
        await self._connector.execute_query_async(
            PURGE, queue=self._options.queue, older_than=self._options.keep_finished
        )

    async def _watch(self) -> None:
        """Keep the own tasks from being taken for dead, and put back those of the dead."""
        silence = self._options.heartbeat * _MISSED
        # Those who were without the database, as this one may have been, get the time to show that they live.
        judges_from = monotonic() + silence
        while not self._over:
            try:
                async with self._pool.connection() as connection:
                    await connection.execute(KEEP_ALIVE, {"running": list(self._running)})
                    for row in await self._reap(connection, silence if monotonic() >= judges_from else None):
                        _tell_of_death(*row)
            except (psycopg.Error, OSError) as error:
                judges_from = monotonic() + silence
                logger.debug("The worker cannot look for stalled tasks: %s", type(error).__name__)
            await asyncio.sleep(self._options.heartbeat)

    async def _reap(self, connection: psycopg.AsyncConnection[Any], silence: float | None) -> list[Any]:
        """Put back what nobody runs; *silence*: seconds after which others are dead, `None`: never."""
        cursor = await connection.execute(
            REAP,
            {
                "queue": self._options.queue,
                "silence": silence,
                "max_deaths": self._options.max_deaths,
                "leaving": [worker.worker_id for worker in list(self._workers.values())[:-1]],
                "running": list(self._running),
            },
        )
        return await cursor.fetchall()


def _tell_of_death(job_id: int, name: str | None, key: str, deaths: int, given_up: bool, _: object) -> None:
    if name is None:
        return  # not a task, but the cleaning up behind tasks
    if given_up:
        logger.error("Task %r, key %s, job %d, is failed: %d workers died while they ran it", name, key, job_id, deaths)
    else:
        logger.warning("Task %r, key %s, job %d, is back in the queue: the worker that ran it died", name, key, job_id)


class _Again(BaseRetryStrategy):
    """Has procrastinate do what the exception asks for."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if isinstance(exception, Redeliver):
            return RetryDecision(retry_at=datetime.now(UTC) + timedelta(seconds=exception.delay))
        return None


class _PatientConnector(PsycopgConnector):
    """
    Waits for a database that is away where procrastinate's worker would fail: heartbeats, the end of a task, listening.

    Only a worker that cannot take new tasks is told (*lost*); what it has done is reported when the database is back.
    """

    def __init__(self, lost: Callable[[], None], stopping: anyio.Event) -> None:
        super().__init__()
        self._on_lost = lost
        self._stopping = stopping
        self._gives_up_at = inf

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        while True:
            try:
                await super().execute_query_async(query, **arguments)
                return
            except ConnectorException as error:
                if not _is_outage(error) or self._is_enough():
                    raise
            await asyncio.sleep(_RECONNECT)

    def _is_enough(self) -> bool:
        """Whether a worker that is to stop has tried for long enough, with all its queries together."""
        now = monotonic()
        if self._stopping.is_set():
            self._gives_up_at = min(self._gives_up_at, now + _LAST_WORDS)
        return now >= self._gives_up_at

    async def execute_query_one_async(self, query: LiteralString, **arguments: Any) -> dict[str, Any]:
        try:
            row: dict[str, Any] = await super().execute_query_one_async(query, **arguments)
        except ConnectorException as error:
            if _is_outage(error):
                self._on_lost()
            raise
        return row

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        while True:
            with suppress(ConnectorException):  # who cannot listen still looks every two seconds
                await super().listen_notify(on_notification=on_notification, channels=channels)
            await asyncio.sleep(_RECONNECT)


def _is_outage(error: BaseException) -> bool:
    # InternalError is what a server says that has become a standby.
    away = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, OSError)
    return isinstance(error.__cause__ or error, away)


def _hide_arguments() -> None:
    """Keep procrastinate from logging the arguments of our tasks; what happens to them is in our own lines."""
    logging.getLogger("procrastinate.worker.tasks_core").setLevel(logging.WARNING)
    logging.getLogger("procrastinate.worker").addFilter(_is_of_others)


def _is_of_others(record: logging.LogRecord) -> bool:
    job: dict[str, Any] = getattr(record, "job", None) or {}
    return job.get("task_name") != TASK_NAME
