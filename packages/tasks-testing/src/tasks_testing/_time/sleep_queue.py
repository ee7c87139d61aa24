"""Time that stands still until it is moved, and those who sleep in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

import anyio
from tasks_core import Task, TaskState, current_task

from .live_tasks import LiveTasks
from .monitor import Monitor, Steps, Wait, Wakeup

# Turns of the event loop in which nothing may happen before time jumps by itself: whoever waits for a task that has
# just ended gets to see the time at which it ended.
_QUIET_TURNS = 10
# Real seconds that a task with a timeout on this clock is given to get on before the timeout is brought about.
_PATIENCE = 0.1


@dataclass(order=True)
class Sleeper:
    """Somebody in `SleepQueue.sleep_until()`."""

    deadline: float
    number: int
    wakeup: Wakeup = field(compare=False)
    task: Task[Any] | None = field(compare=False)
    awake: bool = field(compare=False, default=False)


class SleepQueue:
    """
    A clock that is moved by hand, or moves by itself as far as `auto_until` whenever no task is live.

    The sleeper that is due first does the jump. It is the only one to be woken by what happens to tasks, so that many
    sleepers cost no more than one.
    """

    def __init__(self, monitor: Monitor, live: LiveTasks, start: float = 0.0) -> None:
        self._monitor = monitor
        self._live = live
        self._now = start
        self._sleepers: list[Sleeper] = []
        self._next_number = count().__next__
        self._timed: Counter[int] = Counter()
        self._parked: dict[int, Sleeper] = {}
        self._ending: dict[int, Callable[[Task[Any]], None]] = {}
        self.auto_until: float = -inf

    def now(self) -> float:
        return self._now

    async def sleep_until(self, deadline: float) -> None:
        await anyio.lowlevel.checkpoint()
        if deadline <= self._now:
            return
        with self._sleeping(deadline) as sleeper:
            while not sleeper.awake:
                await self._jump_or_wait(sleeper)

    def next_deadline(self) -> float:
        """Return when the next sleeper is due; `inf` if nobody sleeps, or for ever."""
        with self._monitor.lock:
            while self._sleepers and self._sleepers[0].awake:
                heappop(self._sleepers)
            return self._sleepers[0].deadline if self._sleepers else inf

    def move_to(self, time: float) -> None:
        """Set the time, and wake who is due; from any thread. Does not wait for what they do then."""
        with self._monitor.lock:
            self._now = max(self._now, time)
            while self.next_deadline() <= self._now:
                self._wake(self._sleepers[0])
        self._monitor.changed()

    def nudge(self) -> None:
        """Let the first sleeper see whether it is time to jump."""
        with self._monitor.lock:
            if self._now < self.auto_until and not self._live and self.next_deadline() < inf:
                self._sleepers[0].wakeup.set()

    # ---- the tasks that sleep ----

    def parked(self) -> list[Task[Any]]:
        """Return the tasks that wait for the time of their next attempt, in the order of that time."""
        with self._monitor.lock:
            return [sleeper.task for sleeper in sorted(self._parked.values()) if sleeper.task is not None]

    def due_at(self, task: Task[Any]) -> float | None:
        """Return when a parked task is due; `None` if it is not parked."""
        with self._monitor.lock:
            sleeper = self._parked.get(task.id)
            return None if sleeper is None else sleeper.deadline

    def finish(self, tasks: Iterable[Task[Any]], until: float, too_late: Callable[[Task[Any]], None]) -> None:
        """
        Let time jump by itself up to *until*, when some tasks have to have ended.

        Those that would sleep for longer are cancelled, after a call of *too_late*.
        """
        with self._monitor.lock:
            self.auto_until = until
            self._ending.update({task.id: too_late for task in tasks})
            parked = list(self._parked.values())
        for sleeper in parked:
            self._cancel_if_too_late(sleeper)
        self.nudge()

    def finished(self, task: Task[Any]) -> None:
        """Note that a task has ended."""
        with self._monitor.lock:
            if task.id in self._ending:
                del self._ending[task.id]
                if not self._ending:
                    self.auto_until = -inf
        self.nudge()

    def _cancel_if_too_late(self, sleeper: Sleeper) -> None:
        task = sleeper.task
        if task is not None and task.id in self._ending and sleeper.deadline > self.auto_until:
            self._ending[task.id](task)
            task.cancel()

    # ---- moving on step by step ----

    def advancing(self, seconds: float, timeout: float | None, stuck: Callable[[], Exception]) -> Steps[None]:
        """
        Move on by *seconds*, with a stop at each deadline on the way, where tasks do what they have to do at that time.

        Raises:
            Exception: what *stuck* returns, when tasks do not come to rest within *timeout* seconds of real time.
        """
        target = self._now + seconds
        yield from self._settling(timeout, stuck)
        while (deadline := self.next_deadline()) <= target:
            self.move_to(deadline)
            yield from self._settling(timeout, stuck)
        self.move_to(target)

    def _settling(self, timeout: float | None, stuck: Callable[[], Exception]) -> Steps[None]:
        """Wait until every live task waits for this clock, if only for its timeout."""
        while self._live:
            if not (yield Wait(self._only_timed, timeout)):
                raise stuck()
            version = self._monitor.version
            if self._live and not (yield Wait(lambda seen=version: self._monitor.version != seen, _PATIENCE)):  # type: ignore[misc]
                return

    def _only_timed(self) -> bool:
        return all(self._timed[task.id] for task in self._live)

    # ---- of one sleeper ----

    @contextmanager
    def _sleeping(self, deadline: float) -> Iterator[Sleeper]:
        sleeper = Sleeper(deadline, self._next_number(), Wakeup(), current_task())
        with self._monitor.lock:
            heappush(self._sleepers, sleeper)
            self._lie_down(sleeper)
        self._monitor.changed()
        self._cancel_if_too_late(sleeper)
        self.nudge()
        try:
            yield sleeper
        finally:
            self._wake(sleeper)
            self.nudge()

    def _lie_down(self, sleeper: Sleeper) -> None:
        task = sleeper.task
        if task is None:
            return
        if task.state is TaskState.RUNNING:
            self._timed[task.id] += 1  # the timer of an attempt, or the function itself: time is one thing it waits for
        else:
            self._parked[task.id] = sleeper
            self._live.rest(task)

    def _wake(self, sleeper: Sleeper) -> None:
        with self._monitor.lock:
            if sleeper.awake:
                return
            sleeper.awake = True
            sleeper.wakeup.set()
            if sleeper.task is not None:
                self._get_up(sleeper, sleeper.task)

    def _get_up(self, sleeper: Sleeper, task: Task[Any]) -> None:
        if self._parked.get(task.id) is sleeper:
            del self._parked[task.id]
            self._live.wake(task)
        else:
            self._timed -= Counter([task.id])  # which forgets a task that is left with none

    async def _jump_or_wait(self, sleeper: Sleeper) -> None:
        with self._monitor.lock:
            version = self._monitor.version if self._may_jump(sleeper) else None
        if version is None:
            await sleeper.wakeup.wait()
            sleeper.wakeup = Wakeup()  # before the caller looks: what happens from here on sets the new one
        else:
            await self._jump_if_quiet(sleeper, version)

    def _may_jump(self, sleeper: Sleeper) -> bool:
        with self._monitor.lock:
            first = sleeper.deadline == self.next_deadline() < inf
            return first and sleeper is self._sleepers[0] and not self._live and sleeper.deadline <= self.auto_until

    async def _jump_if_quiet(self, sleeper: Sleeper, version: int) -> None:
        for turns_left in reversed(range(_QUIET_TURNS)):
            await anyio.lowlevel.checkpoint()
            with self._monitor.lock:
                if self._monitor.version != version:
                    return
                if not turns_left:
                    self.move_to(sleeper.deadline)
