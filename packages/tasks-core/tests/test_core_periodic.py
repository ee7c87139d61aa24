"""Periodic tasks: when they run, that they never overlap or drift, and how they end."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import anyio.lowlevel
import pytest
from core_support import messages, noop
from tasks_core import (
    SchedulerClosedError,
    Task,
    TaskRegistry,
    TaskScheduler,
    TaskState,
    cron,
    durable,
    every,
)
from tasks_core.exceptions import InvalidConfigError, InvalidTaskError
from tasks_core.testing import MonotonicClock
from tasks_core.types import PeriodicStatistics
from tasks_testing import VirtualClock, record_tasks

pytestmark = pytest.mark.anyio

START = datetime(2000, 1, 1, tzinfo=UTC)  # of a virtual clock


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


class Runs:
    """Notes when it runs, and waits at a gate if there is one."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.at: list[float] = []
        self.gate: anyio.Event | None = None

    async def run(self) -> None:
        self.at.append(self.clock.now())
        if self.gate is not None:
            await self.gate.wait()


# ---- intervals ----


async def test_a_function_runs_at_each_multiple_of_the_interval() -> None:
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    async with TaskScheduler(clock=clock) as scheduler:
        periodic = scheduler.periodic(every(minutes=10)).schedule(runs.run)
        await turns()
        assert (periodic.next_at, periodic.last) == (START + timedelta(minutes=10), None)
        await clock.aadvance(1800)
        assert runs.at == [600, 1200, 1800]
        assert periodic.last is not None
        assert periodic.last.state is TaskState.SUCCEEDED
        assert periodic.last.where.startswith(__file__)
        assert periodic.next_at == START + timedelta(minutes=40)
        assert dict(scheduler.periodic_tasks) == {"Runs.run": periodic}
        assert scheduler.services == ()
        numbers = scheduler.statistics()
        assert (numbers.scheduled, numbers.pending, numbers.oldest_age) == (3, 0, 0)


async def test_a_day_takes_milliseconds_and_has_each_run() -> None:
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.periodic(every(minutes=10)).schedule(runs.run)
        scheduler.periodic(cron("0 3 * * *")).task(name="nightly").schedule(noop)
        await turns()
        await clock.aadvance(86400)
        assert runs.at == [600 * number for number in range(1, 145)]
        assert scheduler.statistics().succeeded == 145


@pytest.mark.parametrize(
    "trigger, expected",
    [
        (every(seconds=60, immediately=True), [0, 60, 120]),
        (every(seconds=60, first=5), [5, 65, 125]),
        (every(seconds=60, first=START + timedelta(seconds=30)), [30, 90]),
        (every(minutes=1, seconds=5), [65]),
    ],
)
async def test_the_first_run(trigger: Any, expected: list[float]) -> None:
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.periodic(trigger).schedule(runs.run)
        await turns()
        await clock.aadvance(125)
    assert runs.at == expected


async def test_what_a_registry_has_goes_on_with_its_moments_in_a_process_that_starts_after_the_first() -> None:
    """The moment stands in a module: to refuse it when it is past would keep the next process from starting."""
    registry = TaskRegistry()
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    registry.periodic(every(seconds=60, first=START - timedelta(days=3, seconds=10)))(runs.run)
    async with TaskScheduler(clock=clock, registry=registry):
        await turns()
        await clock.aadvance(125)
    assert runs.at == [50, 110]


async def test_jitter_makes_a_run_late_and_does_not_move_the_others() -> None:
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.periodic(every(minutes=10, jitter=60)).schedule(runs.run)
        await turns()
        await clock.aadvance(600 * 50 + 60)
    late = [at - 600 * number for number, at in enumerate(runs.at, start=1)]
    assert len(late) == 50
    assert all(0 <= seconds <= 60 for seconds in late)
    assert len({round(seconds, 3) for seconds in late}) > 40


async def test_an_occurrence_that_is_due_while_the_last_run_has_not_ended_is_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    runs.gate = anyio.Event()
    async with TaskScheduler(clock=clock) as scheduler:
        periodic = scheduler.periodic(every(seconds=10)).schedule(runs.run)
        await turns()
        for _ in range(3):
            clock.advance(10)
            await turns()
        assert runs.at == [10]
        assert periodic.last is not None
        skipped = f"is skipped, because run #{periodic.last.id} has not ended"
        assert len([line for line in messages(caplog) if line.endswith(skipped)]) == 2
        runs.gate.set()
        runs.gate = None
        await turns()
        clock.advance(10)
        await turns()
        assert runs.at == [10, 40]


