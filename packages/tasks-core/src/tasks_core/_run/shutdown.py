"""The end of a scheduler, in five steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

import anyio

from tasks_core._loop.awaits import may_run_in_a_thread
from tasks_core._loop.backend import Interruption
from tasks_core._observer import hooks, notify
from tasks_core._support.log import logger
from tasks_core._task import Task, TaskState

from .ledger import HELD, LossReport, LostTask, describe_loss, title, unstarted
from .runner import DELAY_TOO_LONG, GRACE_OVER, SHIELD_OVER, Runner, Stage

# Seconds between two lines that name what is being waited for, and how many tasks such a line names.
_LOG_EVERY = 5.0
_NAME_AT_MOST = 10
# Seconds that cancelled coroutines have to clean up when there is no shield_timeout, and no shielded task either.
_CLEAN_UP = 5.0
# The same, once everything is over: the excess over the two bounds that shutdown may take.
_LAST_CLEAN_UP = 0.5

LOOP_STOPPED = "the event loop was stopped"


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """How the tasks ended that were not finished when shutdown began. `str(report)` is a summary in one line."""

    duration: float
    """Seconds."""
    succeeded: int
    """Tasks that succeeded during shutdown."""
    failed: int
    """Tasks that failed during shutdown."""
    lost: tuple[LostTask, ...]
    """Every task that shutdown cancelled or discarded, in the order in which that happened."""
    abandoned: tuple[LostTask, ...]
    """Tasks whose code still runs although they have ended: in threads, or in coroutines that ignore cancellation."""

    @property
    def cancelled(self) -> tuple[LostTask, ...]:
        """Those of `lost` that had started."""
        return tuple(task for task in self.lost if task.state is TaskState.CANCELLED)

    @property
    def discarded(self) -> tuple[LostTask, ...]:
        """Those of `lost` that had not."""
        return tuple(task for task in self.lost if task.state is TaskState.DISCARDED)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost and nothing was left behind."""
        return not self.lost and not self.abandoned

    def __str__(self) -> str:
        counts = {
            "succeeded": self.succeeded,
            "failed": self.failed,
            "cancelled": len(self.cancelled),
            "discarded": len(self.discarded),
            "abandoned": len(self.abandoned),
        }
        summary = ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "nothing to wait for"
        return f"Tasks drained in {self.duration:.2f} s: {summary}"


