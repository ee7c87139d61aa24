"""Virtual time for schedulers, without pytest."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from tasks_core import Outcome, Subscription, Task, TaskObserver, TaskPhase, observe

from .live_tasks import LiveTasks
from .monitor import Monitor
from .sleep_queue import SleepQueue

T = TypeVar("T")

# Real seconds that `aadvance()` waits for tasks at one stop.
_TIMEOUT = 5.0


class VirtualClock:
    """
    A clock that does not go by itself: an hour of retries takes milliseconds. Implements `tasks_core.Clock`.

    ```python
    async with TaskScheduler(clock=VirtualClock()) as scheduler:
        task = scheduler.task(on_error=retry(attempts=10, backoff=60)).schedule(fetch)
        await task
    ```

    With *auto*, time jumps to the next moment that somebody waits for as soon as no task is live: none runs, in any
    scheduler of the process, and none is about to. A task that waits for something else than the clock is live, so a
    timeout never comes early by itself. Without *auto*, time goes on when `advance()` or `aadvance()` says so.

    Only what waits for the clock is concerned: delays, the pauses of retries, timeouts, and the bounds of shutdown.
    `anyio.sleep()` in a task takes the time it takes.

    One clock may serve several schedulers, on several event loops.

    Args:
        start: The time at which it begins.

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
        """Return the virtual time in seconds; from any thread."""
        return self._queue.now()

    async def sleep_until(self, deadline: float) -> None:
        """Return when the virtual time is *deadline* or more; at once (but after a checkpoint) if it is already."""
        await self._queue.sleep_until(deadline)

    def advance(self, seconds: float) -> None:
        """
        Move the time on by *seconds* in one leap, from any thread.

        Whoever is due then is woken. The call does not wait for what they do, and what they wait for next counts from
        the new time; `aadvance()` goes step by step.
        """
        self._queue.move_to(self._queue.now() + seconds)

    async def aadvance(self, seconds: float) -> None:
        """
        Move the time on by *seconds*, from one moment that somebody waits for to the next.

        At each stop the tasks get on until every one of them has ended or waits for the clock again.

        Raises:
            TimeoutError: tasks still run after 5 seconds of real time, and no timeout bounds them.
        """
        await self._monitor.arun(self._queue.advancing(seconds, _TIMEOUT, self._stuck))

    def _note(self, change: Callable[[LiveTasks, T], None], subject: T) -> None:
        with self._monitor.lock:
            change(self._live, subject)
        self._monitor.changed()
        self._queue.nudge()

    def _stuck(self) -> Exception:
        tasks = ", ".join(f"{task.name!r} (scheduled at {task.where})" for task in self._live)
        return TimeoutError(
            f"aadvance() waited {_TIMEOUT:g} s of real time for tasks that still run: {tasks}. "
            "Use advance() if they are to run on while time passes"
        )

    def __repr__(self) -> str:
        return f"<VirtualClock {self.now():g}>"


class _Watcher(TaskObserver):
    """
    Keeps the books about live tasks, as long as there is a clock that wants to know.

    It holds neither the clock nor the books, in which tasks are that may hold the clock, and goes when it finds the
    clock gone. A finalizer could not close the subscription: it runs in the middle of anything, also of `observe()`.
    """

    subscription: Subscription

    def __init__(self, clock: weakref.ref[VirtualClock]) -> None:
        self._clock = clock

    def task_scheduled(self, task: Task[Any]) -> None:
        self._note(LiveTasks.add, task)

    def task_finished(self, task: Task[Any]) -> None:
        self._note(LiveTasks.remove, task)

    def phase_opened(self, phase: TaskPhase, outcome: Outcome) -> None:
        self._note(LiveTasks.open, phase)

    def phase_discarded(self, phase: TaskPhase, reason: str) -> None:
        self._note(LiveTasks.open, phase)

    def _note(self, change: Callable[[LiveTasks, T], None], subject: T) -> None:
        clock = self._clock()
        if clock is None:
            self.subscription.close()
        else:
            clock._note(change, subject)
