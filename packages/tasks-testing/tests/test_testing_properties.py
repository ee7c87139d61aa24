"""What is true of every record, whatever the tasks and the requests did."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_core import TaskPhase, TaskScheduler, retry
from tasks_core.frameworks import announce
from tasks_testing import EventKind, RecordedTask, TasksRecorder, record_tasks

PHASES = ("immediate", "after_route", "after_response", None)
TERMINAL = {"succeeded", "failed", "cancelled", "discarded"}

# The life of a task, as a language over its events.
LIFE = re.compile(
    r"scheduled( held( released)?)?"
    r"( discarded| cancelled|( started( retrying started)*( succeeded| failed| cancelled| retrying cancelled))?)"
)


@dataclass(frozen=True)
class Plan:
    """What one task is going to do."""

    phase: str | None
    sync: bool
    failures: int
    attempts: int
    delay: float
    when: Literal["success", "error", "always"]
    held: bool
    follows_up: bool
    cancelled: bool


@dataclass(frozen=True)
class RequestPlan:
    tasks: tuple[Plan, ...]
    status: int
    raises: bool


plans = st.builds(
    Plan,
    phase=st.sampled_from(PHASES),
    sync=st.booleans(),
    failures=st.integers(0, 3),
    attempts=st.integers(1, 3),
    delay=st.sampled_from([0.0, 0.0, 1.0, 90.0]),
    when=st.sampled_from(["success", "success", "error", "always"]),
    held=st.booleans(),
    follows_up=st.booleans(),
    cancelled=st.sampled_from([False, False, False, True]),
)
request_plans = st.builds(
    RequestPlan,
    tasks=st.lists(plans, max_size=4).map(tuple),
    status=st.sampled_from([200, 201, 404, 500]),
    raises=st.booleans(),
)


class Request:
    """Stands for a request of tasks-fastapi."""

    method = "POST"
    path = "/"

    def __init__(self) -> None:
        self.status = 0
        self.error: BaseException | None = None


class Job:
    """A task that does what its plan says."""

    def __init__(self, plan: Plan, scheduler: TaskScheduler) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.failed = 0

    def run(self, plan: Plan) -> int:
        if self.failed < plan.failures:
            self.failed += 1
            raise ConnectionError(f"attempt {self.failed}")
        if plan.follows_up:
            self.scheduler.schedule(anyio.lowlevel.checkpoint)
        return self.failed

    async def arun(self, plan: Plan) -> int:
        await anyio.lowlevel.checkpoint()
        return self.run(plan)


async def serve(plan: RequestPlan, scheduler: TaskScheduler) -> None:
    request = Request()
    announce(request, "request_started")
    batches = {phase: TaskPhase(scheduler, phase, origin=request) for phase in PHASES if phase}
    batches["immediate"].open()
    for task in plan.tasks:
        schedule(task, batches, scheduler)
    await anyio.lowlevel.checkpoint()
    request.status = plan.status
    outcome: Literal["success", "error"] = "error" if plan.raises or plan.status >= 400 else "success"
    announce(request, "route_returned")
    batches["after_route"].open(outcome)
    if not plan.raises:
        announce(request, "response_started")
        await anyio.lowlevel.checkpoint()
        announce(request, "response_sent")
    batches["after_response"].open(outcome)
    announce(request, "request_finished")


def schedule(plan: Plan, batches: dict[str, TaskPhase], scheduler: TaskScheduler) -> None:
    job = Job(plan, scheduler)
    handler = retry(attempts=plan.attempts, backoff=1)
    if plan.phase is None:
        where = scheduler.task(delay=plan.delay, on_error=handler)
    else:
        where = batches[plan.phase].task(delay=plan.delay, on_error=handler, when=plan.when)
    handle = where.schedule(job.run if plan.sync else job.arun, plan)
    if plan.cancelled:
        handle.cancel()


async def play(requests: list[RequestPlan], recorder: TasksRecorder, release: bool) -> None:
    async with TaskScheduler(grace_period=5) as scheduler:
        recorder.hold("nobody", *(name for name in ("Job.run", "Job.arun")), keep=["free"])
        async with anyio.create_task_group() as group:
            for plan in requests:
                group.start_soon(serve, plan, scheduler)
        if release:
            await recorder.adrain()
            while held := recorder.in_state("held"):
                recorder.release(held[0].name)
                await recorder.adrain()


def life_of(task: RecordedTask[Any]) -> str:
    return " ".join(event.kind for event in task.events)


def check(recorder: TasksRecorder) -> None:
    seqs = [event.seq for event in recorder.events]
    assert seqs == sorted(set(seqs))
    assert {event.kind for event in recorder.events} <= set(get_args(EventKind))
    for task in recorder:
        check_task(task)
    for index in range(len(recorder.requests)):
        check_request(recorder, index)
    assert max(map(len, recorder.timeline().splitlines())) <= 80
    assert all(repr(task) and str(task.call) for task in recorder)


def check_task(task: RecordedTask[Any]) -> None:
    life = life_of(task)
    assert LIFE.fullmatch(life), life
    assert [event.kind in TERMINAL for event in task.events].count(True) == 1
    assert task.state == task.events[-1].kind
    assert task.attempts == life.count("started")
    assert (task.state == "discarded") <= bool(task.reason)
    assert (task.state == "discarded") <= (task.attempts == 0)
    clocks = [event.clock for event in task.events]
    assert clocks == sorted(clocks)
    if task.attempts:
        started = next(event for event in task.events if event.kind == "started")
        assert started.clock >= task.events[0].clock + task.delay
    for before, after in zip(task.events, task.events[1:], strict=False):
        if before.kind == "retrying" and after.kind == "started":
            assert after.clock > before.clock
            assert after.attempt == before.attempt + 1
            assert isinstance(before.error, ConnectionError)


def check_request(recorder: TasksRecorder, index: int) -> None:
    events = recorder.request(index).events
    marks = [event.phase or event.kind for event in events if event.task is None]
    order = [
        "request_started",
        "route_returned",
        "after_route",
        "response_started",
        "response_sent",
        "after_response",
        "request_finished",
    ]
    assert marks == [mark for mark in order if mark in marks]
    assert {"request_started", "route_returned", "request_finished"} <= set(marks)
    seq = {event.phase: event.seq for event in events if event.kind == "phase_opened"}
    sent = [event.seq for event in events if event.kind == "response_sent"]
    for event in events:
        if event.kind == "started" and event.phase != "immediate":
            assert event.seq > seq[event.phase]
            if event.phase == "after_response" and sent:
                assert event.seq > sent[0]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(requests=st.lists(request_plans, min_size=1, max_size=3), release=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_record_keeps_the_rules(backend: str, requests: list[RequestPlan], release: bool) -> None:
    with record_tasks(failures="ignore", virtual_time=True, timeout=30) as recorder:
        anyio.run(play, requests, recorder, release, backend=backend)
        check(recorder)
        assert len(recorder.requests) == len(requests)
        assert len(recorder.of("Job.run")) + len(recorder.of("Job.arun")) == sum(len(plan.tasks) for plan in requests)
        if release:
            assert not [task for task in recorder if task.reason == "held until test end"]
