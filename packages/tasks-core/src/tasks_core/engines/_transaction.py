"""What `transaction=` takes: the ways to run a statement in a transaction that belongs to somebody else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tasks_core.exceptions import EngineCapabilityError

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from sqlalchemy.ext.asyncio import AsyncConnection as SqlalchemyConnection
    from sqlalchemy.ext.asyncio import AsyncSession

_OVER = (
    "transaction=: the transaction in which the task was scheduled is over, so that the task cannot become part of it. "
    "Let the transaction end after the response has begun, or hand the task over before you commit: "
    "await tasks.after_response.submit()"
)

_PARAMETER = re.compile(r"%\((\w+)\)s")


class Transaction(Protocol):
    """A transaction that the caller has begun, and will commit or roll back."""

    async def fetch_one(self, query: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """Run a statement with `%(name)s` parameters in the transaction."""
        ...


def join_transaction(transaction: Any) -> Transaction:
    """
    Find out what kind of transaction this is; no library is imported that the caller has not imported.

    Raises:
        EngineCapabilityError: it is none that is known, or there is no transaction in it.
    """
    for cls in type(transaction).__mro__:
        known = _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
        if known is not None:
            return known(transaction)
    raise EngineCapabilityError(
        f"transaction= was given a {type(transaction).__module__}.{type(transaction).__qualname__}. Pass the "
        "SQLAlchemy AsyncSession or AsyncConnection (over psycopg or asyncpg), or the psycopg AsyncConnection, in "
        "whose transaction the task is to be"
    )


class _PsycopgTransaction:
    __slots__ = ("_connection",)

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    async def fetch_one(self, query: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        from psycopg.pq import TransactionStatus
        from psycopg.rows import tuple_row

        if self._connection.closed or self._connection.info.transaction_status != TransactionStatus.INTRANS:
            raise EngineCapabilityError(_OVER)
        async with self._connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(query.encode(), parameters)
            row = await cursor.fetchone()
        assert row is not None
        return row


class _SqlalchemyTransaction:
    """
    A session or a connection.

    A session that has been closed would begin a new transaction, which nobody commits, and the task would be gone: so
    the transaction has to be the one of the time of the call.
    """

    __slots__ = ("_at_call", "_owner")

    def __init__(self, owner: AsyncSession | SqlalchemyConnection) -> None:
        self._owner = owner
        self._at_call = _sqlalchemy_transaction(owner)

    async def fetch_one(self, query: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        from sqlalchemy import text
        from sqlalchemy.ext.asyncio import AsyncSession

        now = _sqlalchemy_transaction(self._owner)
        if now is None or (self._at_call is not None and now is not self._at_call):
            raise EngineCapabilityError(_OVER)
        connection = await self._owner.connection() if isinstance(self._owner, AsyncSession) else self._owner
        row = (await connection.execute(text(_PARAMETER.sub(r":\1", query)), parameters)).one()
        return tuple(row)


def _sqlalchemy_transaction(owner: AsyncSession | SqlalchemyConnection) -> object | None:
    synchronous: Any = getattr(owner, "sync_session", None) or getattr(owner, "sync_connection", None)
    transaction: object | None = None if synchronous is None else synchronous.get_transaction()
    return transaction


_KINDS: dict[str, type[_PsycopgTransaction] | type[_SqlalchemyTransaction]] = {
    "psycopg.AsyncConnection": _PsycopgTransaction,
    "sqlalchemy.ext.asyncio.session.AsyncSession": _SqlalchemyTransaction,
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": _SqlalchemyTransaction,
}
