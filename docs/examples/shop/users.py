"""Sign-up: the welcome e-mail is sent when the client has its response."""

import sqlite3
from typing import Annotated

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field
from tasks_fastapi import Tasks

from .dependencies import Connection, CurrentShop
from .resources import Shop

router = APIRouter(prefix="/users", tags=["users"])

EmailAddress = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=200)]


class NewUser(BaseModel):
    email: EmailAddress = Field(examples=["ann@example.org"])
    name: str = Field(min_length=1, max_length=100, examples=["Ann"])


class User(NewUser):
    id: int


@router.post("", status_code=201, summary="Sign up")
async def create_user(new: NewUser, shop: CurrentShop, connection: Connection, tasks: Tasks) -> User:
    """Store the user, and send a welcome e-mail **after the response**: no client waits for a mail server."""
    try:
        cursor = await connection.execute("insert into users (email, name) values (?, ?)", (new.email, new.name))
    except sqlite3.IntegrityError:
        raise HTTPException(409, "There is an account for this address") from None
    assert cursor.lastrowid is not None
    tasks.after_response.schedule(send_welcome_email, shop, new.email, new.name)
    return User(id=cursor.lastrowid, **new.model_dump())


@router.get("/{user_id}", summary="Show a user")
async def read_user(user_id: int, connection: Connection) -> User:
    """What was stored at sign-up."""
    cursor = await connection.execute("select * from users where id = ?", (user_id,))
    row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404, "There is no such user")
    return User.model_validate(dict(row))


def send_welcome_email(shop: Shop, email: str, name: str) -> None:
    """A plain function, because `smtplib` blocks: it runs in a thread of the scheduler."""
    shop.mailer.send(email, f"Welcome, {name}", f"Hello {name},\n\nyour account is ready.\n")
