"""Pictures: thumbnails and the search index are made at once; a rename builds the index again, one at a time."""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

import anyio.to_thread
from fastapi import APIRouter, Body, File, Form, HTTPException, UploadFile
from fastapi.responses import FileResponse
from PIL import Image as Picture
from PIL import WebPImagePlugin  # noqa: F401  Pillow would import the plugins of all formats to find this one
from pydantic import BaseModel
from tasks_core import Provided
from tasks_fastapi import Tasks, current_tasks

from .dependencies import Connection, CurrentShop, TaskConnection, TaskShop
from .resources import Shop

router = APIRouter(prefix="/images", tags=["images"])

SIZES = (256, 64)
MAX_BYTES = 10_000_000


class Image(BaseModel):
    id: str
    title: str
    width: int
    height: int


@router.post("", status_code=201, summary="Upload a picture")
async def upload_image(
    file: Annotated[UploadFile, File(description="A PNG, JPEG or WebP picture of at most 10 MB")],
    title: Annotated[str, Form(min_length=1, max_length=200, examples=["Red teapot on a table"])],
    shop: CurrentShop,
    connection: Connection,
    tasks: Tasks,
) -> Image:
    """Store the picture. Thumbnails and the search index are made **at once**, beside the response."""
    content = await file.read(MAX_BYTES + 1)
    width, height = await anyio.to_thread.run_sync(measure, content)
    image = Image(id=uuid4().hex, title=title, width=width, height=height)
    path = shop.images / image.id
    await anyio.Path(path).write_bytes(content)
    # Opened pictures take a lot of memory: two at a time, however many are uploaded.
    tasks.task(limiter=shop.picture_limiter).schedule(generate_thumbnails, shop, path)
    tasks.schedule(update_search_index, shop, image.id, title)
    await connection.execute("insert into images values (:id, :title, :width, :height)", image.model_dump())
    return image


@router.get("", summary="Search for pictures")
async def search_images(shop: CurrentShop, connection: Connection, words: str = "") -> list[Image]:
    """All pictures, or those with all of the words in their title."""
    rows = await connection.execute_fetchall("select * from images")
    images = {row["id"]: Image.model_validate(dict(row)) for row in rows}
    if not words.strip():
        return list(images.values())
    found = await anyio.to_thread.run_sync(shop.search_index.find, words)
    return [images[image_id] for image_id in found if image_id in images]


@router.get("/{image_id}/thumbnails/{size}", summary="Show a thumbnail", response_class=FileResponse)
async def read_thumbnail(image_id: str, size: Literal["64", "256"], shop: CurrentShop, connection: Connection) -> Path:
    """A JPEG that fits into a square of this many pixels; 404 until it is written."""
    cursor = await connection.execute("select id from images where id = ?", (image_id,))
    path = thumbnail_path(shop, image_id, int(size))
    if await cursor.fetchone() is None or not await anyio.Path(path).exists():
        raise HTTPException(404, "There is no such thumbnail, or not yet")
    return path


@router.put("/{image_id}", summary="Rename a picture")
async def rename_image(
    image_id: str,
    title: Annotated[str, Body(embed=True, min_length=1, max_length=200, examples=["Blue teapot"])],
    connection: Connection,
    tasks: Tasks,
) -> Image:
    """
    Store the title. **After the response** the search index is built again: ten renames in a row build it once, a
    second behind the last of them, and never twice at the same time.
    """
    cursor = await connection.execute("update images set title = ? where id = ? returning *", (title, image_id))
    row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404, "There is no such picture")
    reindex = tasks.after_response.task(key="search index", delay=1, on_conflict="replace")
    reindex.schedule(rebuild_search_index)
    return Image.model_validate(dict(row))


def generate_thumbnails(shop: Shop, path: Path) -> None:
    """Write the thumbnails. A plain function runs in a thread of the scheduler, because Pillow does not await."""
    with Picture.open(path) as picture:
        picture.load()
        for size in SIZES:
            thumbnail = picture.convert("RGB")
            thumbnail.thumbnail((size, size))
            target = thumbnail_path(shop, path.name, size)
            thumbnail.save(target.with_suffix(".part"), "JPEG")
            target.with_suffix(".part").replace(target)  # no request reads half a picture


def update_search_index(shop: Shop, image_id: str, title: str) -> None:
    """Add the title of the picture to the index."""
    shop.search_index.add(image_id, title)


async def rebuild_search_index(shop: TaskShop = Provided, connection: TaskConnection = Provided) -> None:
    """Build the index from the titles in the database. What blocks is a task of its own, which has a thread."""
    rows = await connection.execute_fetchall("select id, title from images")
    await current_tasks().schedule(shop.search_index.rebuild, [(row["id"], row["title"]) for row in rows])


def thumbnail_path(shop: Shop, image_id: str, size: int) -> Path:
    """Return the path of a thumbnail."""
    return shop.thumbnails / f"{image_id}-{size}.jpg"


def measure(content: bytes) -> tuple[int, int]:
    """Return width and height of a picture, or raise the `HTTPException` for a file that is none."""
    if len(content) > MAX_BYTES:
        raise HTTPException(413, f"A picture may have at most {MAX_BYTES} bytes")
    try:
        with Picture.open(BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as picture:
            picture.verify()
            return picture.size
    except (OSError, SyntaxError, ValueError, Picture.DecompressionBombError):  # all of them mean a broken picture
        raise HTTPException(422, "This is not a picture in PNG, JPEG or WebP format") from None