class Shutdown:
    """Drains a runner: `run()` once, `hurry()` at any time."""

    __slots__ = (
        "_began",
        "_grace_period",
        "_hurried",
        "_losses",
        "_runner",
        "_shield_timeout",
        "_totals",
        "_wait",
        "report",
    )

    def __init__(self, runner: Runner, grace_period: float, shield_timeout: float) -> None:
        self._runner = runner
        self._grace_period = grace_period
        self._shield_timeout = shield_timeout
        self._began = runner.now()
        self._totals = runner.ledger.statistics()
        self._losses = runner.ledger.losses = LossReport()
        self._hurried = False
        self._wait: Interruption | None = None
        self.report: ShutdownReport | None = None

    def hurry(self) -> None:
        """End the grace period now."""
        self._hurried = True
        if self._wait is not None and self._runner.stage is Stage.DRAINING:
            self._wait.cancel()

    async def run(self) -> None:
        """Take the five steps; never raises."""
        self._runner.stage = Stage.DRAINING
        try:
            try:
                await self._drain()
            except anyio.get_cancelled_exc_class():
                self._end(LOOP_STOPPED)
            except BaseException as error:
                logger.exception("A step of the shutdown raised; what still runs is cancelled")
                self._end("a step of the shutdown raised")
                if isinstance(error, KeyboardInterrupt):  # pragma: no branch  # all else is a fault of this package
                    self._runner.loop.interrupt(error)
            await self._clean_up()
        except anyio.get_cancelled_exc_class():
            pass  # trio: nothing that waits will be woken any more
        finally:
            try:
                self.finish()
            finally:
                await self._runner.close()

    async def _drain(self) -> None:
        runner = self._runner
        # First, because they may feed the scheduler.
        runner.services.stop_due(self._began, self._began, self._began if self._hurried else inf)
        if runner.paused:
            self._stop(_is_any, "the scheduler was closed before it was resumed")
        self._stop(_is_held, "an observer held it when shutdown began")
        if hooks.shutdown_started:
            notify(hooks.shutdown_started, runner.ledger.live(), 0.0 if self._hurried else self._grace_period)
        runner.time_left = self._time_left
        self._settle_dead_tasks()
        self._stop(self._is_delayed_for_too_long, DELAY_TOO_LONG)
        await self._stop_services()
        await self._wait_until(self._began + self._grace_period)

        runner.stage = Stage.SHIELDED_ONLY
        # Before the next line, which may take its time; and from when the grace period was over, seen late or not.
        bound = min(runner.now(), self._began + self._grace_period) + self._shield_timeout
        self._stop(_is_not_shielded, GRACE_OVER)
        await self._wait_for_shielded(bound)
        self._end(SHIELD_OVER)

    async def _stop_services(self) -> None:
        """Wait for services that have asked for time, and for those that clean up."""
        runner, last = self._runner, self._began + self._grace_period
        while runner.services.all():
            now = runner.now()
            again = runner.services.stop_due(self._began, now, now if self._hurried else last)
            if now >= last or self._hurried:
                return  # those that clean up have the rest of the shutdown
            with runner.loop.deadline(runner.steady_clock, min(again, last)) as self._wait:
                await runner.services.wait_for_end()

    def _time_left(self, task: Task[Any]) -> float:
        shielded = self._shield_timeout if task.config.shielded else 0.0
        return self._began + self._grace_period + shielded - self._runner.now()

    def _is_delayed_for_too_long(self, task: Task[Any]) -> bool:
        if task.id not in self._runner.delayed:
            return False
        clock, due = self._runner.delayed[task.id]
        try:
            left = due if clock is None else due - clock.now()
        except Exception:  # the clock is broken, which the task itself will notice
            return False
        return left > self._time_left(task)

    async def _wait_for_shielded(self, bound: float) -> None:
        runner = self._runner
        while runner.ledger and runner.now() < bound:
            live = runner.ledger.live()
            waiting = [task for task in live if task.config.shielded and not self._is_stuck(task)]
            if not waiting:
                # What is left are coroutines that clean up after their cancellation, and tasks that wait for something
                # that no task can do any more.
                self._stop(self._is_stuck, "its phase had not opened when everything else had ended")
                bound = min(bound, runner.now() + _CLEAN_UP)
            await self._wait_until(bound, few=len(live) - len(waiting) if waiting else 0)

    def _is_stuck(self, task: Task[Any]) -> bool:
        """Return whether the task waits without a bound: for a phase or an observer that may never let it start."""
        return self._shield_timeout == inf and _has_not_begun(task)

    def _end(self, reason: str) -> None:
        self._runner.stage = Stage.ENDING
        self._stop(_is_any, reason)

    async def _clean_up(self) -> None:
        # By real time: what ignores its cancellation may hold any other clock.
        with anyio.move_on_after(_LAST_CLEAN_UP):
            await self._runner.ledger.wait_at_most(0)
            await self._runner.services.wait_for_end(all_of_them=True)
            await self._runner.attempts.wait_no_stray()

    async def _wait_until(self, deadline: float, *, few: int = 0) -> None:
        """
        Return at *deadline*, or earlier: when no more than *few* tasks are alive, or the grace period is cut short.

        Meanwhile, log which tasks are being waited for.
        """
        runner = self._runner
        while len(runner.ledger) > few and not (self._hurried and runner.stage is Stage.DRAINING):
            self._settle_dead_tasks()
            now = runner.now()
            if now >= deadline:
                return
            with runner.loop.deadline(runner.steady_clock, min(deadline, now + _LOG_EVERY)) as self._wait:
                await runner.ledger.wait_at_most(few)
            waited = self._wait.cancel_called and len(runner.ledger) > few
            if waited and runner.now() < deadline and not self._hurried:
                self._log_wait(deadline)

    def _log_wait(self, deadline: float) -> None:
        live = self._runner.ledger.live()
        named = ", ".join(str(describe_loss(task, task.state, "")) for task in live[:_NAME_AT_MOST])
        more = f", and {len(live) - _NAME_AT_MOST} more" if len(live) > _NAME_AT_MOST else ""
        left = "" if deadline == inf else f" for at most {deadline - self._runner.now():.1f} s"
        noun = "task" if len(live) == 1 else "tasks"
        logger.info("Shutdown waits%s for %d %s: %s%s", left, len(live), noun, named, more)

    def _stop(self, condition: Callable[[Task[Any]], bool], reason: str) -> None:
        for task in self._runner.ledger.live():
            if condition(task):
                self._runner.stop(task, reason)

    def _settle_dead_tasks(self) -> None:
        """
        End the tasks whose coroutine has ended without ending them.

        Such a coroutine was cancelled through the event loop before its first step.
        """
        for task in self._runner.ledger.live():
            if task._native is None or not task._native.done():
                continue
            if task._state.finished:
                self._runner.ledger.settle(task, task._state, task._reason)
            else:
                self._runner.stop(task, "it was cancelled through the event loop before it started")

    def finish(self) -> None:
        """Close the ledger. The tasks that are not finished now are abandoned."""
        runner, ledger = self._runner, self._runner.ledger
        ledger.close()
        runner.stage = Stage.CLOSED
        abandoned = [*runner.attempts.stray.values(), *_still_running(runner.attempts.left.values())]
        strays = tuple(abandoned)
        for task in ledger.live():
            reason = "it ignored its cancellation and was abandoned"
            if task._state.finished:
                self._give_up_handler(task)
            elif task.state is TaskState.RUNNING:
                abandoned.append(describe_loss(task, TaskState.CANCELLED, reason))
                ledger.record_loss(task, TaskState.CANCELLED, reason)
            else:
                ledger.record_loss(task, unstarted(task), "it was scheduled when the scheduler had closed")
        runner.attempts.close()
        runner.services.close()
        totals = ledger.statistics()
        self.report = ShutdownReport(
            duration=runner.now() - self._began,
            succeeded=totals.succeeded - self._totals.succeeded,
            failed=totals.failed - self._totals.failed,
            lost=tuple(self._losses.tasks),
            abandoned=tuple(abandoned),
        )
        self._losses.log_rest()
        for stray in strays:
            logger.warning("Task %s was abandoned: %s", stray, stray.reason)
        logger.log(self._level_of(self.report), "%s%s", self._runner.report_prefix, self.report)

    def _level_of(self, report: ShutdownReport) -> int:
        if not report.clean:
            return logging.WARNING
        if self._runner.brief and not report.succeeded and not report.failed:
            return logging.DEBUG
        return logging.INFO

    def _give_up_handler(self, task: Task[Any]) -> None:
        native = task._native
        assert native is not None
        logger.warning("on_end of %s had no more time at shutdown and is cancelled", title(task))
        self._runner.ledger.settle(task, task._state, task._reason)
        native.cancel()


def _still_running(left: Iterable[tuple[LostTask, Callable[..., object]]]) -> list[LostTask]:
    return [lost for lost, func in left if may_run_in_a_thread(func)]


def _is_any(_task: Task[Any]) -> bool:
    return True


def _is_held(task: Task[Any]) -> bool:
    return bool(task._tickets & HELD)


def _is_not_shielded(task: Task[Any]) -> bool:
    return not task.config.shielded


def _has_not_begun(task: Task[Any]) -> bool:
    return _is_held(task) or (task.phase is not None and not task.phase.opened)
