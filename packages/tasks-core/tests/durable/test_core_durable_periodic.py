"""Periodic durable functions: what is due when, and once for all workers on a real PostgreSQL."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from core_durable_functions import forget
from core_engine import ListEngine
from core_postgres import postgres, queue, until, working
from core_support import messages
from tasks_core import DurableFunction, Worker, cron, durable, durable_context, every
from tasks_core._durable.periodic import Due, find_due
from tasks_core._durable.registry import registry
from tasks_core.engines import DurableCall, EngineCapabilityError, EngineUnavailableError
from tasks_core.engines.procrastinate import ProcrastinateEngine
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError
from tasks_core.testing import next_occurrence, occurrence_call, periodic_functions
from tasks_testing import InMemoryEngine

__all__ = ("forget", "postgres", "queue")

pytestmark = pytest.mark.anyio

ran: list[str] = []
gate = anyio.Event()
NIGHT = cron("0 3 * * *", timezone="Europe/Berlin")


async def note_run() -> None:
    ran.append(durable_context().idempotency_key)


async def hold_run() -> None:
    ran.append(durable_context().idempotency_key)
    await gate.wait()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """Workers of other tests in this process must not run what a test has registered."""
    global gate
    gate = anyio.Event()
    ran.clear()
    yield
    for name in [name for name in registry._functions if name.startswith("periodic.")]:
        del registry._functions[name]


@pytest.fixture
def engine(postgres: str, queue: str) -> ProcrastinateEngine:
    return ProcrastinateEngine(postgres, queue=queue, pool_size=4, heartbeat=0.2)


async def has(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---- at the decoration ----


async def needs(number: int) -> None: ...


def test_parameters_with_defaults_are_left_to_them() -> None:
    async def optional(first: int = 1, *more: int, second: str = "a", **labels: str) -> None: ...

    function = durable(name="periodic.optional", periodic=NIGHT)(optional)
    assert occurrence_call(function, at("2026-03-01T02:00")).args == {}


@pytest.mark.parametrize(
    "options, func, error, text",
    [
        ({"periodic": "0 3 * * *"}, note_run, InvalidConfigError, "periodic must have the method next_after"),
        ({"periodic": every(hours=1, immediately=True)}, note_run, InvalidConfigError, "once for all of them"),
        ({"periodic": every(hours=1, first=5)}, note_run, InvalidConfigError, "Pass a moment: first=datetime"),
        (
            {"periodic": NIGHT, "catch_up": 0},
            note_run,
            InvalidConfigError,
            "catch_up must be a number of seconds",
        ),
        ({"catch_up": 60}, note_run, InvalidConfigError, "catch_up is for periodic functions"),
        ({"periodic": NIGHT}, needs, InvalidTaskError, "parameter 'number' has no default"),
    ],
)
def test_what_cannot_be_periodic_is_refused(
    options: dict[str, Any], func: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        durable(name="periodic.refused", **options)(func)


async def test_an_engine_without_periodic_tasks_is_an_error_of_the_worker() -> None:
    await Worker(ListEngine()).run(stopped())
    durable(name="periodic.night", periodic=NIGHT)(note_run)
    with pytest.raises(EngineCapabilityError, match=r"'periodic\.night' has periodic=, and list has no periodic tasks"):
        await Worker(ListEngine()).run(stopped())


def stopped() -> anyio.Event:
    event = anyio.Event()
    event.set()
    return event


def test_the_functions_are_listed_once() -> None:
    function = durable(name="periodic.b", aliases=["periodic.a"], periodic=NIGHT, catch_up=60)(note_run)
    durable(name="periodic.c")(note_run)
    assert periodic_functions() == [function]
    assert (function.periodic, function.catch_up) == (NIGHT, 60)


# ---- what is due ----


def test_an_interval_is_counted_from_the_same_moment_in_each_process() -> None:
    assert next_occurrence(every(hours=6), at("2026-03-01T13:17")) == at("2026-03-01T18:00")
    assert next_occurrence(every(hours=6), at("2026-03-01T18:00")) == at("2026-03-02T00:00")
    first = every(hours=6, first=at("2026-03-01T01:00"))
    assert next_occurrence(first, at("2026-02-01T00:00")) == at("2026-03-01T01:00")
    assert next_occurrence(first, at("2026-03-01T01:00")) == at("2026-03-01T07:00")
    assert next_occurrence(first, at("2026-03-01T13:17")) == at("2026-03-01T19:00")


@pytest.mark.parametrize(
    "last, now, due",
    [
        ("2026-03-01T02:00", "2026-03-02T01:59:59", Due(None, None, at("2026-03-02T02:00"))),
        ("2026-03-01T02:00", "2026-03-02T02:00", Due(at("2026-03-02T02:00"), None, at("2026-03-03T02:00"))),
        ("2026-03-01T02:00", "2026-03-02T02:59:59", Due(at("2026-03-02T02:00"), None, at("2026-03-03T02:00"))),
        ("2026-03-01T02:00", "2026-03-02T03:00", Due(None, at("2026-03-02T02:00"), at("2026-03-03T02:00"))),
        (
            "2026-03-01T02:00",
            "2026-03-09T02:30",
            Due(at("2026-03-09T02:00"), at("2026-03-02T02:00"), at("2026-03-10T02:00")),
        ),
        # Clocks go forward at 2:00 on 29 March, and back at 3:00 on 25 October.
        ("2026-03-28T02:00", "2026-03-29T01:00", Due(at("2026-03-29T01:00"), None, at("2026-03-30T01:00"))),
        ("2026-10-24T01:00", "2026-10-25T02:00", Due(at("2026-10-25T02:00"), None, at("2026-10-26T02:00"))),
    ],
)
def test_the_latest_occurrence_is_run_if_it_is_not_too_late(last: str, now: str, due: Due) -> None:
    assert find_due(NIGHT, at(last), at(now), 3600.0) == due


def test_of_many_occurrences_one_is_run() -> None:
    due = find_due(every(minutes=1), at("2026-03-01T00:00"), at("2026-03-01T00:10:30"), 3600.0)
    assert due == Due(at("2026-03-01T00:10"), at("2026-03-01T00:01"), at("2026-03-01T00:11"))


class Wrong:
    jitter = 0.0

    def __init__(self, answer: Callable[[datetime], datetime | None]) -> None:
        self.answer = answer

    def next_after(self, previous: datetime | None, now: datetime) -> datetime | None:
        return self.answer(now)


def test_a_trigger_may_end_and_may_not_stand_still() -> None:
    assert find_due(Wrong(lambda now: None), at("2026-03-01T00:00"), at("2026-03-01T00:10"), 60) == Due(
        None, None, None
    )
    with pytest.raises(InvalidConfigError, match=r"Wrong\.next_after\(\) returned .*, which is not after"):
        next_occurrence(Wrong(lambda now: now), at("2026-03-01T00:00"))


def test_the_call_has_the_moment_in_its_key_and_the_options_of_the_function() -> None:
    function = durable(name="periodic.call", periodic=every(hours=1, jitter=60.0), queue="night", priority=7)(note_run)
    call = occurrence_call(function, at("2026-03-01T02:00"))
    assert call.idempotency_key == "periodic.call 2026-03-01T02:00:00+00:00"
    assert (call.queue, call.priority, call.args, call.dedup) == ("night", 7, {}, False)
    assert call.not_before is not None
    assert 0 <= call.not_before - datetime.now(UTC).timestamp() <= 60


# ---- workers ----


class Clockwork(InMemoryEngine):
    """An engine whose clock, and whose last occurrences, a test sets."""

    def __init__(self, now: str, last: str) -> None:
        super().__init__()
        self.now = at(now)
        self.last = at(last)
        self.asked = 0
        self.errors: list[Exception] = []

    async def occurrences(self, names: Any, /) -> tuple[datetime, list[datetime]]:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.now, [self._occurrences.setdefault(name, self.last) for name in names]


async def run_until(engine: Clockwork, condition: Callable[[], bool]) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine).run, stop)
        await has(condition)
        stop.set()


async def test_an_occurrence_that_was_missed_by_less_than_the_bound_is_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    durable(name="periodic.night", periodic=NIGHT)(note_run)
    engine = Clockwork("2026-03-09T02:30", "2026-03-01T02:00")
    await run_until(engine, lambda: bool(ran))
    assert ran == ["periodic.night 2026-03-09T02:00:00+00:00"]
    assert (
        "The periodic durable task 'periodic.night' is 1800.0 s late and runs once for all occurrences since "
        "2026-03-02 02:00:00+00:00"
    ) in messages(caplog)


async def test_older_occurrences_are_skipped_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    durable(name="periodic.night", periodic=NIGHT)(note_run)
    engine = Clockwork("2026-03-09T04:30", "2026-03-01T02:00")
    for _ in range(2):  # the second worker finds nothing to say
        asked = engine.asked
        await run_until(engine, lambda asked=asked: engine.asked > asked and bool(messages(caplog)))  # type: ignore[misc]
    lines = [line for line in messages(caplog) if "periodic" in line]
    assert lines == [
        "The periodic durable task 'periodic.night' is not run for its occurrences since 2026-03-02 02:00:00+00:00: "
        "no worker ran then, and they are more than 3600 s late"
    ]
    assert (ran, engine.calls) == ([], [])


@pytest.mark.parametrize("now", ["2026-03-09T02:30", "2026-03-09T04:30"])
async def test_a_worker_that_comes_second_runs_nothing_and_says_nothing(
    now: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Second(Clockwork):
        """Another worker has dealt with each occurrence since this one asked."""

        async def skip_occurrences(self, name: str, until: datetime, /) -> bool:
            return False

    durable(name="periodic.night", periodic=NIGHT)(note_run)
    engine = Second(now, "2026-03-01T02:00")
    await run_until(engine, lambda: engine.asked == 1)
    assert engine.calls == []
    assert [line for line in messages(caplog) if "eriodic" in line] == []


async def test_the_last_occurrence_of_a_trigger_may_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    once = at("2026-03-02T00:00")
    durable(name="periodic.once", periodic=Wrong(lambda now: once if now < once else None))(note_run)
    engine = Clockwork("2026-03-09T04:30", "2026-03-01T02:00")
    await run_until(engine, lambda: "is not run for its occurrences" in caplog.text)
    assert await engine.skip_occurrences("periodic.once", engine.now) is False


async def test_an_occurrence_is_skipped_while_the_run_before_it_has_not_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tasks_core")
    durable(name="periodic.slow", periodic=every(hours=1))(hold_run)
    engine = Clockwork("2026-03-01T02:00", "2026-03-01T01:00")
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine, grace_period=30).run, stop)
        await has(lambda: len(ran) == 1)
        engine.now = at("2026-03-01T03:00")
        group.start_soon(Worker(engine, grace_period=30).run, stop)
        await has(lambda: "is skipped, because task 0 has not ended" in caplog.text)
        gate.set()
        stop.set()
    assert ran == ["periodic.slow 2026-03-01T02:00:00+00:00"]


async def test_errors_end_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_core._durable.periodic._PAUSE_AFTER_ERROR", 0.0)
    durable(name="periodic.night", periodic=NIGHT)(note_run)
    durable(name="periodic.broken", periodic=Wrong(lambda now: now))(note_run)
    engine = Clockwork("2026-03-02T02:00", "2026-03-01T02:00")
    engine.errors = [EngineUnavailableError("away"), ValueError("what an engine may have")]
    await run_until(engine, lambda: bool(ran))
    assert ran == ["periodic.night 2026-03-02T02:00:00+00:00"]
    assert [line for line in messages(caplog) if "eriodic" in line] == [
        "Periodic durable tasks could not be submitted, and are tried again",
        "The trigger of the periodic durable task 'periodic.broken' failed",
    ]


async def test_functions_that_are_registered_later_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks_core._durable.periodic._LOOK_AGAIN", 0.05)
    engine = Clockwork("2026-03-02T02:00", "2026-03-01T02:00")
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(Worker(engine).run, stop)
        await anyio.sleep(0.1)
        durable(name="periodic.late", periodic=NIGHT)(note_run)
        await has(lambda: bool(ran))
        stop.set()


# ---- PostgreSQL ----


async def test_two_applications_with_one_name_have_their_own_occurrences(postgres: str, queue: str) -> None:
    engines = [ProcrastinateEngine(postgres, queue=f"{queue}-{letter}") for letter in "ab"]
    async with engines[0], engines[1]:
        now = (await engines[0].occurrences(["periodic.same"]))[0] + timedelta(hours=1)
        receipts = [await engine.submit_occurrence(DurableCall("periodic.same", {}, "k"), now) for engine in engines]
    assert all(receipt is not None for receipt in receipts)


async def test_a_deleted_row_does_not_bring_its_occurrence_back(engine: ProcrastinateEngine, postgres: str) -> None:
    async with engine:
        now = (await engine.occurrences(["periodic.same"]))[0] + timedelta(hours=1)
        receipt = await engine.submit_occurrence(DurableCall("periodic.same", {}, "k"), now)
        assert receipt is not None
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            await connection.execute("DELETE FROM procrastinate_jobs WHERE id = %s", [int(receipt.id)])
        assert await engine.submit_occurrence(DurableCall("periodic.same", {}, "k"), now) is None


async def test_an_engine_that_is_away_says_so(queue: str) -> None:
    with pytest.raises(EngineUnavailableError):
        await ProcrastinateEngine("", queue=queue).occurrences(["periodic.same"])


async def test_an_occurrence_is_run_by_a_worker(engine: ProcrastinateEngine) -> None:
    durable(name="periodic.often", periodic=every(seconds=0.3))(note_run)
    async with engine, working(engine), working(engine):
        await has(lambda: len(ran) >= 3)
    assert len(set(ran)) == len(ran)


# A worker, whose clock may be wrong, and which is killed.
_WORKER = """
import datetime, sys, time
if sys.argv[4] == "wrong":  # before anything has a reference to it
    real = time.time
    time.time = lambda: real() + 86_400
    class Wrong(datetime.datetime):
        __slots__ = ()
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)
    datetime.datetime = Wrong
