"""The dependencies of the endpoints, and those of the tasks, which have no request."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, TypeAlias

import aiosqlite
from fastapi import Depends, Request

from .resources import Shop, shared_shop

logger = logging.getLogger("shop.database")


async def get_shop(request: Request) -> Shop:
    """Return the resources that the lifespan opened."""
    shop: Shop = request.state.shop
    return shop


CurrentShop: TypeAlias = Annotated[Shop, Depends(get_shop)]


async def get_connection(shop: CurrentShop) -> AsyncIterator[aiosqlite.Connection]:
    """Lend a connection to the endpoint; commit when it returns, roll back when it raises."""
    async with shop.database.transaction() as connection:
        yield connection
    logger.debug("The transaction of the request is committed")


# With the scope "function" the commit comes before the response: a client that reads "201 Created" can rely on it.
Connection: TypeAlias = Annotated[aiosqlite.Connection, Depends(get_connection, scope="function")]

TaskShop: TypeAlias = Annotated[Shop, Depends(shared_shop)]


async def get_task_connection(shop: TaskShop) -> AsyncIterator[aiosqlite.Connection]:
    """Lend each attempt of a task a connection; commit when it succeeds, roll back when it fails."""
    async with shop.database.transaction() as connection:
        yield connection


TaskConnection: TypeAlias = Annotated[aiosqlite.Connection, Depends(get_task_connection)]
