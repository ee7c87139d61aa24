"""An application under test; the tests of the plugin copy it next to the suites that they run."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from tasks_core import retry
from tasks_fastapi import Tasks, add_tasks

app = FastAPI()
add_tasks(app)
states: dict[int, str] = {}


class NewUser(BaseModel):
    email: str


async def audit(event: str, user: int) -> str:
    return f"{event} {user}"


async def send_email(to: str, user: int = 0) -> str:
    states[user] = "welcomed"
    return f"sent to {to}"


async def charge(order: int) -> str:
    return f"charged {order}"


@app.post("/users", status_code=201)
async def create_user(user: NewUser, tasks: Tasks) -> dict[str, Any]:
    number = len(states) + 1
    states[number] = "pending"
    tasks.schedule(audit, "created", number)
    tasks.after_response.schedule(send_email, user.email)
    return {"id": number}


@app.post("/members", status_code=201)
async def create_member(user: NewUser, tasks: Tasks) -> dict[str, Any]:
    number = len(states) + 1
    states[number] = "pending"
    tasks.after_response.schedule(send_email, user.email, number)
    return {"id": number}


@app.get("/users/{number}")
async def read_user(number: int) -> dict[str, Any]:
    return {"id": number, "state": states[number]}


@app.post("/orders")
async def create_order(tasks: Tasks) -> dict[str, Any]:
    tasks.after_response.task(on_error=retry(attempts=3, on=ConnectionError)).schedule(charge, 7)
    return {}


@app.get("/health")
async def health() -> dict[str, Any]:
    return {}
