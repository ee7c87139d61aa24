"""What `transaction=` takes: the ways to run a statement in a transaction that belongs to somebody else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tasks_core.engines import EngineCapabilityError, EngineUnavailableError

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from sqlalchemy.ext.asyncio import AsyncConnection as SqlalchemyConnection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

Row: TypeAlias = "tuple[int, bool, bool]"
"""The id of the job, whether it is new, and whether its arguments are those of the call."""

_OVER = (
    "transaction=: the transaction in which the task was scheduled is over, so that the task cannot become part of it. "
    "Let the transaction end after the response has begun, or hand the task over before you commit: "
    "await tasks.after_response.submit()"
)
_PARAMETER = re.compile(r"%\((\w+)\)s")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement with `%(name)s` parameters that stores a call, and returns a `Row`: its id, and whether it is new."""

    query: str
    parameters: Mapping[str, Any]


class Transaction(Protocol):
    """A transaction that the caller has begun, and will commit or roll back."""

    @property
    def stored(self) -> bool:
        """Whether the call became part of the transaction before `store()` was asked for."""
        ...

    async def store(self) -> Row:
        """Store the call in the transaction, or return the row that is there."""
        ...


def join_transaction(transaction: Any, statement: Statement, wanted: Callable[[], bool]) -> Transaction:
    """
    Find out what kind of transaction this is; no library is imported that the caller has not imported.

    Raises:
        EngineCapabilityError: it is none that is known.
    """
    for cls in type(transaction).__mro__:
        match f"{cls.__module__}.{cls.__qualname__}":
            case "psycopg.AsyncConnection":
                return _PsycopgTransaction(transaction, statement)
            case "sqlalchemy.ext.asyncio.engine.AsyncConnection":
                return _SqlalchemyTransaction(transaction, statement)
            case "sqlalchemy.ext.asyncio.session.AsyncSession":
                return _SessionTransaction(transaction, statement, wanted)
    raise EngineCapabilityError(
        f"transaction= was given a {type(transaction).__module__}.{type(transaction).__qualname__}. Pass the "
        "SQLAlchemy AsyncSession or AsyncConnection (over psycopg or asyncpg), or the psycopg AsyncConnection, in "
        "whose transaction the task is to be"
    )


class _PsycopgTransaction:
    __slots__ = ("_connection", "_statement")

    stored = False

    def __init__(self, connection: AsyncConnection[Any], statement: Statement) -> None:
        self._connection = connection
        self._statement = statement

    async def store(self) -> Row:
        from psycopg.pq import TransactionStatus
        from psycopg.rows import tuple_row

        if self._connection.closed or self._connection.info.transaction_status != TransactionStatus.INTRANS:
            raise EngineCapabilityError(_OVER)
        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(self._statement.query.encode(), self._statement.parameters)
            row = await cursor.fetchone()
        assert row is not None
        return row[0], row[1], row[2]


class _SqlalchemyTransaction:
    """A connection. What comes with it is for sessions as well."""

    __slots__ = ("_owner", "_statement")

    stored = False

    def __init__(self, owner: SqlalchemyConnection, statement: Statement) -> None:
        self._owner = owner
        self._statement = statement

    async def store(self) -> Row:
        if self._owner.closed or not self._owner.in_transaction():
            raise EngineCapabilityError(_OVER)
        return await _execute(self._owner, self._statement)


class _SessionTransaction:
    """
    A session.

    One that has been closed would begin a new transaction, which nobody commits, and the task would be gone: so the
    transaction has to be the one of the time of the call. If that is committed before anybody asks for the task to be
    stored, it is stored then.
    """

    __slots__ = ("_at_call", "_committed", "_row", "_session", "_statement", "_wanted")

    def __init__(self, session: AsyncSession, statement: Statement, wanted: Callable[[], bool]) -> None:
        from sqlalchemy import event

        self._session = session
        self._statement = statement
        self._wanted = wanted
        self._row: Row | None = None
        self._committed = False
        self._at_call: SessionTransaction | None = session.sync_session.get_transaction()
        event.listen(session.sync_session, "before_commit", self._before_commit)
        event.listen(session.sync_session, "after_commit", self._after_commit)
        event.listen(session.sync_session, "after_rollback", self._after_rollback)

    @property
    def stored(self) -> bool:
        return self._row is not None

    async def store(self) -> Row:
        if self._row is None:
            if not self._is_current():
                raise EngineCapabilityError(_OVER)
            self._row = await _execute(await self._session.connection(), self._statement)
        return self._row

    def _is_current(self) -> bool:
        now = self._session.sync_session.get_transaction()
        return now is not None and self._at_call in (None, now)

    def _before_commit(self, session: Session) -> None:
        from sqlalchemy import text

        if self._row is None and self._wanted() and self._is_current():
            row = session.connection().execute(text(_named(self._statement.query)), self._statement.parameters).one()
            self._row = row[0], row[1], row[2]

    def _after_commit(self, _session: Session) -> None:
        self._committed = self._row is not None

    def _after_rollback(self, _session: Session) -> None:
        if not self._committed:
            self._row = None


async def _execute(connection: SqlalchemyConnection, statement: Statement) -> Row:
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    try:
        row = (await connection.execute(text(_named(statement.query)), statement.parameters)).one()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise EngineUnavailableError("The connection of the transaction was lost") from error
        raise
    return row[0], row[1], row[2]


def _named(query: str) -> str:
    """Spell parameters as SQLAlchemy does."""
    return _PARAMETER.sub(r":\1", query)
