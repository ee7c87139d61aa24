import os
from pathlib import Path

from fastapi import FastAPI
from tasks_core import RetryPolicy, durable, durable_context
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_fastapi import Tasks, add_tasks

FOLDER = Path(os.environ.get("PAYMENTS", "payments"))
engine = ProcrastinateEngine.embedded(FOLDER / "postgres")  # in production: ProcrastinateEngine("postgresql://...")


@durable(name="charge", retry=RetryPolicy(attempts=5, on=ConnectionError), shield=True)
async def charge(order_id: int, cents: int) -> None:
    """Take the money. A second run is safe, because the provider takes the money once for each key."""
    with (FOLDER / "provider.txt").open("a") as provider:
        provider.write(f"{durable_context().idempotency_key}: {cents} cents for order {order_id}\n")


app = FastAPI()
add_tasks(app, engine=engine)


@app.post("/orders/{order_id}")
async def place_order(order_id: int, tasks: Tasks) -> str:
    tasks.after_response.schedule(charge.configure(idempotency_key=f"charge-{order_id}"), order_id, 2990)
    return "placed"
