"""One re-index at a time for each customer, also when ten requests ask for it in a second."""

from fastapi import FastAPI
from tasks_fastapi import Tasks, add_tasks

app = FastAPI()
add_tasks(app)


async def reindex(customer: int) -> None:
    """Stands for work that takes a while, and must not run twice at once for one customer."""


async def book(account: int, cents: int) -> None:
    """Stands for work that has to be done for each call, in the order of the calls."""


@app.post("/customers/{customer}/documents")
async def add_document(customer: int, tasks: Tasks) -> None:
    debounced = tasks.after_response.task(key=f"reindex:{customer}", delay=5, on_conflict="replace")
    debounced.schedule(reindex, customer)


@app.post("/accounts/{account}/bookings")
async def add_booking(account: int, cents: int, tasks: Tasks) -> None:
    tasks.after_response.task(key=f"account:{account}", on_conflict="queue").schedule(book, account, cents)
