"""The ways to run a statement in a transaction that belongs to the caller, by the kind of its session or connection."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import anyio
import anyio.to_thread

from tasks_core.engines import EngineCapabilityError, EngineUnavailableError

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg import Connection as SyncConnection
    from sqlalchemy import Connection as SqlalchemyConnection
    from sqlalchemy.orm import Session

T = TypeVar("T")

Fields: TypeAlias = Sequence[Any]
"""A row, as a driver returns it."""

_PARAMETER = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement with `%(name)s` parameters that returns one row."""

    query: str
    parameters: Callable[[], Mapping[str, Any]]


class Way(Protocol):
    """Leads into a transaction that the caller has begun, and will commit or roll back."""

    async def fetch(self, statement: Statement) -> Fields:
        """Run a statement in the transaction, and return its row."""
        ...


class RunSync(Protocol):
    """Awaits a plain function where it may wait for the database: in a greenlet of SQLAlchemy, or in a thread."""

    def __call__(self, func: Callable[[], T], /) -> Awaitable[T]: ...


class ConnectionWay(Way, Protocol):
    """Leads into the transaction of a connection."""

    def is_over(self) -> bool:
        """Return whether there is no such transaction, as far as the connection knows."""
        ...


def way_into(transaction: Any, parameter: str) -> ConnectionWay | SessionWay:
    """
    Find out what kind of transaction this is; no library is imported that the caller has not imported.

    Args:
        transaction: A session or a connection.

        parameter: What an error calls it.

    Raises:
        EngineCapabilityError: it is of no kind that is known, or not open.
    """
    for cls in type(transaction).__mro__:
        match f"{cls.__module__}.{cls.__qualname__}":
            case "psycopg.AsyncConnection":
                return _PsycopgWay(transaction)
            case "psycopg.Connection":
                return _SyncPsycopgWay(transaction)
            case "sqlalchemy.ext.asyncio.engine.AsyncConnection":
                connection = transaction.sync_connection
                if connection is None:
                    raise EngineCapabilityError(
                        f"{parameter} was given a connection that is not open. Open it first: "
                        "async with engine.connect() as connection"
                    )
                return _ConnectionWay(connection, _greenlet(transaction))
            case "sqlalchemy.engine.base.Connection":
                return _ConnectionWay(transaction, _thread)
            case "sqlalchemy.ext.asyncio.session.AsyncSession":
                return SessionWay(transaction.sync_session, _greenlet(transaction))
            case "sqlalchemy.orm.session.Session":
                return SessionWay(transaction, _thread)
    raise EngineCapabilityError(
        f"{parameter} was given a {type(transaction).__module__}.{type(transaction).__qualname__}. Pass the "
        "SQLAlchemy AsyncSession, Session, AsyncConnection or Connection (over psycopg or asyncpg), or the psycopg "
        "AsyncConnection or Connection, in whose transaction the task is to be"
    )


def _greenlet(owner: Any) -> RunSync:
    async def run(func: Callable[[], T]) -> T:
        result: T = await owner.run_sync(lambda _: func())
        return result

    return run


async def _thread(func: Callable[[], T]) -> T:
    # With a token of its own: threads that have all others may be waiting for this one.
    return await anyio.to_thread.run_sync(func, limiter=anyio.CapacityLimiter(1))


def _is_outside(connection: Any) -> bool:
    from psycopg.pq import TransactionStatus

    # In autocommit mode each statement is a transaction of its own, unless one was begun.
    idle = connection.info.transaction_status == TransactionStatus.IDLE
    return bool(connection.closed or (idle and connection.autocommit))


class _PsycopgWay:
    __slots__ = ("_connection",)

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    def is_over(self) -> bool:
        return _is_outside(self._connection)

    async def fetch(self, statement: Statement) -> Fields:
        from psycopg.rows import tuple_row

        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(statement.query.encode(), statement.parameters())
            row = await cursor.fetchone()
        assert row is not None
        return row


class _SyncPsycopgWay:
    __slots__ = ("_connection",)

    def __init__(self, connection: SyncConnection[Any]) -> None:
        self._connection = connection

    def is_over(self) -> bool:
        return _is_outside(self._connection)

    async def fetch(self, statement: Statement) -> Fields:
        return await _thread(lambda: self._fetch(statement))

    def _fetch(self, statement: Statement) -> Fields:
        from psycopg.rows import tuple_row

        with self._connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(statement.query.encode(), statement.parameters())
            row = cursor.fetchone()
        assert row is not None
        return row


class _ConnectionWay:
    """A connection of SQLAlchemy."""

    __slots__ = ("_connection", "_run")

    def __init__(self, connection: SqlalchemyConnection, run: RunSync) -> None:
        self._connection = connection
        self._run = run

    def is_over(self) -> bool:
        return self._connection.closed or not self._connection.in_transaction()

    async def fetch(self, statement: Statement) -> Fields:
        return await self._run(lambda: execute(self._connection, statement))


class SessionWay:
    """A session of SQLAlchemy, which begins a transaction with the first statement."""

    __slots__ = ("_run", "session")

    def __init__(self, session: Session, run: RunSync) -> None:
        self.session = session
        self._run = run

    async def run(self, func: Callable[[], T]) -> T:
        """Await a plain function that uses the session."""
        return await self._run(func)

    async def fetch(self, statement: Statement) -> Fields:
        return await self._run(lambda: execute(self.session.connection(), statement))


def execute(connection: SqlalchemyConnection, statement: Statement) -> Fields:
    """Run a statement on a connection of SQLAlchemy."""
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    try:
        return tuple(connection.execute(text(_named(statement.query)), dict(statement.parameters())).one())
    except DBAPIError as error:
        if error.connection_invalidated:
            raise EngineUnavailableError("The connection of the transaction was lost") from error
        raise


def _named(query: str) -> str:
    """Spell parameters as SQLAlchemy does."""
    return _PARAMETER.sub(r":\1", query)
