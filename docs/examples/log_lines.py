"""
Prints every kind of line that tasks write to the log: `python docs/examples/log_lines.py`.

The output is stored in `output/log_lines.txt`, in sections that pages include; a test compares the two.
"""

import asyncio
import logging
import sys
import threading

import anyio
import anyio.lowlevel
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from tasks_core import Task, TaskObserver, TaskPhase, TaskScheduler, observe, retry
from tasks_fastapi import Tasks, add_tasks


class JumpingClock:
    """Time that jumps to the next deadline: a shutdown of minutes takes no time, and prints exact seconds."""

    def __init__(self) -> None:
        self._now = 0.0
        self._deadlines: list[float] = []

    def now(self) -> float:
        return self._now

    async def sleep_until(self, deadline: float) -> None:
        self._deadlines.append(deadline)
        try:
            while self._now < deadline:
                for _ in range(50):  # turns of the event loop, in which all that is due now runs before the next jump
                    await anyio.lowlevel.checkpoint()
                if deadline == min(self._deadlines):
                    self._now = max(self._now, deadline)
        finally:
            self._deadlines.remove(deadline)


async def send_email(order_id: int) -> None: ...


async def charge(order_id: int) -> None:
    raise ConnectionError("gateway is down")


async def alert(task: Task[object], error: Exception) -> None:
    raise RuntimeError("pager is down")


async def stream_prices() -> None:
    await anyio.sleep_forever()


async def write_invoice(order_id: int, clock: JumpingClock) -> None:
    await clock.sleep_until(clock.now() + 2.4)


def scan_folder(stop: threading.Event) -> None:
    stop.wait()


class BrokenObserver(TaskObserver):
    def task_started(self, task: Task[object]) -> None:
        raise LookupError("metrics are down")


def section(name: str | None, last: list[str] = []) -> None:  # noqa: B006  the section that is open
    if last:
        print(f"--8<-- [end:{last.pop()}]", flush=True)
    if name is not None:
        last.append(name)
        print(f"--8<-- [start:{name}]", flush=True)


async def failures(scheduler: TaskScheduler) -> None:
    section("failed")
    await scheduler.schedule(charge, 42).wait()
    section("retry")
    again = retry(attempts=2, on=ConnectionError, backoff=0.5)
    await scheduler.task(on_error=again).schedule(charge, 42).wait()
    section("handler")
    await scheduler.task(on_error=alert).schedule(charge, 42).wait()
    section("timeout")
    await scheduler.task(timeout=2.5).schedule(stream_prices).wait()
    section("observer")
    with observe(BrokenObserver()):
        await scheduler.schedule(send_email, 42).wait()


async def wanted_ends(scheduler: TaskScheduler) -> None:
    section("cancelled")
    scheduler.schedule(stream_prices).cancel()
    section("rolled_back")
    after_commit = TaskPhase(scheduler, "after_commit")
    after_commit.schedule(send_email, 42)
    after_commit.discard("the transaction was rolled back")
    section("from_within")
    scope = anyio.CancelScope()
    scope.cancel()

    async def wait_for_cancelled() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    await scheduler.schedule(wait_for_cancelled).wait()


async def shutdown() -> None:
    section("drained")
    clock = JumpingClock()
    async with TaskScheduler(grace_period=10, clock=clock) as scheduler:
        scheduler.schedule(write_invoice, 42, clock)
    section("shutdown")
    stop = threading.Event()
    async with TaskScheduler(grace_period=8, shield_timeout=8, clock=clock) as scheduler:
        scheduler.schedule(write_invoice, 42, clock)
        scheduler.schedule(stream_prices)
        scheduler.task(delay=60).schedule(send_email, 42)
        scan = scheduler.task(shield=True).schedule(scan_folder, stop)
        await scan.started.wait()
    stop.set()


def application() -> FastAPI:
    app = FastAPI()
    add_tasks(app)

    @app.post("/orders")
    async def create_order(tasks: Tasks) -> None:
        tasks.after_response.schedule(send_email, 42)
        raise HTTPException(409)

    return app


async def main() -> None:
    async with TaskScheduler(clock=JumpingClock()) as scheduler:
        await failures(scheduler)
        await wanted_ends(scheduler)
        section(None)
        logging.disable()
    logging.disable(logging.NOTSET)
    await shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx2").disabled = True
    asyncio.run(main())
    section("outcome")
    with TestClient(application()) as client:
        client.post("/orders")
        logging.disable()
    logging.disable(logging.NOTSET)
    section("no_lifespan")
    TestClient(application()).post("/orders")
    section(None)
