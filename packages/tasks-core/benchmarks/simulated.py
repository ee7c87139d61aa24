"""
Run a scheduler in simulated event loops, which start what is ready in other orders than asyncio would.

    hatch run simulate                                   all three kinds, in less than a minute
    hatch run simulate --runs 20000                      more random schedules of each kind
    hatch run simulate --kind random --seed 4711         one schedule, as a failure names it

An asyncio loop runs what is ready in the order in which it became ready. Real programs see other orders, because
sockets, threads and timers decide what becomes ready first. `simloom` replaces the loop: the order comes from a seed,
and time passes only when nothing is ready. The promises are those of `core_promises.py`, which the machine of the test
suite checks too.

- `random`: any order. The steps of the program are drawn too.
- `pct`: each coroutine has a priority, and two of them lose it at drawn moments (Burckhardt et al., ASPLOS 2010). This
  finds what needs one coroutine to be late by much.
- `systematic`: each of the small programs in `SCENARIOS` in every order that differs from that of asyncio in at most
  `--delays` places. Without a failure, there is none within this bound.

What this does not cover: plain functions and calls from other threads, because a thread is outside of the simulation;
trio and uvloop; the sockets and signals of a server. The machine of the test suite, `stress.py`, and the suites with
servers are there for them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import simloom
from core_promises import (
    COROUTINE_KINDS,
    GRACE_PERIOD,
    HANDLERS,
    SHIELD_TIMEOUT,
    CheckedScheduler,
    Plan,
    handle_badly,
    handle_plainly,
)
from tasks_core import SchedulerClosedError, ShutdownReport, retry

T = TypeVar("T")

# Nothing is ready any more when this many simulated seconds have passed. Sums of it are exact.
AT_REST = 2.0**-10
# All delays, pauses and attempts of a program together are shorter than this.
LONG = 1000.0


@dataclass(frozen=True)
class Step:
    """What a program does to the scheduler, at a moment."""

    at: float
    do: str
    """The name of a method of `Simulation`."""
    value: Any = None


@dataclass(frozen=True)
class Program:
    """Steps, each of which is taken by a coroutine of its own; those of one moment in any order."""

    steps: Sequence[Step]
    drains: bool = False
    """Whether the tasks have all the time that they need before shutdown."""
    max_concurrency: int | None = None
    max_pending: int | None = None


def at(moment: float, do: str, value: Any = None) -> Step:
    return Step(moment, do, value)


# A program for each pair of events that the scheduler has to keep apart when they come in one turn of the loop.
SCENARIOS = {
    "a delay ends, the task is cancelled, its phase opens": Program(
        [
            at(0, "schedule", [Plan("succeed", delay=1, limited=True), Plan("succeed", phase=0, limited=True)]),
            at(1, "cancel", 0),
            at(1, "end_phase", (0, "success")),
        ],
        drains=True,
        max_concurrency=1,
    ),
    "shutdown begins while a phase opens": Program(
        [
            at(0, "schedule", [Plan("succeed", phase=0, shield=True), Plan("succeed", phase=0)]),
            at(1, "end_phase", (0, "success")),
            at(1, "close"),
        ],
    ),
    "the grace period ends with the pause before a retry": Program(
        [
            at(0, "schedule", [Plan("fail", delay=GRACE_PERIOD - 1, on_error=retry(attempts=2, backoff=1))]),
            at(0, "schedule", [Plan("fail", shield=True, delay=GRACE_PERIOD - 1, on_error=retry(attempts=2))]),
            at(0, "close"),
        ],
    ),
    "a place becomes free while the next task is cancelled": Program(
        [
            at(0, "schedule", [Plan("wait_at_gate"), Plan("succeed"), Plan("succeed")]),
            at(1, "open_gate"),
            at(1, "cancel", 1),
        ],
        drains=True,
        max_concurrency=1,
    ),
    "a token becomes free while the next task is cancelled": Program(
        [
            at(0, "schedule", [Plan("wait_at_gate", limited=True), Plan("succeed", limited=True)]),
            at(0, "schedule", [Plan("succeed", limited=True)]),
            at(1, "open_gate"),
            at(1, "cancel", 1),
        ],
        drains=True,
    ),
    "a timeout ends with the attempt": Program(
        [
            at(0, "schedule", [Plan("wait_at_gate", timeout=3, on_error=handle_badly), Plan("succeed")]),
            at(3, "open_gate"),
            at(3, "cancel", 0),
        ],
        drains=True,
        max_concurrency=1,
    ),
    "a task is released while shutdown discards what is held": Program(
        [
            at(0, "schedule", [Plan("succeed", held=True, shield=True), Plan("succeed", held=True, delay=1)]),
            at(1, "release", 0),
            at(1, "close"),
        ],
    ),
    "a place is taken from a full queue": Program(
        [
            at(0, "schedule", [Plan("wait_at_gate"), Plan("succeed"), Plan("follow_up")]),
            at(1, "open_gate"),
            at(1, "schedule", [Plan("succeed")]),
            at(1, "cancel", 1),
        ],
        drains=True,
        max_concurrency=1,
        max_pending=2,
    ),
    "the last task ends while it schedules another": Program(
        [
            at(0, "schedule", [Plan("follow_up_shielded_late"), Plan("wait_at_gate", shield=True)]),
            at(1, "close"),
            at(1 + GRACE_PERIOD, "open_gate"),
        ],
    ),
    "shutdown is called twice while the only task fails": Program(
        [
            at(0, "schedule", [Plan("fail", on_error=handle_badly, delay=1), Plan("exit", delay=1)]),
            at(1, "close"),
            at(1, "close"),
        ],
    ),
}


class LoopClock:
    """The time of the simulated event loop, which the real clock of the scheduler would not see."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time

    async def sleep_until(self, deadline: float) -> None:
        """Wait as `MonotonicClock` does."""
        await anyio.lowlevel.checkpoint()
        while (left := deadline - self.now()) > 0:  # noqa: ASYNC110  as there
            await anyio.sleep(left)


