import asyncio
import logging
from typing import Annotated

from fastapi import FastAPI
from pydantic import BaseModel, StringConstraints
from tasks_fastapi import Tasks, add_tasks

logging.basicConfig(
    level=logging.INFO,
    format="%(levelname)s:     %(name)s: %(message)s",
)
logger = logging.getLogger("shop")

app = FastAPI()
add_tasks(app)


class User(BaseModel):
    email: Annotated[str, StringConstraints(pattern=".+@.+")]


async def save_user(user: User) -> None:
    await asyncio.sleep(0.1)  # stands for a database
    logger.info("database: %s is saved", user.email)


async def count_signup(email: str) -> None:
    logger.info("signups: one more, from %s", email.partition("@")[2])


async def write_audit_log(event: str) -> None:
    logger.info("audit: %s", event)


def send_welcome_email(email: str) -> None:
    logger.info("mail: welcome, %s", email)


@app.post("/users", status_code=201)
async def create_user(user: User, tasks: Tasks) -> User:
    tasks.after_response.schedule(send_welcome_email, user.email)
    tasks.after_route.schedule(write_audit_log, "user created")
    tasks.schedule(count_signup, user.email)
    await save_user(user)
    return user
