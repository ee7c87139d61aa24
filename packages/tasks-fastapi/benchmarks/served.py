"""
What a request costs with background tasks behind uvicorn: requests per second and latency, as ratios in one run.

python packages/tasks-fastapi/benchmarks/served.py [--seconds S] [--rounds N] [--connections N]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from apps import LIBRARIES, PHASES

_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def served(library: str, phase: str, number: int) -> Iterator[int]:
    """Serve an application from a process of its own, and yield the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    code = (
        "import uvicorn, apps; "
        f"uvicorn.run(apps.LIBRARIES[{library!r}]({number}, {phase!r}), port={port}, log_level='warning')"
    )
    server = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    try:
        _wait_for(port, server)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("the server did not start")


async def load(port: int, connections: int, seconds: float) -> list[float]:
    """Send requests over so many connections, one after another on each, and return the latencies in ms."""
    latencies: list[float] = []
    ends = time.perf_counter() + seconds

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < ends:
            writer.write(_REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append((time.perf_counter() - began) * 1000)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    cases = [(library, phase) for library in LIBRARIES for phase in PHASES[library]]
    results: dict[tuple[str, str], list[tuple[float, float, float]]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for library, phase in cases:
            with served(library, phase, 1) as port:
                asyncio.run(load(port, options.connections, 0.3))
                latencies = asyncio.run(load(port, options.connections, options.seconds))
            quantiles = statistics.quantiles(latencies, n=100)
            results[library, phase].append((len(latencies) / options.seconds, quantiles[49], quantiles[98]))

    base = statistics.median(rps for rps, _, _ in results["plain endpoint", "-"])
    print(f"{options.connections} connections, one task a request, median of {options.rounds} rounds\n")
    print(f"{'library':<16} {'phase':<15} {'requests/s':>10} {'of plain':>9} {'p50 ms':>8} {'p99 ms':>8}")
    for library, phase in cases:
        rps, p50, p99 = (statistics.median(column) for column in zip(*results[library, phase], strict=True))
        print(f"{library:<16} {phase:<15} {rps:>10.0f} {rps / base:>9.2f} {p50:>8.2f} {p99:>8.2f}")


if __name__ == "__main__":
    main()
