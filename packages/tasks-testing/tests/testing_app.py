"""An application under test; the tests of the plugin copy it next to the suites that they run."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from tasks_core import retry
from tasks_fastapi import Tasks, add_tasks

app = FastAPI()
add_tasks(app)
users: list[dict[str, Any]] = []


class NewUser(BaseModel):
    email: str


async def audit(event: str, user: int) -> str:
    return f"{event} {user}"


async def send_email(to: str) -> str:
    for user in users:
        if user["email"] == to:
            user["state"] = "welcomed"
    return f"sent to {to}"


async def charge(order: int) -> str:
    return f"charged {order}"


@app.post("/users", status_code=201)
async def create_user(new: NewUser, tasks: Tasks) -> dict[str, Any]:
    user = {"id": len(users) + 1, "email": new.email, "state": "pending"}
    users.append(user)
    tasks.schedule(audit, "created", len(users))
    tasks.after_response.schedule(send_email, new.email)
    return user


@app.get("/users/{number}")
async def read_user(number: int) -> dict[str, Any]:
    return users[number - 1]


@app.post("/orders")
async def create_order(tasks: Tasks) -> dict[str, Any]:
    tasks.after_response.task(on_error=retry(attempts=3, on=ConnectionError)).schedule(charge, 7)
    return {}


@app.get("/health")
async def health() -> dict[str, Any]:
    return {}
