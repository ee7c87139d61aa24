"""
What a type checker knows about `tasks: Tasks` in an endpoint: read by mypy, pyright, ty and pyrefly, never run.

A line that has to be an error carries the `type: ignore` for it; one that is not needed is an error.
"""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, assert_type

from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from tasks_core import DurablePhase, ScheduleTarget, TaskScheduler
from tasks_fastapi import (
    Provided,
    RequestTasks,
    Task,
    TaskConfig,
    Tasks,
    add_tasks,
    current_tasks,
    get_scheduler,
    get_tasks,
    retry,
)

app = FastAPI()
add_tasks(app, config=TaskConfig(shield=True), grace_period=10)
add_tasks(Starlette(), shield_timeout=None, max_concurrency=10, max_pending=100)
add_tasks(app, nonsense=1)  # type: ignore[call-arg]  # no error for ty
add_tasks(app, grace_period="10 s")  # type: ignore[arg-type]
add_tasks()  # type: ignore[call-arg]


async def charge(order: int, *, currency: str = "EUR") -> bool:
    return order > 0 and bool(currency)


def render(order: int, scale: float) -> bytes:
    return bytes(int(order * scale))


class Mailer:
    async def send(self, address: str) -> int:
        return len(address)


@app.post("/orders/{order}")
async def result_types(order: int, tasks: Tasks) -> None:
    assert_type(tasks, RequestTasks)
    assert_type(tasks.after_route, DurablePhase)
    assert_type(tasks.after_response, DurablePhase)
    assert_type(tasks.schedule(charge, order), Task[bool])
    assert_type(tasks.schedule(render, order, scale=2.0), Task[bytes])
    assert_type(tasks.schedule(Mailer().send, "a@b.c"), Task[int])
    assert_type(tasks.schedule(partial(charge, currency="USD"), order), Task[bool])
    assert_type(tasks.after_route.schedule(charge, order, currency="USD"), Task[bool])
    assert_type(tasks.after_route.schedule(render, order, 2.0), Task[bytes])
    assert_type(tasks.after_response.schedule(charge, order), Task[bool])
    assert_type(tasks.after_response.schedule(render, order, 2.0), Task[bytes])


@app.post("/orders/{order}/wrong")
def wrong_arguments(order: int, tasks: Tasks) -> None:
    tasks.schedule(charge, "1")  # type: ignore[call-overload]
    tasks.schedule(render, order)  # type: ignore[call-overload]
    tasks.schedule(charge(order))  # type: ignore[call-overload]
    tasks.schedule(Mailer().send, order)  # type: ignore[call-overload]
    tasks.after_route.schedule(charge)  # type: ignore[call-overload]
    tasks.after_route.schedule(charge, order, currency=978)  # type: ignore[arg-type]
    tasks.after_response.schedule(charge, order, colour="red")  # type: ignore[call-arg]
    tasks.after_response.schedule(render, order, "2.0")  # type: ignore[call-overload]


@app.post("/orders/{order}/configured")
async def configured(order: int, tasks: Tasks) -> None:
    payment = tasks.after_response.task(
        name="charge", shield=True, timeout=30, on_error=retry(attempts=5, on=ConnectionError)
    )
    assert_type(payment, ScheduleTarget)
    assert_type(payment.schedule(charge, order), Task[bool])
    assert_type(tasks.task(delay=1).schedule(render, order, 2.0), Task[bytes])
    assert_type(tasks.after_route.task(when="error").schedule(charge, order), Task[bool])
    payment.schedule(charge, "1")  # type: ignore[call-overload]
    tasks.task(delay=1).schedule(render, order)  # type: ignore[call-overload]
    tasks.after_route.task(when="error").schedule(charge)  # type: ignore[call-overload]
    tasks.after_response.task(when="sometimes")  # type: ignore[arg-type]


class Session:
    pass


async def get_session() -> AsyncIterator[Session]:
    yield Session()


SessionDep = Annotated[Session, Depends(get_session)]


async def send_receipt(order: int, session: SessionDep = Provided) -> str:
    return f"{order} {session}"


def send_the_old_way(order: int, session: Session = Depends(get_session)) -> str:  # noqa: B008
    return f"{order} {session}"


@app.post("/orders/{order}/provided")
async def provided(order: int, tasks: Tasks) -> None:
    assert_type(tasks.after_response.schedule(send_receipt, order), Task[str])
    assert_type(tasks.after_response.schedule(send_receipt, order, Session()), Task[str])
    assert_type(tasks.after_response.schedule(send_the_old_way, order), Task[str])
    tasks.after_response.schedule(send_receipt, "1")  # type: ignore[call-overload]
    tasks.after_response.schedule(send_receipt)  # type: ignore[call-overload]
    tasks.after_response.schedule(send_receipt, order, "session")  # type: ignore[call-overload]
    tasks.after_response.schedule(send_the_old_way, "1")  # type: ignore[call-overload]


@app.post("/orders/{order}/background")
async def background(order: int, tasks: Tasks) -> None:
    assert_type(tasks.add_task(charge, order), Task[bool])
    assert_type(tasks.add_task(render, order, scale=2.0), Task[bytes])
    assert_type(current_tasks(), RequestTasks)
    assert_type(current_tasks().after_response.schedule(charge, order), Task[bool])
    tasks.add_task(charge, "1")  # type: ignore[call-overload]
    tasks.add_task(render, order)  # type: ignore[call-overload]


def outside_of_an_endpoint(connection: HTTPConnection) -> None:
    assert_type(get_tasks(connection), RequestTasks)
    assert_type(get_scheduler(app), TaskScheduler)
    assert_type(get_scheduler(app).schedule(charge, 1), Task[bool])
    get_scheduler(app).schedule(charge, "1")  # type: ignore[call-overload]
