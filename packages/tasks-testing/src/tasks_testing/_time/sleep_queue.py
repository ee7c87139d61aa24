"""Virtual time: a clock that stands still until it is moved, and the coroutines that sleep by it."""

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
from tasks_core import Service, Task, TaskState, current_task
from tasks_core.frameworks import current
from tasks_core.testing import service_clock

from .live_tasks import LiveTasks
from .monitor import Monitor, Steps, Wait, Wakeup

# Turns of the event loop without any event before time jumps by itself. They let code that awaits a task read the time
# at which the task ended. No task depends on them: time never jumps while a task is live.
_QUIET_TURNS = 10
# Midnight of the first of January, in seconds since 1970. A Saturday.
_YEAR_2000 = 946_684_800.0


@dataclass(order=True)
class Sleeper:
    """A coroutine in `SleepQueue.sleep_until()`."""

    deadline: float
    number: int
    wakeup: Wakeup = field(compare=False)
    task: Task[Any] | None = field(compare=False)
    rests: bool = field(compare=False)
    """Whether the task rests while the coroutine sleeps. False for the timer of a timeout: its task runs meanwhile."""
    service: Service | None = field(compare=False, default=None)
    """The service that sleeps. Time does not jump for its sake."""
    awake: bool = field(compare=False, default=False)


