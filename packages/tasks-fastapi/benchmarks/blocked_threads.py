"""
How long a `def` endpoint takes while 200 background tasks block their threads, against an idle application.

python packages/tasks-fastapi/benchmarks/blocked_threads.py [--requests N]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys

from apps import with_blocking_tasks
from asgi import Driver, running

_BLOCKING = 200
_SECONDS = 1.0
_BAR = 1.2


async def latency(driver: Driver, requests: int) -> float:
    """Return the median milliseconds of a request to the `def` endpoint."""
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(requests):
        began = loop.time()
        times.append((await driver.request("/quick") - began) * 1000)
    return statistics.median(times)


async def measure(library: str, idle_requests: int, busy_requests: int) -> tuple[float, float]:
    async with running(with_blocking_tasks(library, _BLOCKING, _SECONDS)) as driver:
        await latency(driver, idle_requests)
        idle = await latency(driver, idle_requests)
        await driver.request("/block", "POST")
        await asyncio.sleep(0.1)  # by now, the threads are taken
        return idle, await latency(driver, busy_requests)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100)
    options = parser.parse_args()
    logging.disable()  # each of the blocked tasks is cancelled at the end, and would say so
    ratios = {}
    print(f"{'library':<16} {'idle ms':>9} {f'{_BLOCKING} blocked ms':>16} {'ratio':>8}")
    # With fastapi-tasks one request is enough: it waits until all the blocking tasks have had their turn.
    for library, busy_requests in (("fastapi-tasks", 1), ("tasks", options.requests)):
        idle, busy = asyncio.run(measure(library, options.requests, busy_requests))
        ratios[library] = busy / idle
        print(f"{library:<16} {idle:>9.2f} {busy:>16.2f} {busy / idle:>8.2f}")
    met = ratios["tasks"] <= _BAR
    print(f"\n{'ok  ' if met else 'MISS'} a def endpoint next to {_BLOCKING} blocked tasks: at most {_BAR} times idle")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
