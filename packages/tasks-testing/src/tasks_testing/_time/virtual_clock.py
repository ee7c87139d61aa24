"""Virtual time for a scheduler, without pytest."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import inf
from typing import Any

from tasks_core import Outcome, PhaseInfo, Service, Task, TaskObserver, observe
from tasks_core.types import Subscription

from tasks_testing import _refusals

from .live_tasks import LiveTasks
from .monitor import Monitor
from .sleep_queue import SleepQueue

# Seconds of real time that each wait of `aadvance()` may take.
_TIMEOUT = 5.0


class VirtualClock:
    """
    A clock that moves without real time: an hour of retries takes milliseconds. Implements `tasks_core.Clock`.

    ```python
    async with TaskScheduler(clock=VirtualClock()) as scheduler:
        task = scheduler.task(on_error=retry(attempts=10, backoff=60)).schedule(fetch)
        await task
    ```

    With *auto*, the time jumps to the next deadline as soon as no task is live: no task of any scheduler in the process
    runs, or is about to run. A task that waits for something else than the clock is live, however long that takes in
    real time, so a timeout never comes early. Without *auto*, only `advance()` and `aadvance()` move the time.

    The clock decides about delays, pauses before retries, timeouts, and the bounds of shutdown. `anyio.sleep()` in a
    task takes real time. A function may sleep by the clock itself, with `sleep_until()`; its task is not live
    meanwhile.

    One clock may serve several schedulers on several event loops.

    Args:
        start: The time in seconds at which the clock begins.

        auto: Whether time jumps by itself.
    """

    def __init__(self, *, start: float = 0.0, auto: bool = True) -> None:
        self._monitor = Monitor()
        self._live = LiveTasks()
        self._queue = SleepQueue(self._monitor, self._live, start)
        self._queue.auto_until = inf if auto else -inf
        watcher = _Watcher(weakref.ref(self))
        watcher.subscription = observe(watcher)

    def now(self) -> float:
        """Return the virtual time in seconds; any thread may call it."""
        return self._queue.now()

    def time(self) -> float:
        """Return the wall-clock time, as `time.time()`: the clock was 0 at the beginning of the year 2000, in UTC."""
        return self._queue.time()

    async def sleep_until(self, deadline: float) -> None:
        """Return when the virtual time is *deadline* or later; after one checkpoint if it is already."""
        await self._queue.sleep_until(deadline)

    def advance(self, seconds: float) -> None:
        """
        Move the time by *seconds* in one step, from any thread.

        Sleepers that are due wake up. The call does not wait for what they do next, and their next delays count from
        the new time. `aadvance()` stops at each deadline instead.
        """
        self._queue.move_to(self._queue.now() + seconds)

    async def aadvance(self, seconds: float, *, while_running: bool = False) -> None:
        """
        Move the time by *seconds*, with a stop at each deadline on the way.

        At each stop, and at the end, it waits until no task is live: each task has ended, or rests until the time
        moves.

        Args:
            seconds: The virtual seconds to move by.

            while_running: Whether time may pass while tasks run that have a `timeout`. This brings their timeouts
                about. Running tasks without a timeout are waited for all the same.

        Raises:
            TimeoutError: Tasks still run after 5 seconds of real time.
        """
        steps = self._queue.advancing(seconds, _TIMEOUT, self._stuck, while_running=while_running)
        await self._monitor.arun(steps)

    def _stuck(self) -> Exception:
        return TimeoutError(_refusals.clock_held_up(self._live, _TIMEOUT))

    def __repr__(self) -> str:
        return f"<VirtualClock {self.now():g}>"


class _Watcher(TaskObserver):
    """
    Updates the live tasks of a clock for as long as the clock exists.

    It must not keep the clock alive, nor the tasks, which may refer to the clock. It closes its subscription itself
    when an event finds the clock gone. A finalizer could not do that: it may run inside `observe()`, while the lock is
    held.
    """

    subscription: Subscription

    def __init__(self, clock: weakref.ref[VirtualClock]) -> None:
        self._clock = clock

    def task_scheduled(self, task: Task[Any]) -> None:
        self._update(lambda clock: clock._live.add(task))

    def task_started(self, task: Task[Any]) -> None:
        self._update(lambda clock: clock._queue.started(task))

    def task_finished(self, task: Task[Any]) -> None:
        def finish(clock: VirtualClock) -> None:
            clock._live.remove(task)
            clock._queue.finished(task)

        self._update(finish)

    def service_starting(self, service: Service) -> None:
        self._update(lambda clock: clock._queue.service_starting(service))

    def service_started(self, service: Service) -> None:
        self._update(lambda clock: clock._queue.service_started(service, clock))

    def service_ended(self, service: Service) -> None:
        self._update(lambda clock: clock._queue.service_ended(service))

    def phase_opened(self, phase: PhaseInfo, outcome: Outcome) -> None:
        self._update(lambda clock: clock._live.open(phase))

    def phase_discarded(self, phase: PhaseInfo, reason: str) -> None:
        self._update(lambda clock: clock._live.open(phase))

    def _update(self, change: Callable[[VirtualClock], None]) -> None:
        clock = self._clock()
        if clock is None:
            self.subscription.close()
            return
        with clock._monitor.lock:
            change(clock)
        clock._monitor.changed()
        clock._queue.nudge()