class SleepQueue:
    """
    A clock that `move_to()` moves, and that moves itself up to `auto_until` while no task is live.

    No decision is made by real time: whether a task is live is known from the events of the task. The sleeper with the
    earliest deadline makes the jump. Events wake that sleeper only, so many sleepers cost as much as one.
    """

    def __init__(self, monitor: Monitor, live: LiveTasks, start: float = 0.0) -> None:
        self._monitor = monitor
        self._live = live
        self._now = start
        self._sleepers: list[Sleeper] = []
        self._next_number = count().__next__
        self._coroutines: dict[int, int] = {}
        self._timers: Counter[int] = Counter()
        self._parked: dict[int, Sleeper] = {}
        self._stirring: set[Service] = set()  # timers of periodic tasks that start or have woken, until they sleep
        self._waited_for = 0  # Invariant: how many sleepers belong to no service
        self._ending: dict[int, Callable[[Task[Any]], None]] = {}
        self.auto_until: float = -inf

    def now(self) -> float:
        return self._now

    def time(self) -> float:
        """Return the wall-clock time: the clock was 0 at the beginning of the year 2000, in UTC."""
        return _YEAR_2000 + self._now

    async def sleep_until(self, deadline: float) -> None:
        await anyio.lowlevel.checkpoint()
        if deadline <= self._now:
            return
        with self._sleeping(deadline) as sleeper:
            while not sleeper.awake:
                await self._jump_or_wait(sleeper)

    def next_deadline(self) -> float:
        """Return the deadline of the sleeper that wakes first; `inf` if there is none."""
        with self._monitor.lock:
            while self._sleepers and self._sleepers[0].awake:
                heappop(self._sleepers)
            return self._sleepers[0].deadline if self._sleepers else inf

    def move_to(self, time: float) -> None:
        """Set the time and wake the sleepers that are due, from any thread. Does not wait for what they do then."""
        with self._monitor.lock:
            self._now = max(self._now, time)
            while self.next_deadline() <= self._now:
                service = self._sleepers[0].service
                if service is not None and service.periodic is not None:
                    self._stirring.add(service)
                self._wake(self._sleepers[0])
        self._monitor.changed()

    def nudge(self) -> None:
        """Let the first sleeper check whether time may jump."""
        with self._monitor.lock:
            if self._now < self.auto_until and not self._live and self._waited_for and self.next_deadline() < inf:
                self._sleepers[0].wakeup.set()

    # ---- the tasks that sleep ----

    def started(self, task: Task[Any]) -> None:
        """Record the coroutine that runs an attempt of the task; called in that coroutine."""
        with self._monitor.lock:
            self._coroutines[task.id] = anyio.get_current_task().id

    def parked(self) -> list[Task[Any]]:
        """Return the tasks that rest until the time moves, in the order of their deadlines."""
        with self._monitor.lock:
            return [sleeper.task for sleeper in sorted(self._parked.values()) if sleeper.task is not None]

    def due_at(self, task: Task[Any]) -> float | None:
        """Return the deadline of a parked task; `None` if the task is not parked."""
        with self._monitor.lock:
            sleeper = self._parked.get(task.id)
            return None if sleeper is None else sleeper.deadline

    def finish(self, tasks: Iterable[Task[Any]], until: float, too_late: Callable[[Task[Any]], None]) -> None:
        """
        Let time jump by itself, no further than *until*, while *tasks* end.

        A task whose next attempt is due later than *until* is cancelled, after a call of *too_late*.
        """
        with self._monitor.lock:
            self.auto_until = until
            self._ending.update({task.id: too_late for task in tasks})
            parked = list(self._parked.values())
        for sleeper in parked:
            self._cancel_if_too_late(sleeper)
        self.nudge()

    def finished(self, task: Task[Any]) -> None:
        """Record that a task has ended."""
        with self._monitor.lock:
            self._coroutines.pop(task.id, None)
            if task.id in self._ending:
                del self._ending[task.id]
                if not self._ending:
                    self.auto_until = -inf
        self.nudge()

    def service_starting(self, service: Service) -> None:
        """Record that a service is going to start. Time waits until the timer of a periodic task sleeps."""
        if service.periodic is not None:
            with self._monitor.lock:
                self._stirring.add(service)

    def service_started(self, service: Service, clock: object) -> None:
        """Record that a service begins. Time does not wait for it if it sleeps by another clock than *clock*."""
        if service_clock(service) is not clock:
            self.service_ended(service)

    def service_ended(self, service: Service) -> None:
        """Record that a service has ended: as a timer that starts or has woken, it starts no run."""
        with self._monitor.lock:
            stirred = service in self._stirring
            self._stirring.discard(service)
        if stirred:
            self._monitor.changed()
            self.nudge()

    def _cancel_if_too_late(self, sleeper: Sleeper) -> None:
        task = sleeper.task
        if (
            task is not None
            and sleeper.rests
            and task.state is not TaskState.RUNNING
            and task.id in self._ending
            and sleeper.deadline > self.auto_until
        ):
            self._ending[task.id](task)
            task.cancel()

    # ---- moving on step by step ----

    def advancing(
        self, seconds: float, timeout: float | None, stuck: Callable[[], Exception], *, while_running: bool
    ) -> Steps[None]:
        """
        Move the time by *seconds*, with a stop at each deadline on the way until the tasks rest or have ended.

        With *while_running*, a running task does not hold up the time if it has a timeout on this clock.

        Raises:
            Exception: What *stuck* returns, when tasks do not come to rest within *timeout* seconds of real time.
        """
        target = self._now + seconds
        held_up = self._runs_without_timer if while_running else self._runs

        def moved() -> bool:  # under the lock of the monitor: no task becomes live between the check and the move
            if held_up():
                return False
            self.move_to(min(self.next_deadline(), target))
            return True

        reached = yield Wait(moved, timeout)
        while reached and self._now < target:
            reached = yield Wait(moved, timeout)
        if not (reached and (yield Wait(lambda: not held_up(), timeout))):
            raise stuck()

    def _stirs(self) -> bool:
        """Return whether the timer of a periodic task is about to start a run."""
        return bool(self._stirring)

    def _runs(self) -> bool:
        return bool(self._live) or self._stirs()

    def _runs_without_timer(self) -> bool:
        return self._stirs() or not all(self._timers[task.id] for task in self._live)

    # ---- of one sleeper ----

    @contextmanager
    def _sleeping(self, deadline: float) -> Iterator[Sleeper]:
        task = current_task()
        caller = current()
        sleeper = Sleeper(
            deadline,
            self._next_number(),
            Wakeup(),
            task,
            task is not None and self._rests(task),
            caller if isinstance(caller, Service) else None,
        )
        with self._monitor.lock:
            self._waited_for += sleeper.service is None
            if sleeper.service is not None:
                self._stirring.discard(sleeper.service)
            heappush(self._sleepers, sleeper)
            self._park(sleeper)
        self._monitor.changed()
        self._cancel_if_too_late(sleeper)
        self.nudge()
        try:
            yield sleeper
        finally:
            self._wake(sleeper)
            self.nudge()

    def _rests(self, task: Task[Any]) -> bool:
        """
        Return whether the task does nothing while the calling coroutine sleeps.

        True between attempts, and for the coroutine of the attempt itself. Any other coroutine in the context of the
        task is the timer of its timeout, or one that the function started: the function goes on meanwhile.
        """
        return task.state is not TaskState.RUNNING or self._coroutines.get(task.id) == anyio.get_current_task().id

    def _park(self, sleeper: Sleeper) -> None:
        if sleeper.task is None:
            return
        if sleeper.rests:
            self._parked[sleeper.task.id] = sleeper
            self._live.rest(sleeper.task)
        else:
            self._timers[sleeper.task.id] += 1

    def _wake(self, sleeper: Sleeper) -> None:
        with self._monitor.lock:
            if sleeper.awake:
                return
            sleeper.awake = True
            self._waited_for -= sleeper.service is None
            sleeper.wakeup.set()
            if sleeper.task is not None:
                self._unpark(sleeper, sleeper.task)

    def _unpark(self, sleeper: Sleeper, task: Task[Any]) -> None:
        if not sleeper.rests:
            self._timers -= Counter([task.id])  # a subtraction drops the keys that reach zero
        else:
            del self._parked[task.id]
            self._live.wake(task)

    async def _jump_or_wait(self, sleeper: Sleeper) -> None:
        with self._monitor.lock:
            version = self._monitor.version if self._may_jump(sleeper) else None
        if version is None:
            await sleeper.wakeup.wait()
            sleeper.wakeup = Wakeup()  # before the caller checks: every later event sets the new one
        else:
            await self._jump_if_quiet(sleeper, version)

    def _may_jump(self, sleeper: Sleeper) -> bool:
        with self._monitor.lock:
            first = sleeper.deadline == self.next_deadline() < inf
            quiet = not self._live and not self._stirs() and self._waited_for > 0
            return first and sleeper is self._sleepers[0] and quiet and sleeper.deadline <= self.auto_until

    async def _jump_if_quiet(self, sleeper: Sleeper, version: int) -> None:
        for turns_left in reversed(range(_QUIET_TURNS)):
            await anyio.lowlevel.checkpoint()
            with self._monitor.lock:
                if self._monitor.version != version:
                    return
                if not turns_left:
                    self.move_to(sleeper.deadline)