class Simulation(CheckedScheduler):
    """One program in one simulated event loop."""

    async def run(self, program: Program) -> None:
        self.closing: list[asyncio.Task[ShutdownReport]] = []
        # What looks for a blocked event loop is a thread, and goes by real time.
        limits = program.max_concurrency, program.max_pending
        self.set_up(*limits, clock=LoopClock(), slow_callback_duration=None)
        try:
            self.make_gates()
            await self.scheduler.start()
            await asyncio.gather(*(self.take(step) for step in program.steps))
            if program.drains:
                await self.drain()
            await self.end()
            self.check_nothing_is_left()
        finally:
            self.tear_down()

    async def take(self, step: Step) -> None:
        await asyncio.sleep(step.at)
        arguments = () if step.value is None else (step.value,)
        getattr(self, f"do_{step.do}")(*arguments)
        self.check_the_moment()
        await asyncio.sleep(AT_REST)
        self.check_the_moment()
        assert self.few_enough_wait(), "more tasks wait than may"

    def check_the_moment(self) -> None:
        self.check_nothing_went_wrong()
        self.check_numbers()
        self.check_limits()

    # ---- steps ----

    def do_schedule(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            task = self.carry_out(plan)
            if task is not None and plan.cancel:
                self.cancel(task)

    def do_cancel(self, index: int) -> None:
        if self.tasks:
            self.cancel(self.tasks[index % len(self.tasks)])

    def do_end_phase(self, end: tuple[int, str]) -> None:
        self.end_phase(*end)

    def do_release(self, index: int) -> None:
        self.release(index)

    def do_open_gate(self) -> None:
        self.open_gate()

    def do_close(self) -> None:
        if self.closing_since is None:
            self.closing_since = self.now()
        self.closing.append(asyncio.ensure_future(self.scheduler.aclose()))

    # ---- the end ----

    async def drain(self) -> None:
        self.remove_obstacles()
        async with asyncio.timeout(LONG):
            while not all(task.state.finished for task in self.tasks):  # noqa: ASYNC110  also those that come meanwhile
                await asyncio.sleep(1)
        self.check_all_ended_by_themselves()

    async def end(self) -> None:
        if not self.closing:
            self.do_schedule([Plan("wait_at_gate", shield=True)])  # as long as it may
        self.do_close()
        self.do_close()
        reports = await asyncio.gather(*self.closing)
        assert all(report is reports[0] for report in reports)
        assert self.closing_since is not None
        assert self.now() <= self.closing_since + GRACE_PERIOD + SHIELD_TIMEOUT + 0.01, (
            "shutdown took longer than it may"
        )
        await asyncio.sleep(AT_REST)
        self.check_the_end(reports[0])
        try:
            self.scheduler.schedule(self.succeed, None)
        except SchedulerClosedError:
            pass
        else:
            raise AssertionError("a closed scheduler accepted a task")

    def check_nothing_is_left(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"native tasks are left: {left}"


# ---- programs that are drawn ----


def choose(label: str, *choices: T) -> T:
    index: int = simloom.draw(label, len(choices))
    return choices[index]


def drawn_plan() -> Plan:
    return Plan(
        kind=choose("kind", *COROUTINE_KINDS),
        phase=choose("phase", None, None, 0, 1, 2),
        shield=choose("shield", False, True),
        delay=choose("delay", None, None, 1, 30),
        timeout=choose("timeout", None, 3),
        on_error=choose("on_error", *(handler for handler in HANDLERS if handler is not handle_plainly)),
        limited=choose("limited", False, False, True),
        held=choose("held", False, False, False, True),
        when=choose("when", None, "error", "always"),
        cancel=choose("cancel", None, None, None, "here"),
    )


def drawn_step(drains: bool) -> Step:
    # Few moments, so that several steps fall on one.
    moment = choose("moment", 0, 1, 2, 3, 4, 9, 10)
    do = choose("do", *["schedule"] * 4, *["cancel"] * 3, "end_phase", "end_phase", "release", "open_gate", "close")
    match do:
        case "schedule":
            return at(moment, do, [drawn_plan() for _ in range(1 + simloom.draw("plans", 3))])
        case "cancel" | "release":
            return at(moment, do, simloom.draw("index", 12))
        case "end_phase":
            return at(moment, do, (simloom.draw("phase", 3), choose("how", "success", "error", "discard")))
        case "close" if drains:
            return at(moment, "open_gate")
    return at(moment, do)


async def run_drawn_program() -> None:
    drains = choose("drains", False, True)
    first = at(0, "schedule", [drawn_plan() for _ in range(3)])
    steps = [first, *(drawn_step(drains) for _ in range(8))]
    concurrency, pending = choose("max_concurrency", None, 1, 2), choose("max_pending", None, None, 4)
    await Simulation().run(Program(steps, drains, concurrency, pending))


async def run_scenario(program: Program) -> None:
    await Simulation().run(program)


# ---- the command ----

# So that the seed alone decides: no real time, no random numbers of the process.
SIMULATED = {"virtual_time": True, "seed_randomness": True}


def explore(kind: str, scheduler: str, seed: int, runs: int, describe: bool) -> bool:
    """Run drawn programs; return whether one broke a promise."""
    check_that_a_seed_decides()
    began = time.perf_counter()
    found = simloom.explore(run_drawn_program, runs=runs, start_seed=seed, scheduler=scheduler, **SIMULATED)
    seconds = time.perf_counter() - began
    print(f"{kind}: {found.runs} schedules, {len(found.failures)} failed, {seconds:.1f} s")
    if found.first_failure is None:
        return False
    first = found.failures[0]
    print(f"  {first.error}: {first.message}")
    print(f"  to run it again: hatch run simulate --kind {kind} --seed {first.seed} --runs 1")
    if describe:
        print(simloom.shrink(run_drawn_program, found.first_failure, max_runs=400, **SIMULATED).describe())
    return True


def explore_scenarios(delays: int, describe: bool) -> bool:
    """Run each scenario in every order within the bound; return whether one broke a promise."""
    failed = False
    for name, program in SCENARIOS.items():
        began = time.perf_counter()
        main = partial(run_scenario, program)
        found = simloom.explore_systematic(main, max_delays=delays, virtual_time=True)
        seconds = time.perf_counter() - began
        outcome = "every order within the bound" if found.exhaustive else "some orders"
        print(f"systematic, {name}: {found.schedules} schedules, {outcome}, {seconds:.1f} s")
        if found.first is not None:
            failed = True
            print(f"  {found.failures[0].error}: {found.failures[0].message}")
            if describe:
                print(simloom.shrink(main, found.first, max_runs=200, virtual_time=True).describe())
    return failed


def check_that_a_seed_decides() -> None:
    """Raise if a schedule that is run twice is not the same."""
    for seed in range(3):
        # Of a run that fails, the rest may differ, and the failure is reported anyway.
        if simloom.run(run_drawn_program, seed=seed, raise_on_error=False, **SIMULATED).error is None:
            simloom.run(run_drawn_program, seed=seed, check_determinism=True, **SIMULATED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("random", "pct", "systematic"), help="only this one")
    parser.add_argument("--runs", type=int, default=300, help="schedules of each random kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first of them")
    parser.add_argument("--delays", type=int, default=1, help="places in which a systematic schedule differs")
    parser.add_argument("--brief", action="store_true", help="do not look for the shortest failing schedule")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else ["random", "pct", "systematic"]
    simloom.pin_hashseed()
    failed = False
    for kind in kinds:
        if kind == "systematic":
            failed |= explore_scenarios(options.delays, not options.brief)
        else:
            scheduler = "pct:auto" if kind == "pct" else kind
            failed |= explore(kind, scheduler, options.seed, options.runs, not options.brief)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
