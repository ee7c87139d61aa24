"""
What a request costs with background tasks, in this process, as ratios in one run.

python packages/tasks-fastapi/benchmarks/in_process.py [--requests N] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from contextlib import AsyncExitStack

from apps import LIBRARIES, PHASES
from asgi import Driver, running
from fastapi import FastAPI

NUMBERS = (1, 10)
BLOCK = 20


async def drive(driver: Driver, requests: int) -> None:
    for _ in range(requests):
        await driver.request()
        await asyncio.sleep(0)  # as behind a server: the tasks of a request do not wait for all other requests
    for _ in range(10):
        await asyncio.sleep(0)  # the last tasks end here, not while another application is measured


async def measure(apps: list[FastAPI], requests: int) -> list[float]:
    """
    Return microseconds of processor time for a request and its tasks, for each of the applications.

    They take turns in short blocks: a slow stretch of the machine slows all of them.
    """
    spent = [0.0] * len(apps)
    async with AsyncExitStack() as stack:
        drivers = [await stack.enter_async_context(running(app)) for app in apps]
        for driver in drivers:
            await drive(driver, 100)
        gc.collect()
        gc.freeze()  # what all the applications consist of is not looked through while one of them is measured
        for _ in range(requests // BLOCK):
            for index, driver in enumerate(drivers):
                began = time.process_time()
                await drive(driver, BLOCK)
                spent[index] += time.process_time() - began
    return [seconds / (requests // BLOCK * BLOCK) * 1e6 for seconds in spent]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cases = [
        (library, phase, number)
        for library in LIBRARIES
        for phase in PHASES[library]
        for number in ((0,) if phase == "-" else NUMBERS)
    ]
    times: dict[tuple[str, str, int], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        apps = [LIBRARIES[library](number, phase) for library, phase, number in cases]
        for case, microseconds in zip(cases, asyncio.run(measure(apps, options.requests)), strict=True):
            times[case].append(microseconds)

    # The difference is taken within each round, so that a slow stretch of the machine slows both sides of it.
    base = times["plain endpoint", "-", 0]
    added = {case: statistics.median(t - b for t, b in zip(times[case], base, strict=True)) for case in cases}
    print(f"CPython {sys.version.split()[0]}, {options.requests} requests, median of {options.rounds} rounds\n")
    head = f"{'library':<16} {'phase':<15} {'tasks':>5} {'us':>8} {'added':>8}"
    print(f"{head} {'of fastapi-tasks':>17} {'of create_task':>15}")
    for library, phase, number in cases:
        line = f"{library:<16} {phase:<15} {number:>5} {statistics.median(times[library, phase, number]):>8.1f}"
        line += f" {added[library, phase, number]:>8.1f}"
        if number:
            theirs = added["fastapi-tasks", phase if phase in PHASES["fastapi-tasks"] else "now", number]
            line += f" {added[library, phase, number] / theirs:>17.2f}"
            line += f" {added[library, phase, number] / added['create_task', 'now', number]:>15.2f}"
        print(line)

    one = added["tasks", "after_response", 1]
    theirs = added["fastapi-tasks", "after_response", 1]
    bars = {
        "one after_response task, of what fastapi-tasks adds": (one / theirs, 0.25),
        "the same, by get_tasks(request)": (added["get_tasks()", "after_response", 1] / theirs, 0.25),
        "the same, by current_tasks()": (added["current_tasks()", "after_response", 1] / theirs, 0.20),
        "the same, of a dependency and create_task": (
            added["current_tasks()", "after_response", 1] / added["create_task", "now", 1],
            1.0,
        ),
        "one after_response task, of a dependency and create_task": (one / added["create_task", "now", 1], 1.5),
        "a request without tasks, microseconds": (added["tasks, not used", "-", 0], 5.0),
    }
    print()
    for name, (value, bar) in bars.items():
        print(f"{'ok  ' if value <= bar else 'MISS'} {name}: {value:.2f} (at most {bar})")
    return 0 if all(value <= bar for value, bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