@pytest.mark.parametrize("trigger", [every(seconds=60), cron("* * * * *")])
async def test_occurrences_that_have_passed_are_one_run_and_one_line(
    trigger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.periodic(trigger).schedule(runs.run)
        await turns()
        clock.advance(615)  # in one leap: the event loop was blocked, or the machine slept
        await turns()
        assert runs.at == [615]
        clock.advance(45)
        await turns()
        assert runs.at == [615, 660]
    assert len([line for line in messages(caplog) if "runs once for all occurrences since" in line]) == 1


async def test_a_run_that_fails_is_logged_and_the_next_occurrence_comes(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(auto=False)
    number = 0
    failures: list[Exception] = []

    async def fail() -> None:
        nonlocal number
        number += 1
        raise ValueError("failed on purpose")

    async def on_error(task: Task[Any], error: Exception) -> None:
        failures.append(error)

    async with TaskScheduler(clock=clock) as scheduler:
        periodic = scheduler.periodic(every(seconds=10)).task(name="job", on_error=on_error).schedule(fail)
        await turns()
        await clock.aadvance(30)
        assert (number, len(failures), periodic.name) == (3, 3, "job")
    assert len(messages(caplog, logging.ERROR)) == 3


async def test_a_plain_function_with_arguments() -> None:
    clock = VirtualClock(auto=False)
    seen: list[tuple[int, str]] = []

    def note(number: int, *, text: str) -> None:
        seen.append((number, text))

    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.periodic(every(seconds=10)).schedule(note, 1, text="a")
        await turns()
        await clock.aadvance(20)
    assert seen == [(1, "a"), (1, "a")]


async def test_periodic_tasks_have_counts_and_a_phase_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(auto=False)
    outcomes = [ValueError("first"), None, ValueError("last")]
    gate = anyio.Event()

    async def job() -> None:
        error = outcomes.pop(0)
        if error is not None:
            raise error
        await gate.wait()

    async with TaskScheduler(clock=clock) as scheduler:
        periodic = scheduler.periodic(every(seconds=10)).task(name="job").schedule(job)
        service = scheduler.service(anyio.sleep_forever)
        await turns()
        assert scheduler.statistics().periodic == {"job": PeriodicStatistics(0, 0, 0)}
        for _ in range(3):  # it fails; it waits; it is skipped
            clock.advance(10)
            await turns()
        numbers = scheduler.statistics()
        assert (numbers.scheduled, numbers.failed, numbers.running, numbers.services) == (2, 1, 1, 1)
        assert numbers.by_phase == {"periodic": 1}
        assert numbers.periodic == {"job": PeriodicStatistics(runs=2, failed=1, skipped=1)}
        assert numbers.as_dict()["periodic"] == {"job": {"runs": 2, "failed": 1, "skipped": 1}}
        gate.set()
        await turns()
        clock.advance(10)
        await turns()
        assert periodic.statistics() == PeriodicStatistics(runs=3, failed=2, skipped=1)
        assert periodic.last is not None
        assert periodic.last.phase is not None
        assert periodic.last.phase.origin is periodic
        service.cancel()
    assert "Task 'job' #" in messages(caplog, logging.ERROR)[0]
    assert "(periodic, scheduled at " in messages(caplog, logging.ERROR)[0]


async def test_the_report_names_a_lost_run_as_one_of_a_periodic_task() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock, grace_period=0) as scheduler:
        scheduler.periodic(every(seconds=10, immediately=True)).schedule(anyio.sleep_forever)
        await turns()
    assert scheduler.report is not None
    assert [(lost.name, lost.phase) for lost in scheduler.report.lost] == [("sleep_forever", "periodic")]


# ---- the end ----


async def test_a_periodic_task_is_cancelled_by_its_handle_or_its_name() -> None:
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    async with TaskScheduler(clock=clock) as scheduler:
        first = scheduler.periodic(every(seconds=10)).schedule(runs.run)
        second = scheduler.periodic(every(seconds=10)).task(name="second").schedule(runs.run)
        await turns()
        assert first.cancel() is True
        assert scheduler.periodic_tasks["second"].cancel() is True
        await turns()
        assert first.finished
        assert second.finished
        assert second.cancel() is False
        assert dict(scheduler.periodic_tasks) == {}
        clock.advance(100)
        await turns()
    assert runs.at == []


@pytest.mark.parametrize("recorded", [True, False])
async def test_time_passes_over_a_periodic_task_that_is_cancelled_at_this_moment(recorded: bool) -> None:
    """Its timer has a deadline until the cancellation has arrived."""
    own = VirtualClock(auto=False)
    with record_tasks(virtual_time=True) if recorded else nullcontext() as recorder:
        async with TaskScheduler(clock=own) as scheduler:
            cancelled = scheduler.periodic(every(seconds=10)).task(name="cancelled").schedule(export)
            periodic = scheduler.periodic(every(seconds=30)).schedule(export)
            await turns()
            if recorder is None:
                own.advance(10)
                cancelled.cancel()  # between the deadline and the turn of its timer
                await own.aadvance(50)
            else:
                cancelled.cancel()
                await recorder.clock.aadvance(60)
            await scheduler.idle()
            assert (cancelled.statistics().runs, periodic.statistics().runs) == (0, 2)


async def test_shutdown_ends_it_without_a_warning_and_drains_its_run(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    runs.gate = anyio.Event()
    scheduler = TaskScheduler(clock=clock, grace_period=30)
    await scheduler.start()
    periodic = scheduler.periodic(every(seconds=10, immediately=True)).schedule(runs.run)
    await turns()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.aclose)
        await scheduler.stopping.wait()
        await turns()
        runs.gate.set()
    assert scheduler.report is not None
    assert (scheduler.report.clean, scheduler.report.succeeded, scheduler.report.duration) == (True, 1, 0)
    assert periodic.finished
    assert messages(caplog, logging.WARNING) == []
    with pytest.raises(SchedulerClosedError):
        scheduler.periodic(every(seconds=10)).schedule(noop)


async def test_a_queue_that_is_full_skips_an_occurrence(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock, max_concurrency=1, max_pending=1, grace_period=0) as scheduler:
        scheduler.schedule(anyio.sleep_forever)
        await turns()
        scheduler.schedule(noop)
        periodic = scheduler.periodic(every(seconds=10)).schedule(noop)
        await turns()
        clock.advance(10)
        await turns()
        assert periodic.last is None
        assert periodic.statistics() == PeriodicStatistics(runs=0, failed=0, skipped=1)
        assert "is skipped: 'noop' was not accepted" in messages(caplog, logging.WARNING)[0]
        assert periodic.next_at == START + timedelta(seconds=20)


async def test_a_trigger_of_ones_own_may_end_or_fail(caplog: pytest.LogCaptureFixture) -> None:
    class Twice:
        jitter = 0.0
        calls = 0

        def next_after(self, previous: datetime | None, now: datetime) -> datetime | None:
            self.calls += 1
            if self.calls == 1:
                raise ValueError("failed on purpose")
            return now + timedelta(seconds=10) if previous is None else None

    clock = VirtualClock(auto=False)
    runs = Runs(clock)
    async with TaskScheduler(clock=clock) as scheduler:
        periodic = scheduler.periodic(Twice()).schedule(runs.run)
        await turns()
        clock.advance(1)
        await turns()
        clock.advance(10)
        await turns()
        assert runs.at == [11]
        assert periodic.finished
        assert periodic.next_at is None
    assert "The timer of the periodic task 'Runs.run' failed" in messages(caplog, logging.ERROR)[0]


# ---- the wall clock ----


def occurrences(trigger: Any, start: datetime, number: int) -> list[str]:
    found, previous, now = [], None, start
    for _ in range(number):
        previous = now = trigger.next_after(previous, now)
        found.append(now.isoformat())
    return found


def test_daylight_saving_time_begins_and_ends() -> None:
    nightly = cron("30 2 * * *", timezone="Europe/Berlin")
    # 2:30 does not exist on 29 March 2026, and exists twice on 25 October 2026.
    assert occurrences(nightly, datetime(2026, 3, 28, tzinfo=UTC), 3) == [
        "2026-03-28T01:30:00+00:00",
        "2026-03-29T01:00:00+00:00",
        "2026-03-30T00:30:00+00:00",
    ]
    assert occurrences(nightly, datetime(2026, 10, 24, tzinfo=UTC), 3) == [
        "2026-10-24T00:30:00+00:00",
        "2026-10-25T00:30:00+00:00",
        "2026-10-26T01:30:00+00:00",
    ]
    hourly = cron("0 * * * *", timezone=ZoneInfo("Europe/Berlin"))
    assert len(set(occurrences(hourly, datetime(2026, 10, 24, 22, tzinfo=UTC), 5))) == 5
    assert occurrences(hourly, datetime(2026, 10, 24, 23, tzinfo=UTC), 3)[-1] == "2026-10-25T02:00:00+00:00"


def test_leap_days() -> None:
    assert occurrences(cron("0 0 29 2 *"), datetime(2026, 1, 1, tzinfo=UTC), 2) == [
        "2028-02-29T00:00:00+00:00",
        "2032-02-29T00:00:00+00:00",
    ]


class SetClock(MonotonicClock):
    """A real clock whose wall clock a test sets; it is looked at each time."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self.monotonic = 0.0
        self.waits: list[float] = []
        self.woken = anyio.Event()

    def now(self) -> float:
        return self.monotonic

    async def sleep_until(self, deadline: float) -> None:
        self.waits.append(deadline - self.monotonic)
        await self.woken.wait()
        self.monotonic = max(self.monotonic, deadline)

    async def wake(self) -> None:
        event, self.woken = self.woken, anyio.Event()
        event.set()
        await turns()


async def test_the_wall_clock_is_looked_at_again_because_it_may_be_set_and_the_machine_may_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SetClock()
    monkeypatch.setattr(time, "time", lambda: clock.wall.timestamp())
    ran: list[datetime] = []

    async def note() -> None:
        ran.append(clock.wall)

    async with TaskScheduler(clock=clock, grace_period=0) as scheduler:
        periodic = scheduler.periodic(cron("0 15 * * *")).schedule(note)
        await turns()
        assert clock.waits == [60]
        await clock.wake()
        assert ran == []
        clock.wall = datetime(2026, 3, 1, 15, 20, tzinfo=UTC)  # the machine has slept
        await clock.wake()
        assert ran == [clock.wall]
        clock.wall = datetime(2026, 3, 1, 14, 50, tzinfo=UTC)  # the clock is set back
        await clock.wake()
        clock.wall = datetime(2026, 3, 1, 15, 10, tzinfo=UTC)
        await clock.wake()
        assert len(ran) == 1, "15:00 of this day had its run"
        assert periodic.next_at == datetime(2026, 3, 2, 15, tzinfo=UTC)
        await clock.wake()


# ---- the recorder ----


async def test_a_recorder_records_the_runs_and_does_not_wait_for_the_next_occurrence() -> None:
    with record_tasks(virtual_time=True) as recorder:
        async with TaskScheduler() as scheduler:
            scheduler.periodic(every(hours=1)).schedule(noop)
            await turns()
            await recorder.adrain()
            recorder.assert_nothing_scheduled()
            await recorder.clock.aadvance(86400)
            recorder.assert_ran(noop, times=24)
            await recorder.adrain()
            assert recorder.services == ()


async def test_time_does_not_jump_for_a_periodic_task() -> None:
    clock = VirtualClock()
    async with TaskScheduler(clock=clock) as scheduler:
        scheduler.periodic(every(seconds=10)).schedule(noop)
        await turns(200)
        assert clock.now() == 0
        await scheduler.task(delay=35).schedule(noop)
        assert clock.now() == 35
        assert scheduler.statistics().succeeded == 4


# ---- registered at import ----

registry = TaskRegistry()
_ran: list[str] = []


@registry.periodic(every(seconds=10), name="clean up", timeout=5)
async def clean_up() -> None:
    _ran.append("periodic")


@registry.service(name="consumer")
async def consume() -> None:
    _ran.append("service")
    await anyio.sleep_forever()


async def test_what_modules_have_registered_runs_in_a_scheduler_that_is_made_later() -> None:
    all_of_them = TaskRegistry()
    all_of_them.include(registry)
    for _ in range(2):  # of any number of schedulers
        _ran.clear()
        clock = VirtualClock(auto=False)
        async with TaskScheduler(clock=clock, registry=all_of_them) as scheduler:
            await turns()
            await clock.aadvance(10)
            assert _ran == ["service", "periodic"]
            last = scheduler.periodic_tasks["clean up"].last
            assert last is not None
            assert last.config.timeout == 5
            assert last.where.startswith(__file__)
            assert [service.name for service in scheduler.services] == ["consumer"]
    await clean_up()  # is the function that it was


# ---- bad input ----


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: every(), r"every\(seconds=0\): seconds must be an interval of more than 0 seconds"),
        (lambda: every(minutes=-1), r"every\(minutes=-1\): minutes must be a number"),
        (lambda: every(seconds=10, jitter=10), "jitter must be less than the interval of 10 seconds"),
        (lambda: every(seconds=10, first=datetime(2026, 1, 1)), "a datetime with a time zone"),  # noqa: DTZ001
        (lambda: every(seconds=10, first=1, immediately=True), "both set the first run"),
        (lambda: cron("0 25 * * *"), r"cron\('0 25 \* \* \*'\): Bad hour. The fields are minute, hour"),
        (lambda: cron("nonsense"), "The fields are minute, hour"),
        (lambda: cron("0 0 31 2 *"), "Bad day-of-month"),
        (lambda: cron("0 0 * * *", timezone="Europe/Atlantis"), "there is no such time zone"),
        (lambda: cron("0 0 * * *", timezone=1), "there is no such time zone"),  # type: ignore[arg-type]
        (lambda: cron("0 0 * * *", jitter=-1), r"cron\(jitter=-1\)"),
        (lambda: cron(5), r"cron\(5\): expression must be a text"),  # type: ignore[arg-type]
        (lambda: TaskScheduler().periodic(10), r"periodic\(int\): trigger must have the method next_after"),  # type: ignore[arg-type]
        (lambda: TaskScheduler(registry=5), "registry must be a TaskRegistry"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_gets_an_error_that_says_what_to_write(make: Any, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        make()


def export() -> None: ...


@durable(name="test_core_periodic:durable")
async def for_an_engine() -> None: ...


def test_what_cannot_be_periodic_is_refused_at_the_call() -> None:
    scheduler = TaskScheduler()
    scheduler.periodic(every(seconds=1)).schedule(noop)
    with pytest.raises(InvalidConfigError, match=r"has a periodic task 'noop' already.*\.task\(name=\.\.\.\)"):
        scheduler.periodic(every(seconds=1)).schedule(noop)
    with pytest.raises(InvalidConfigError, match="the first run would be in the past"):
        scheduler.periodic(every(seconds=1, first=datetime(2020, 1, 1, tzinfo=UTC))).schedule(noop)
    with pytest.raises(InvalidTaskError, match="is durable: each process would submit it"):
        scheduler.periodic(every(seconds=1)).schedule(for_an_engine)
    with pytest.raises(InvalidTaskError):
        scheduler.periodic(every(seconds=1)).schedule(noop, 1)  # type: ignore[call-overload]
    with pytest.raises(InvalidConfigError, match="timeout=0"):
        scheduler.periodic(every(seconds=1)).task(timeout=0)


@pytest.mark.parametrize(
    "register, message",
    [
        (lambda registry: registry.periodic(10), r"periodic\(int\): trigger must have the method next_after"),
        (lambda registry: registry.periodic(every(seconds=1), timeout=0), "timeout=0"),
        (lambda registry: registry.periodic(every(seconds=1), key=""), "key='': key must be"),
        (lambda registry: registry.periodic(every(seconds=1))(5), "stands above a function, not 'int'"),
        (lambda registry: registry.periodic(every(seconds=1))(for_an_engine), "is durable"),
        (lambda registry: registry.service(grace=-1), "grace=-1: grace must be a number of seconds"),
        (lambda registry: registry.service(restart="often"), "restart must be True, False or a RetryPolicy"),
        (lambda registry: registry.service()(export), "export is a plain function"),
        (lambda registry: registry.service()(anyio.sleep), "missing a required argument: 'delay'"),
    ],
)
def test_what_a_registry_cannot_run_is_refused_where_it_is_registered(register: Any, message: str) -> None:
    """At import, and not when the application starts."""
    with pytest.raises((InvalidConfigError, InvalidTaskError), match=message):
        register(TaskRegistry())


def test_cron_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cronsim", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tasks-core\[cron\]'"):
        cron("0 3 * * *")


async def test_a_periodic_task_shows_when_it_runs_next() -> None:
    clock = VirtualClock(auto=False)
    async with TaskScheduler(clock=clock) as scheduler:
        periodic = scheduler.periodic(every(seconds=10)).schedule(noop)
        await turns()
        assert repr(periodic) == f"<PeriodicTask 'noop' next at {START + timedelta(seconds=10)}>"
        periodic.cancel()
        await turns()
        assert repr(periodic) == "<PeriodicTask 'noop' finished>"


async def test_a_registered_periodic_task_needs_no_options() -> None:
    registered = TaskRegistry()
    clock, ran = VirtualClock(auto=False), []

    @registered.periodic(every(seconds=10))
    async def note() -> None:
        ran.append(clock.now())

    async with TaskScheduler(clock=clock, registry=registered):
        await turns()
        clock.advance(10)
        await turns()
    assert ran == [10]
