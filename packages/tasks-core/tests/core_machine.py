"""A machine that does anything to a scheduler, in any order, and looks whether its promises hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import anyio.from_thread
import anyio.lowlevel
import pytest
from core_promises import (
    COROUTINE_KINDS,
    GRACE_PERIOD,
    HANDLERS,
    PLAIN_KINDS,
    SHIELD_TIMEOUT,
    CheckedScheduler,
    Plan,
)
from core_support import Workers, in_thread
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tasks_core import SchedulerClosedError
from tasks_testing import VirtualClock

PLANS = st.builds(
    Plan,
    kind=st.sampled_from((*COROUTINE_KINDS, *PLAIN_KINDS)),
    phase=st.sampled_from([None, None, 0, 1, 2]),
    shield=st.booleans(),
    delay=st.sampled_from([None, None, 1, 30]),
    timeout=st.sampled_from([None, 3]),
    on_error=st.sampled_from(HANDLERS),
    limited=st.sampled_from([False, False, True]),
    held=st.sampled_from([False, False, False, True]),
    when=st.sampled_from([None, "error", "always"]),
    cancel=st.sampled_from([None, None, None, "here", "in a thread"]),
    key=st.sampled_from([None, None, None, "a", "b"]),
    on_conflict=st.sampled_from([None, "replace", "queue"]),
)
# What is drawn must not depend on how far the tasks have come: an index is taken modulo the number that there is.
INDEXES = st.integers(0, 99)


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler from another thread than that of its event loop."""

    backend = "asyncio"
    use_uvloop = False

    # ---- before and after ----

    @initialize(
        max_concurrency=st.sampled_from([None, 1, 2]),
        max_pending=st.sampled_from([None, None, 4]),
        max_threads=st.sampled_from([1, 2]),
        drains=st.booleans(),
        leap=st.sampled_from([1.0, GRACE_PERIOD + 2]),
        first=st.lists(PLANS, min_size=1, max_size=4),
    )
    def enter(
        self,
        max_concurrency: int | None,
        max_pending: int | None,
        max_threads: int,
        drains: bool,
        leap: float,
        first: list[Plan],
    ) -> None:
        self.workers = Workers()
        options = {"use_uvloop": True} if self.use_uvloop else {}
        self.portal_manager = anyio.from_thread.start_blocking_portal(self.backend, options)
        self.portal = self.portal_manager.__enter__()
        self.clock = VirtualClock(auto=False)
        self.drains, self.leap = drains, leap
        self.closing: list[Any] = []
        self.checked = CheckedScheduler()
        self.checked.set_up(max_concurrency, max_pending, max_threads, clock=self.clock)
        self.on_loop(self.checked.make_gates)
        self.portal.call(self.checked.scheduler.start)
        self.schedule(first)

    def teardown(self) -> None:
        if not hasattr(self, "checked"):
            return
        checked = self.checked
        try:
            if self.drains:
                self.drain()
            if not self.closing:
                self.schedule([Plan("wait_at_gate", shield=True)])  # as long as it may
            self.close()
            self.close()
            checked.leave_threads.set()
            self.clock.advance(self.leap)
            # No further: when the two bounds are over it has to end, whatever else happens.
            while not self.closing[0].done() and not checked.closed_for(GRACE_PERIOD + SHIELD_TIMEOUT):
                self.clock.advance(1)
                self.rest()
            reports = [closing.result(timeout=10) for closing in self.closing]
            assert all(report is reports[0] for report in reports)
            self.rest()
            checked.check_the_end(reports[0])
            for call in (self.schedule_late, lambda: self.on_loop(self.schedule_late)):
                with pytest.raises(SchedulerClosedError):
                    call()
            for thread in self.workers.alive():
                thread.join(10)
            assert self.workers.alive() == []
        finally:
            checked.tear_down()
            self.clock.advance(1000)  # the event loop has to end, also when shutdown has not kept its bounds
            self.portal_manager.__exit__(None, None, None)

    def drain(self) -> None:
        """Take everything out of the way: each task has to end by itself."""
        self.on_loop(self.checked.remove_obstacles)

        def all_have_ended() -> bool:
            self.clock.advance(5)
            self.rest()
            return all(task.state.finished for task in self.checked.tasks)

        self.eventually(all_have_ended, "a task does not end although nothing is in its way")
        self.checked.check_all_ended_by_themselves()

    def schedule_late(self) -> None:
        self.checked.scheduler.schedule(self.checked.succeed, None)

    # ---- steps ----

    async def take_turns(self) -> None:
        # anyio.wait_all_tasks_blocked() would look every tenth of a second on uvloop.
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    def on_loop(self, func: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return func()

        return self.portal.call(call)

    @rule(plans=st.lists(PLANS, min_size=1, max_size=4))
    def schedule(self, plans: list[Plan]) -> None:
        self.on_loop(lambda: self.carry_out(*plans))

    @rule(plans=st.lists(PLANS, min_size=1, max_size=4))
    def schedule_in_a_thread(self, plans: list[Plan]) -> None:
        self.carry_out(*plans)

    @rule(plan=PLANS, number=st.integers(2, 6))
    def schedule_several(self, plan: Plan, number: int) -> None:
        self.on_loop(lambda: self.carry_out(*[plan] * number))

    def carry_out(self, *plans: Plan) -> None:
        for plan in plans:
            task = self.checked.carry_out(plan)
            if task is not None and plan.cancel is not None and threading.get_ident() == self.checked.loop_thread:
                # The event loop has no chance to start it, also where another thread is the one to cancel it.
                task.cancel() if plan.cancel == "here" else in_thread(task.cancel)
                self.checked.cancelled.add(task.id)
                self.checked.cancelled_unstarted.add(task.id)

    @rule(index=st.integers(0, 2), how=st.sampled_from(["success", "error", "discard"]), thread=st.booleans())
    def end_phase(self, index: int, how: Any, thread: bool) -> None:
        def end() -> None:
            self.checked.end_phase(index, how)

        end() if thread else self.on_loop(end)

    @rule(index=INDEXES, thread=st.booleans())
    def cancel(self, index: int, thread: bool) -> None:
        def cancel() -> None:
            self.checked.cancel(self.checked.tasks[index % len(self.checked.tasks)])

        cancel() if thread else self.on_loop(cancel)

    @rule(index=INDEXES, thread=st.booleans())
    def release(self, index: int, thread: bool) -> None:
        def release() -> None:
            self.checked.release(index)

        release() if thread else self.on_loop(release)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 10.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def open_gate(self) -> None:
        self.on_loop(self.checked.open_gate)

    @rule()
    def rest(self) -> None:
        self.portal.call(self.take_turns)
        self.eventually(self.checked.few_enough_wait, "more tasks wait than may")

    @precondition(lambda self: not self.drains)
    @rule()
    def close(self) -> None:
        if not self.closing:
            self.checked.closing_since = self.clock.now()
        self.closing.append(self.portal.start_task_soon(self.checked.scheduler.aclose))
        self.eventually(self.checked.scheduler.stopping.is_set, "shutdown does not begin")

    # ---- promises ----

    def eventually(self, condition: Callable[[], bool], otherwise: str) -> None:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + 10, otherwise
            time.sleep(0.001)

    @invariant()
    def numbers_add_up(self) -> None:
        if hasattr(self, "checked"):
            self.checked.check_numbers()

    @invariant()
    def limits_hold(self) -> None:
        if hasattr(self, "checked"):
            self.on_loop(self.checked.check_limits)

    @invariant()
    def nothing_went_wrong(self) -> None:
        if hasattr(self, "checked"):
            self.checked.check_nothing_went_wrong()


class UvloopSchedulerMachine(SchedulerMachine):
    use_uvloop = True


class TrioSchedulerMachine(SchedulerMachine):
    backend = "trio"
