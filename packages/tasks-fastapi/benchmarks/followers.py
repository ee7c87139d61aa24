"""
Many clients follow jobs by server-sent events: how late an event is, and how much memory a client takes.

python packages/tasks-fastapi/benchmarks/followers.py [--followers 1000] [--events 10] [--pause 0.5]

Two cases: all clients follow one job, and each client follows a job of its own. Server and clients share the machine,
so that the latency has the time that the clients take to read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any


async def http(port: int, method: str, path: str) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


class Follower:
    """A client: it notes how late each event is."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path
        self.connected = asyncio.Event()
        self.late: list[float] = []

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {self._path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async for line in reader:
            if line.startswith(b"retry:"):
                self.connected.set()
            elif line.startswith(b"data: ") and not line.startswith(b"data: {"):
                self.late.append(time.monotonic() - float(line[6:]))
            elif line.startswith(b"event: end"):
                break
        writer.close()


def memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError("VmRSS")


def cpu_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int, jobs: int, followers: int, events: int, pause: float) -> str:
    before = memory(pid)
    made = [await http(port, "POST", f"/clocks?events={events}&pause={pause}") for _ in range(jobs)]
    clients = [Follower(port, made[number % jobs]["links"]["events"]) for number in range(followers)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run())
        for client in clients:
            await client.connected.wait()
        took = memory(pid) - before
        cpu = cpu_time(pid)
        await http(port, "POST", "/begin")
    cpu = cpu_time(pid) - cpu
    late = sorted(seconds for client in clients for seconds in client.late)
    assert len(late) == followers * events, "an event is missing, or came twice"
    delays = [(await http(port, "GET", job["links"]["self"]))["result"] for job in made]
    percentile = statistics.quantiles(late, n=100)
    return (
        f"{jobs:5} jobs, {followers:5} clients, {1 / pause:g} events/s each: "
        f"latency p50 {percentile[49] * 1000:.0f} ms, p99 {percentile[98] * 1000:.0f} ms; "
        f"the jobs are {max(delays) * 1000:.0f} ms late at their end; {took / followers:.1f} KiB for each client, "
        f"{cpu / len(late) * 1e6:.0f} us of CPU for each event and client"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, default=1000)
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.5)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, options.followers * 2 + 100)), hard))
    for jobs in (1, options.followers):
        await serve_and_measure(jobs, options.followers, options.events, options.pause)


async def serve_and_measure(jobs: int, followers: int, events: int, pause: float) -> None:
    """Measure a case with a server of its own, so that its memory is that of the case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "followers_app:app", "--port", str(port), "--log-level", "warning"]
    server = await asyncio.create_subprocess_exec(*command, "--app-dir", str(Path(__file__).parent))
    try:
        for _ in range(500):
            try:
                await http(port, "GET", "/openapi.json")
                break
            except OSError:
                await asyncio.sleep(0.02)
        print(await measure(port, server.pid, jobs, followers, events, pause))
    finally:
        server.terminate()
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
