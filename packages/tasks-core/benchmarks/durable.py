"""
Durable tasks with real processes, a real PostgreSQL and a real `kill -9`; and what handing a task over costs.

    hatch run durable
    hatch run durable --short web worker

- web: the web process is killed as soon as the bytes of the response have arrived: no task is lost. Tasks in memory
  are, in the same test: the kill is a real one.
- worker: a worker is killed in the middle of a task: another one has it within 30 seconds.
- postgres: the server is killed after 500 acknowledged tasks: it has them all when it is back, and producer and workers
  come back by themselves.
- two: two workers share 5,000 tasks: each is done once.
- periodic: four workers, one of them with a wrong clock, are killed again and again: each occurrence is run once.
- complete: workers are killed at each step of tasks that end in the transaction of their row: each row is written once.
- overhead: handing over, against procrastinate's own `defer_async`: at most 1.2 times the time.

Exits non-zero when one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import psycopg

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from durable_postgres import Postgres  # noqa: E402  it is beside this file


class Setting:
    """What the processes of one test share: a queue, and a file that tasks write to."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self.queue = f"q-{uuid4().hex[:8]}"
        self.log = postgres.folder / f"{self.queue}.log"
        self.log.touch()
        self.environment = {
            **os.environ,
            "DURABLE_ADDRESS": postgres.address,
            "DURABLE_QUEUE": self.queue,
            "DURABLE_LOG": str(self.log),
            "PYTHONPATH": os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", ""))),
        }

    @contextmanager
    def worker(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker process; killed at the end of the block."""
        arguments = ["-m", "tasks_core", "worker", "durable_app:engine", "--log-level=warning"]
        with self._process(*arguments, **environment) as process:
            yield process

    @contextmanager
    def web(self, port: int) -> Iterator[subprocess.Popen[bytes]]:
        """A web server that answers; killed at the end of the block."""
        with self._process("-m", "uvicorn", "durable_app:app", f"--port={port}", "--log-level=warning") as process:
            wait(lambda: _answers(port), "the web server")
            yield process

    @contextmanager
    def _process(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen([sys.executable, *arguments], env={**self.environment, **environment}, cwd=HERE)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def lines(self, word: str) -> list[list[str]]:
        """What tasks wrote, in words, without the first, which is *word*."""
        return [words[1:] for words in map(str.split, self.log.read_text().splitlines()) if words[0] == word]

    def done(self) -> Counter[str]:
        return Counter(words[0] for words in self.lines("done"))

    async def hand_over(self, names: list[str], function: str = "mark") -> None:
        """Hand tasks over from this process, and return when all are acknowledged."""
        os.environ.update(self.environment)
        import durable_app
        from tasks_core import TaskScheduler
        from tasks_core.engines.procrastinate import ProcrastinateEngine

        engine = ProcrastinateEngine(self.postgres.address, queue=self.queue)
        async with TaskScheduler(engine=engine) as scheduler:
            for start in range(0, len(names), 32):
                tasks = [scheduler.schedule(getattr(durable_app, function), n) for n in names[start : start + 32]]
                for task in tasks:
                    await task


def wait(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
    """Return how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"waited for {what} for {seconds:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


# ---- the tests ----


def web(postgres: Postgres, *, short: bool) -> bool:
    rounds = 2 if short else 50
    setting = Setting(postgres)
    lost = {}
    for kind in ("memory", "durable"):
        names = [f"{kind}-{n}" for n in range(min(rounds, 5) if kind == "memory" else rounds)]
        for name in names:
            port = _free_port()
            with setting.web(port) as process:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("POST", f"/{kind}/{name}")
                response = connection.getresponse()
                response.read(1)
                process.send_signal(signal.SIGKILL)
                assert response.status == 200, response.status
                connection.close()
        with setting.worker():
            if kind == "durable":
                wait(lambda names=names: set(names) <= setting.done().keys(), "the tasks")  # type: ignore[misc]
        lost[kind] = (len(set(names) - setting.done().keys()), len(names))
    print("kill -9 of the web process behind the response:", _told(lost))
    return lost["durable"][0] == 0 and lost["memory"][0] > 0


def _told(lost: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{kind}: {number} of {of} lost" for kind, (number, of) in lost.items())


def worker(postgres: Postgres, *, short: bool) -> bool:
    times: list[float] = []
    for number in range(1 if short else 10):
        setting = Setting(postgres)
        with ExitStack() as stack:
            workers = [stack.enter_context(setting.worker()) for _ in range(2)]
            asyncio.run(setting.hand_over([f"task-{number}"], "hang_at_first"))
            wait(lambda: bool(setting.lines("started")), "the task to start")  # noqa: B023  called at once
            victim = int(setting.lines("started")[0][1])
            next(process for process in workers if process.pid == victim).kill()
            times.append(wait(lambda: bool(setting.done()), "another worker"))  # noqa: B023
            assert int(setting.lines("done")[0][1]) != victim
    print(f"kill -9 of a worker in a task: taken over {len(times)} of {len(times)}, within {max(times):.1f} s")
    return max(times) <= 30


def postgres(server: Postgres, *, short: bool) -> bool:
    return asyncio.run(_postgres(server, 50 if short else 500))


async def _postgres(server: Postgres, number: int) -> bool:
    import durable_app
    from tasks_core import TaskScheduler
    from tasks_core.engines import EngineUnavailableError
    from tasks_core.engines.procrastinate import ProcrastinateEngine

    setting = Setting(server)
    names = ["warm-up", *(f"kept-{n}" for n in range(number))]
    engine = ProcrastinateEngine(server.address, queue=setting.queue)
    with ExitStack() as stack:
        async with TaskScheduler(engine=engine) as scheduler:
            stack.enter_context(setting.worker())
            await scheduler.schedule(durable_app.mark, "warm-up")
            await asyncio.to_thread(wait, lambda: bool(setting.done()), "the worker")
            for name in names[1:]:
                await scheduler.task(delay=5).schedule(durable_app.mark, name)
            server.kill()
            refused = await _is_refused(scheduler)
            server.start()
            kept = server.query(
                f"SELECT count(*) FROM procrastinate_jobs WHERE queue_name = '{setting.queue}'"
                " AND task_name = 'tasks_core.run'"
            )[0][0]
            began = time.monotonic()
            while True:
                try:
                    await scheduler.schedule(durable_app.mark, "afterwards")
                    break
                except EngineUnavailableError:
                    await asyncio.sleep(0.1)
            back = time.monotonic() - began
            names.append("afterwards")
            await asyncio.to_thread(wait, lambda: set(names) <= setting.done().keys(), "the worker", 60)
    print(
        f"kill -9 of PostgreSQL after {number} acknowledged: {kept - 1} kept, all done by the worker that was there; "
        f"refused meanwhile: {refused}; the producer was back after {back:.1f} s"
    )
    return bool(kept == number + 1 and refused)


async def _is_refused(scheduler: object) -> bool:
    import durable_app
    from tasks_core import TaskScheduler
    from tasks_core.engines import EngineUnavailableError

    assert isinstance(scheduler, TaskScheduler)
    try:
        await scheduler.schedule(durable_app.mark, "refused")
    except EngineUnavailableError:
        return True
    return False


def two(postgres: Postgres, *, short: bool) -> bool:
    number = 300 if short else 5000
    setting = Setting(postgres)
    meetings = 40  # more than one worker runs at a time
    asyncio.run(setting.hand_over([f"task-{n}" for n in range(meetings)], "meet"))
    asyncio.run(setting.hand_over([f"task-{n}" for n in range(meetings, number)]))
    with setting.worker(), setting.worker():
        began = time.monotonic()
        wait(lambda: len(setting.done()) == number, "all tasks", 300)
        took = time.monotonic() - began
        time.sleep(0.5)  # for one that comes twice
    done = setting.done()
    twice = sum(1 for times in done.values() if times > 1)
    by = Counter(words[1] for words in setting.lines("done"))
    print(f"two workers, {number} tasks: {len(done)} done, {twice} twice, {sorted(by.values())} each, {took:.0f} s")
    return len(done) == number and not twice and len(by) == 2


def periodic(postgres: Postgres, *, short: bool) -> bool:
    setting = Setting(postgres)
    seconds, number = (20, 4) if short else (180, 4)
    usual = {"DURABLE_PERIODIC": "1", "DURABLE_HEARTBEAT": "0.5"}
    environments = [{**usual, **({"DURABLE_CLOCK": "wrong"} if n == 0 else {})} for n in range(number)]
    kills = 0
    with ExitStack() as stack:
        workers = [stack.enter_context(setting.worker(**environment)) for environment in environments]
        wait(lambda: bool(setting.lines("ran")), "the first occurrence")
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(2.5)
            victim = kills % number
            workers[victim].kill()
            workers[victim] = stack.enter_context(setting.worker(**environments[victim]))
            kills += 1
        time.sleep(2)
    stored = postgres.query(
        f"SELECT args->>'key' AS key, count(*) FROM procrastinate_jobs WHERE queue_name = '{setting.queue}' GROUP BY 1"
    )
    twice = sum(1 for _, times in stored if times > 1)
    ended = datetime.now(UTC)
    moments = sorted([ended, *(datetime.fromisoformat(key.split()[-1]) for key, _ in stored)])
    gap = max((later - earlier).total_seconds() for earlier, later in pairwise(moments))
    wrong = sum(1 for moment in moments if abs((ended - moment).total_seconds()) > seconds + 60)
    print(
        f"periodic, each second for {seconds} s, {number} workers, {kills} killed: {len(stored)} occurrences, {twice} "
        f"stored twice, {wrong} by the wrong clock, the longest pause between two was {gap:g} s"
    )
    # A task whose worker is killed is run elsewhere after four missed heartbeats, and no other one runs meanwhile.
    return len(stored) > seconds / 4 and not twice and not wrong and gap <= 30


def complete(postgres: Postgres, *, short: bool) -> bool:
    rounds, number = (8, 6) if short else (100, 20)
    setting = Setting(postgres)
    with psycopg.connect(postgres.address, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS effects (name text)")
    chance = random.Random(17)
    usual = {"DURABLE_HEARTBEAT": "0.5", "DURABLE_MAX_DEATHS": "1000"}
    names: list[str] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(setting.worker(**usual)) for _ in range(2)]
        for round_ in range(rounds):
            more = [f"{setting.queue}-{round_}-{n}" for n in range(number)]
            names += more
            # The words come by turns, so that workers die at each step; the number of the task is by chance.
            word, reached = ("began", "stored", "committed", "done")[round_ % 4], chance.randint(1, number)
            asyncio.run(setting.hand_over(more, "take_effect"))
            wait(lambda: len([1 for [name, *_] in setting.lines(word) if name in more]) >= reached, "a step")  # noqa: B023
            victim = next(int(pid) for name, pid in reversed(setting.lines(word)) if name in more)
            [index] = [index for index, worker in enumerate(workers) if worker.pid == victim]
            workers[index].kill()
            workers[index].wait()
            workers[index] = stack.enter_context(setting.worker(**usual))
        unfinished = f"SELECT id FROM procrastinate_jobs WHERE queue_name = '{setting.queue}' AND status <> 'succeeded'"
        wait(lambda: not postgres.query(unfinished), "all tasks", 300)
    rows = Counter(name for [name] in postgres.query("SELECT name FROM effects"))
    lost, twice = len([1 for name in names if not rows[name]]), len([1 for name in names if rows[name] > 1])
    again = len([1 for times in Counter(name for name, _ in setting.lines("began")).values() if times > 1])
    print(
        f"complete(), {len(names)} tasks, {rounds} workers killed: {again} delivered again, {lost} rows lost, {twice} "
        "rows written twice"
    )
    return not lost and not twice and again > 0


def overhead(postgres: Postgres, *, short: bool) -> bool:
    ratio = asyncio.run(_overhead(postgres, 3 if short else 15, 100))
    print(f"handing over, against defer_async: {ratio:.2f}")
    return ratio <= (1.6 if short else 1.2)  # the short form has too few rounds for more


async def _overhead(postgres: Postgres, rounds: int, number: int) -> float:
    import durable_app
    from procrastinate import App, PsycopgConnector
    from tasks_core import TaskScheduler
    from tasks_core.engines.procrastinate import ProcrastinateEngine

    engine = ProcrastinateEngine(postgres.address, queue="overhead")
    app = App(connector=PsycopgConnector(conninfo=postgres.address))

    @app.task(name="mark", queue="overhead")
    async def mark(name: str) -> None: ...

    ratios = []
    async with TaskScheduler(engine=engine) as scheduler, app.open_async():
        for _ in range(rounds):
            ours, theirs = [], []
            for n in range(number):  # by turns, so that both have the same disk
                began = time.perf_counter()
                await scheduler.schedule(durable_app.mark, f"task-{n}")
                ours.append(time.perf_counter() - began)
                began = time.perf_counter()
                await mark.defer_async(name=f"task-{n}")
                theirs.append(time.perf_counter() - began)
            ratios.append(statistics.median(ours) / statistics.median(theirs))
    return statistics.median(ratios)


TESTS = {
    "web": web,
    "worker": worker,
    "postgres": postgres,
    "two": two,
    "periodic": periodic,
    "complete": complete,
    "overhead": overhead,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Durable tasks under kill -9.")
    parser.add_argument("tests", nargs="*", choices=[*TESTS, []], help="which (all)")
    parser.add_argument("--short", action="store_true", help="a few rounds of each")
    options = parser.parse_args()
    with Postgres() as server:
        asyncio.run(Setting(server).hand_over([]))  # creates the tables
        failed = [name for name in options.tests or TESTS if not TESTS[name](server, short=options.short)]
    if failed:
        print("FAILED:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
