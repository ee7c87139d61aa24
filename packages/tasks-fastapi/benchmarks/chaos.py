"""
Real servers under load, stopped at a random moment: what became of every task that was accepted?

`python packages/tasks-fastapi/benchmarks/chaos.py --rounds 20 --server granian`

In each round a server serves clients that keep scheduling jobs, until SIGTERM arrives; in every second round they open
a new connection for each request, in the other rounds they keep theirs. Afterwards every shielded job
whose `schedule()` had returned must have left its effect on disk, and every other one its effect or a line in the log
that names it. Exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread

import tasks_fastapi  # noqa: F401
import uvicorn  # noqa: F401  for the forks to have, like the next

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from servers.event_log import EventLog  # noqa: E402  it is with the tests of the servers, like the next
from servers.process import SERVERS, ServerProcess  # noqa: E402

CLIENTS = 4
REQUESTS = 160
LATEST_SIGNAL = 0.3
PLAIN = "-plain"
NAMED_AS_LOST = re.compile(r"(?:Task|tasks) '(\S+)' .* (?:was|were) (?:cancelled|discarded|abandoned): ")


@dataclass
class Round:
    """What the log of one round says."""

    seed: int
    requests: int = 0
    accepted: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    alive_at_signal: int = 0
    late: set[str] = field(default_factory=set)
    """Jobs that ran when the lifespan of the application had been closed; not counting threads that were given up."""
    trace: str = ""
    """All there is to know, if the server did not end or a job was lost."""

    @property
    def shielded(self) -> set[str]:
        return {job for job in self.accepted if PLAIN not in job}

    @property
    def lost(self) -> set[str]:
        """Jobs that have neither an effect nor a line in the log, and shielded jobs without an effect."""
        return self.accepted - self.done - (self.named - self.shielded)


class ForkedProcess:
    """
    A fork that runs a module as `python -m` does.

    It starts with all that this process has imported: that is what makes hundreds of rounds affordable.
    """

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_run_module, args=(command, environment, output))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return self._process.exitcode


def _run_module(command: list[str], environment: dict[str, str], output: Path) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
    for number, descriptor in enumerate((nothing, printed, printed)):
        os.dup2(descriptor, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  uvicorn hands its number on to its workers
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


class ForkedServer(ServerProcess):
    def start(self, command: list[str], environment: dict[str, str], output: Path) -> ForkedProcess:
        return ForkedProcess(command, environment, output)


def play(server: str, seed: int) -> Round:
    """Serve, load, stop, and read the log."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ForkedServer(server, Path(directory), app="chaos_app:app", path=HERE) as process,
    ):
        problem = ""
        try:
            process.wait_ready(workers=2 if server == "uvicorn-workers" else 1)
            load_and_stop(process, seed)
        except AssertionError as error:
            problem = str(error)
        result = read(process.log, seed)
        if problem or result.lost or result.late:
            result.trace = problem or f"{process.log}\n{process.output}"
        return result


def load_and_stop(process: ServerProcess, seed: int) -> None:
    """Send SIGTERM at a moment that the seed says, while clients keep the server busy; return when it has ended."""
    stopping = Event()
    clients = [
        Thread(target=load, args=(process.port, range(number, REQUESTS, CLIENTS), seed, stopping), daemon=True)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    time.sleep(random.Random(seed).uniform(0, LATEST_SIGNAL))
    process.log.note("signal")
    process.signal(signal.SIGTERM)
    stopping.set()
    process.wait()
    for client in clients:
        client.join()


def load(port: int, numbers: Iterable[int], seed: int, stopping: Event) -> None:
    """Send one request after the other, until the server was stopped and no longer answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {} if seed % 2 else {"Connection": "close"}
    for number in numbers:
        path = "jobs-from-thread" if number % 3 == 0 else "jobs"
        try:
            connection.request("POST", f"/{path}/{seed * REQUESTS + number}", headers=headers)
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
            if stopping.is_set():
                break
    connection.close()


def read(log: EventLog, seed: int) -> Round:
    """Count what is in the log of a round."""
    result = Round(seed)
    closed: set[int] = set()
    for pid, name in log.events():
        kind, _, rest = name.partition(" ")
        match kind:
            case "request":
                result.requests += 1
            case "accepted":
                result.accepted.add(rest)
            case "done":
                result.done.add(rest)
                if pid in closed and rest not in result.named:
                    result.late.add(rest)
            case "log":
                result.named.update(NAMED_AS_LOST.findall(rest))
            case "signal":
                result.alive_at_signal = len(result.accepted - result.done)
            case "lifespan" if rest == "closed":
                closed.add(pid)
    return result


COLUMNS = ("server", "rounds", "requests", "accepted", "shielded", "alive at signal", "named", "late", "lost", "stuck")


def row(server: str, rounds: list[Round]) -> tuple[object, ...]:
    return (
        server,
        len(rounds),
        sum(r.requests for r in rounds),
        sum(len(r.accepted) for r in rounds),
        sum(len(r.shielded) for r in rounds),
        sum(r.alive_at_signal for r in rounds),
        sum(len(r.accepted - r.done - r.lost) for r in rounds),
        sum(len(r.late) for r in rounds),
        sum(len(r.lost) for r in rounds),
        sum(bool(r.trace and not r.lost and not r.late) for r in rounds),
    )


def print_row(cells: tuple[object, ...]) -> None:
    print(
        "  ".join(f"{cell!s:>{max(8, len(column))}}" for cell, column in zip(cells, COLUMNS, strict=True)), flush=True
    )


def main() -> int:
    """Play the rounds, print the table, and say whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="for each server (200)")
    parser.add_argument("--server", choices=SERVERS, action="append", help="one of them; may be repeated (all)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments and jobs (random)")
    parser.add_argument("--parallel", type=int, default=2, help="rounds at a time (2)")
    options = parser.parse_args()

    print(f"SIGTERM within {LATEST_SIGNAL:g} s from the first request; seed {options.seed}")
    print_row(COLUMNS)
    failed = False
    with ProcessPoolExecutor(options.parallel, multiprocessing.get_context("fork")) as pool:
        for server in options.server or SERVERS:
            seeds = range(options.seed, options.seed + options.rounds)
            rounds = list(pool.map(partial(play, server), seeds))
            print_row(row(server, rounds))
            for bad in (r for r in rounds if r.trace):
                failed = True
                print(f"Round with seed {bad.seed}: lost {sorted(bad.lost)}, late {sorted(bad.late)}\n{bad.trace}")
            if not sum(r.alive_at_signal for r in rounds):
                failed = True
                print(f"{server}: no task was alive when the signal came, so nothing is proved")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