import anyio
from pathlib import Path
from tasks_core import Worker, durable, durable_context, every
from tasks_core.engines.procrastinate import ProcrastinateEngine

@durable(name="periodic.process", periodic=every(seconds=0.5))
async def note_run() -> None:
    with Path(sys.argv[3]).open("a") as log:
        log.write(durable_context().idempotency_key + "\\n")

async def main():
    async with ProcrastinateEngine(sys.argv[1], queue=sys.argv[2], heartbeat=0.2) as engine:
        await Worker(engine).run(anyio.Event())

anyio.run(main)
"""


async def test_once_for_four_processes_of_which_some_are_killed_and_one_has_a_wrong_clock(
    postgres: str, queue: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.touch()
    processes: list[subprocess.Popen[bytes]] = []

    def start(clock: str) -> None:
        arguments = [sys.executable, "-c", _WORKER, postgres, queue, str(log), clock]
        processes.append(subprocess.Popen(arguments))

    def runs() -> int:
        return len(log.read_text().splitlines())

    async with ProcrastinateEngine(postgres, queue=queue):  # the tables are there
        pass
    try:
        for clock in ("right", "right", "wrong", "right"):
            start(clock)
        for killed in (0, 1, 3):
            before = runs()
            await has(lambda before=before: runs() >= before + 2)  # type: ignore[misc]
            processes[killed].kill()
        before = runs()
        await has(lambda: runs() >= before + 2)
        assert processes[2].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    moments = [datetime.fromisoformat(line.rpartition(" ")[2]) for line in log.read_text().splitlines()]
    async with await psycopg.AsyncConnection.connect(postgres) as connection:
        cursor = await connection.execute(
            "SELECT args->>'key', count(*) FROM procrastinate_jobs WHERE queue_name = %s GROUP BY 1", [queue]
        )
        stored: dict[str, int] = dict(await cursor.fetchall())
    assert set(stored.values()) == {1}, "an occurrence is stored once"
    assert all(abs(datetime.now(UTC) - moment) < timedelta(minutes=5) for moment in moments)
    assert moments[0] < moments[-1]


def test_the_function_is_typed() -> None:
    function: DurableFunction[[], Any, Any] = durable(name="periodic.typed", periodic=NIGHT)(note_run)
    assert function.name == "periodic.typed"
