"""What `transaction=` takes: the ways to run a statement in a transaction that belongs to the caller."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import anyio.to_thread

from tasks_core.engines import EngineCapabilityError, EngineUnavailableError

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg import Connection as SyncConnection
    from sqlalchemy import Connection as SqlalchemyConnection
    from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger("tasks_core")


class Row(NamedTuple):
    """What a statement that stores a call returns."""

    id: int
    created: bool
    """Whether the row is new."""
    same: bool
    """Whether its arguments are those of the call."""
    key: str
    """The idempotency key of the row."""
    replaced: Sequence[int]
    """The rows that were cancelled because this one takes their place."""


RunSync: TypeAlias = "Callable[[Callable[[], Row]], Awaitable[Row]]"
"""Awaits a plain function where it may wait for the database: in a greenlet of SQLAlchemy, or in a thread."""

_OVER = (
    "transaction=: the transaction in which the task was scheduled is over, so that the task cannot become part of it. "
    "Let the transaction end after the response has begun, or submit the task before you commit: "
    "await tasks.after_response.submit()"
)
_PARAMETER = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement with `%(name)s` parameters that stores a call, and returns a `Row`."""

    query: str
    parameters: Callable[[], Mapping[str, Any]]


class Transaction(Protocol):
    """A transaction that the caller has begun, and will commit or roll back."""

    @property
    def stored(self) -> bool:
        """Whether the call became part of the transaction before `store()` was called."""
        ...

    @property
    def dropped(self) -> bool:
        """Whether the call was scheduled within a savepoint that was rolled back, so that it must not be stored."""
        ...

    async def store(self) -> Row:
        """Store the call in the transaction, or return the row that is there."""
        ...


def join_transaction(transaction: Any, statement: Statement, wanted: Callable[[], bool], name: str) -> Transaction:
    """
    Find out what kind of transaction this is; no library is imported that the caller has not imported.

    Raises:
        EngineCapabilityError: it is none that is known.
    """
    for cls in type(transaction).__mro__:
        match f"{cls.__module__}.{cls.__qualname__}":
            case "psycopg.AsyncConnection":
                return _PsycopgTransaction(transaction, statement)
            case "psycopg.Connection":
                return _SyncPsycopgTransaction(transaction, statement)
            case "sqlalchemy.ext.asyncio.engine.AsyncConnection":
                connection = transaction.sync_connection
                if connection is None:
                    raise EngineCapabilityError(
                        "transaction= was given a connection that is not open. Open it first: "
                        "async with engine.connect() as connection"
                    )
                return _ConnectionTransaction(connection, _greenlet(transaction), statement)
            case "sqlalchemy.engine.base.Connection":
                return _ConnectionTransaction(transaction, _thread, statement)
            case "sqlalchemy.ext.asyncio.session.AsyncSession":
                session = transaction.sync_session
                return _SessionTransaction(session, _greenlet(transaction), statement, wanted, name)
            case "sqlalchemy.orm.session.Session":
                return _SessionTransaction(transaction, _thread, statement, wanted, name)
    raise EngineCapabilityError(
        f"transaction= was given a {type(transaction).__module__}.{type(transaction).__qualname__}. Pass the "
        "SQLAlchemy AsyncSession, Session, AsyncConnection or Connection (over psycopg or asyncpg), or the psycopg "
        "AsyncConnection or Connection, in whose transaction the task is to be"
    )


def _greenlet(owner: Any) -> RunSync:
    async def run(func: Callable[[], Row]) -> Row:
        row: Row = await owner.run_sync(lambda _: func())
        return row

    return run


async def _thread(func: Callable[[], Row]) -> Row:
    return await anyio.to_thread.run_sync(func)


def _check_begun(connection: Any) -> None:
    from psycopg.pq import TransactionStatus

    # In autocommit mode each statement is a transaction of its own, unless one was begun.
    idle = connection.info.transaction_status == TransactionStatus.IDLE
    if connection.closed or (idle and connection.autocommit):
        raise EngineCapabilityError(_OVER)


class _PsycopgTransaction:
    __slots__ = ("_connection", "_statement")

    stored = False
    dropped = False

    def __init__(self, connection: AsyncConnection[Any], statement: Statement) -> None:
        self._connection = connection
        self._statement = statement

    async def store(self) -> Row:
        from psycopg.rows import tuple_row

        _check_begun(self._connection)
        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(self._statement.query.encode(), self._statement.parameters())
            row = await cursor.fetchone()
        assert row is not None
        return Row(*row)


