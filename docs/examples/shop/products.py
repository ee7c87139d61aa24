"""
Product pages come from a cache, which is invalidated when the client of an update has its response.

The catalogue is a file that is written for one download, and deleted when the download has ended.
"""

import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import anyio
import anyio.to_thread
from aiosqlite import Row
from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from tasks_core import Provided
from tasks_fastapi import Tasks

from .dependencies import Connection, CurrentShop, TaskConnection
from .resources import Shop

router = APIRouter(tags=["products"])

Cents = Annotated[int, Field(gt=0, description="Price in cents", examples=[1990])]


class ProductUpdate(BaseModel):
    name: str = Field(min_length=1, max_length=100, examples=["Teapot, blue"])
    price: Cents


class Product(ProductUpdate):
    id: int


class StockedProduct(Product):
    stock: int


class AuditEntry(BaseModel):
    at: str
    entry: str


@router.get("/products", summary="List the products")
async def list_products(connection: Connection) -> list[StockedProduct]:
    """Straight from the database, with what is in stock."""
    rows = await connection.execute_fetchall("select * from products order by id")
    return [StockedProduct.model_validate(dict(row)) for row in rows]


@router.get("/catalogue.csv", summary="Download the catalogue", response_class=StreamingResponse)
async def download_catalogue(connection: Connection, tasks: Tasks) -> StreamingResponse:
    """
    Write a file and stream it. **After the route**, while the client still reads, the download goes into the audit
    log; **after the response** the file is deleted, even when the client has closed the connection.
    """
    rows = await connection.execute_fetchall("select * from products order by id")
    products = [StockedProduct.model_validate(dict(row)) for row in rows]
    file = await anyio.to_thread.run_sync(write_catalogue, products)
    tasks.after_response.task(when="always").schedule(delete_file, file)
    tasks.after_route.schedule(write_audit_entry, "catalogue downloaded")
    return StreamingResponse(read_slowly(file), media_type="text/csv")


@router.get("/products/{product_id}", summary="Show a product page")
async def read_product(product_id: int, shop: CurrentShop, connection: Connection, response: Response) -> Product:
    """From the cache if it is there: the header `X-Cache` says `hit` or `miss`."""
    product = shop.product_cache.get(product_id)
    response.headers["X-Cache"] = "miss" if product is None else "hit"
    if product is None:
        cursor = await connection.execute("select * from products where id = ?", (product_id,))
        product = shop.product_cache[product_id] = _found(await cursor.fetchone())
    return product


@router.put("/products/{product_id}", summary="Change a product")
async def update_product(
    product_id: int, update: ProductUpdate, shop: CurrentShop, connection: Connection, tasks: Tasks
) -> Product:
    """
    Store the change. **After the route**, which here is after the commit, it goes into the audit log; **after the
    response** the page is deleted from the cache. Neither happens if the commit fails.
    """
    cursor = await connection.execute(
        "update products set name = ?, price = ? where id = ? returning *", (update.name, update.price, product_id)
    )
    product = _found(await cursor.fetchone())
    tasks.after_route.schedule(write_audit_entry, "product changed", product)
    tasks.after_response.schedule(invalidate_product_cache, shop, product_id)
    return product


@router.get("/audit", summary="Show the audit log")
async def read_audit(connection: Connection) -> list[AuditEntry]:
    """The latest changes first."""
    rows = await connection.execute_fetchall("select at, entry from audit order by id desc limit 100")
    return [AuditEntry.model_validate(dict(row)) for row in rows]


async def write_audit_entry(what: str, product: Product | None = None, connection: TaskConnection = Provided) -> None:
    """Write in a transaction of its own, because that of the request has ended."""
    entry = json.dumps({"what": what, **(product.model_dump() if product else {})})
    await connection.execute("insert into audit (entry) values (?)", (entry,))


async def invalidate_product_cache(shop: Shop, product_id: int) -> None:
    """Delete the page, so that the next request reads the database."""
    shop.product_cache.pop(product_id, None)


def write_catalogue(products: list[StockedProduct]) -> Path:
    """Return a new temporary file with a line for each product."""
    with NamedTemporaryFile("w", prefix="catalogue-", suffix=".csv", newline="", delete=False) as file:
        writer = csv.DictWriter(file, list(StockedProduct.model_fields))
        writer.writeheader()
        writer.writerows(product.model_dump() for product in products)
    return Path(file.name)


async def read_slowly(path: Path) -> AsyncIterator[str]:
    """Yield the lines at the speed of a slow connection."""
    async with await anyio.open_file(path) as file:
        async for line in file:
            await anyio.sleep(0.02)
            yield line


def delete_file(path: Path) -> None:
    """Delete a file that no request reads any more."""
    path.unlink()


def _found(row: Row | None) -> Product:
    if row is None:
        raise HTTPException(404, "There is no such product")
    return Product.model_validate(dict(row))
