"""Product pages come from a cache, which is invalidated when the client of an update has its response."""

import json
from typing import Annotated

from aiosqlite import Row
from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field
from tasks_fastapi import Tasks

from .dependencies import Connection, CurrentShop
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
    Store the change. **After the route**, that is after the commit, it goes into the audit log; **after the response**
    the page is dropped from the cache. Neither happens if the commit fails.
    """
    cursor = await connection.execute(
        "update products set name = ?, price = ? where id = ? returning *", (update.name, update.price, product_id)
    )
    product = _found(await cursor.fetchone())
    tasks.after_route.schedule(write_audit_entry, shop, "product changed", product)
    tasks.after_response.schedule(invalidate_product_cache, shop, product_id)
    return product


@router.get("/audit", summary="Show the audit log")
async def read_audit(connection: Connection) -> list[AuditEntry]:
    """The latest changes first."""
    rows = await connection.execute_fetchall("select at, entry from audit order by id desc limit 100")
    return [AuditEntry.model_validate(dict(row)) for row in rows]


async def write_audit_entry(shop: Shop, what: str, product: Product) -> None:
    """Write in a transaction of its own: that of the request is over."""
    entry = json.dumps({"what": what, **product.model_dump()})
    async with shop.database.transaction() as connection:
        await connection.execute("insert into audit (entry) values (?)", (entry,))


async def invalidate_product_cache(shop: Shop, product_id: int) -> None:
    """Have the page made anew when somebody asks for it."""
    shop.product_cache.pop(product_id, None)


def _found(row: Row | None) -> Product:
    if row is None:
        raise HTTPException(404, "There is no such product")
    return Product.model_validate(dict(row))