class _SyncPsycopgTransaction:
    __slots__ = ("_connection", "_statement")

    stored = False
    dropped = False

    def __init__(self, connection: SyncConnection[Any], statement: Statement) -> None:
        self._connection = connection
        self._statement = statement

    async def store(self) -> Row:
        return await _thread(self._store)

    def _store(self) -> Row:
        from psycopg.rows import tuple_row

        _check_begun(self._connection)
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(self._statement.query.encode(), self._statement.parameters())
            row = cursor.fetchone()
        assert row is not None
        return Row(*row)


class _ConnectionTransaction:
    """A connection of SQLAlchemy."""

    __slots__ = ("_connection", "_run", "_statement")

    stored = False
    dropped = False

    def __init__(self, connection: SqlalchemyConnection, run: RunSync, statement: Statement) -> None:
        self._connection = connection
        self._run = run
        self._statement = statement

    async def store(self) -> Row:
        if self._connection.closed or not self._connection.in_transaction():
            raise EngineCapabilityError(_OVER)
        return await self._run(lambda: _execute(self._connection, self._statement))


class _SessionTransaction:
    """
    A session of SQLAlchemy.

    The call becomes part of the root transaction, whatever savepoints do: it is stored by `store()`, or else right
    before the root transaction is committed. A row that was stored within a savepoint which is rolled back is stored
    again. A call that was scheduled within such a savepoint is dropped with it.

    A session that has been closed would begin a new transaction, which nothing commits, and the task would be gone: so
    the transaction has to be the one of the time of the call, or the first one if there was none.
    """

    __slots__ = (
        "_acknowledged",
        "_committed",
        "_name",
        "_over",
        "_root",
        "_row",
        "_run",
        "_savepoints",
        "_session",
        "_statement",
        "_stored_in",
        "_wanted",
        "dropped",
    )

    def __init__(
        self, session: Session, run: RunSync, statement: Statement, wanted: Callable[[], bool], name: str
    ) -> None:
        from sqlalchemy import event

        self._session = session
        self._run = run
        self._statement = statement
        self._wanted = wanted
        self._name = name
        self._row: Row | None = None
        self._acknowledged = False
        self._committed = False
        self._over = False
        self.dropped = False
        self._root: SessionTransaction | None = session.get_transaction()
        self._savepoints = _savepoints(session)  # those of the call
        self._stored_in: list[SessionTransaction] = []  # those of the row
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_soft_rollback", self._after_rollback)

    @property
    def stored(self) -> bool:
        return self._row is not None

    async def store(self) -> Row:
        if self._row is None:
            if not self._is_current():
                raise EngineCapabilityError(_OVER)
            self._row = await self._run(self._store)
            self._acknowledged = True
        return self._row

    def _store(self) -> Row:
        self._row = _execute(self._session.connection(), self._statement)
        self._stored_in = _savepoints(self._session)
        return self._row

    def _is_current(self) -> bool:
        if self._over or self.dropped:
            return False
        return self._root is None or self._root is self._session.get_transaction()

    # ---- what the session reports; also for each savepoint ----

    def _before_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is not None or self._row is not None or not self._is_current():
            return
        if self._acknowledged or self._wanted():
            self._store()

    def _after_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            self._committed = self._row is not None
            self._over = True

    def _after_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        if self._over:
            return
        if ended in self._stored_in or not ended.nested:
            self._row = None
        if ended in self._savepoints:
            self.dropped = True
            logger.info(
                "Durable task %r is dropped: the savepoint that it was scheduled in was rolled back", self._name
            )
        elif not ended.nested:
            self._over = True


def _savepoints(session: Session) -> list[SessionTransaction]:
    """Return the savepoints that are open, from the inner to the outer."""
    found = []
    transaction = session.get_nested_transaction()
    while transaction is not None and transaction.nested:
        found.append(transaction)
        transaction = transaction.parent
    return found


def _execute(connection: SqlalchemyConnection, statement: Statement) -> Row:
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    try:
        row = connection.execute(text(_named(statement.query)), dict(statement.parameters())).one()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise EngineUnavailableError("The connection of the transaction was lost") from error
        raise
    return Row(*row)


def _named(query: str) -> str:
    """Spell parameters as SQLAlchemy does."""
    return _PARAMETER.sub(r":\1", query)
