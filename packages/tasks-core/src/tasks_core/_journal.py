"""What a task reports while it runs: its progress, and numbered events for its followers."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Protocol, Self

import anyio
import anyio.lowlevel

from ._support.jsontext import Json

if TYPE_CHECKING:
    from ._task import TaskState

MOST_EVENTS = 10_000
"""Events that are kept of one task; the oldest are dropped first."""
MOST_BYTES = 1024 * 1024
"""Bytes that the kept events of one task have as JSON."""
# Events in one update, so that a follower that is far behind does not take a copy of all of them.
_BATCH = 500


@dataclass(frozen=True, slots=True)
class EmittedEvent:
    """A value that a task has emitted."""

    number: int
    """1 for the first event of the task, and so on without a gap."""
    json: bytes
    """The value as JSON in one line."""

    @property
    def data(self) -> Json:
        """The value."""
        return json.loads(self.json)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class TaskUpdate:
    """What a follower of a task has not received yet."""

    events: tuple[EmittedEvent, ...]
    """The next events, in order."""
    missed: int
    """How many events before them were dropped, because the follower is further behind than events are kept."""
    after: int
    """The number of the last event that the follower has now: a new follower goes on with `task.follow(after)`."""
    progress: Json
    state: TaskState
    """The state of the task; in the last update, a terminal state."""


class Journal:
    """The events that are kept of one task, and its progress. Written from any thread, followed on the event loop."""

    __slots__ = ("_bytes", "_changed", "_events", "_lock", "kept", "last", "progress", "reports")

    last: int
    """The number of the last event."""
    progress: bytes | None
    """The last progress value, as JSON."""
    reports: int
    """How many progress values there were."""

    def __init__(self) -> None:
        # Reentrant: a finalizer or a signal handler that emits may run in the middle of it.
        self._lock = RLock()
        self._events: deque[EmittedEvent] = deque()
        self._bytes = 0
        self._changed: anyio.Event | None = None
        self.last = 0
        self.progress = None
        self.reports = 0
        self.kept: list[str] = []
        """The ids under which the scheduler keeps the task."""

    def append(self, text: bytes, then: Callable[[EmittedEvent], object] | None) -> EmittedEvent:
        """Add an event; *then* is called with the events in their order."""
        with self._lock:
            self.last += 1
            event = EmittedEvent(self.last, text)
            self._events.append(event)
            self._bytes += len(text)
            while len(self._events) > MOST_EVENTS or self._bytes > MOST_BYTES:
                self._bytes -= len(self._events.popleft().json)
            if then is not None:
                then(event)
        return event

    def report(self, text: bytes) -> None:
        """Replace the progress value."""
        with self._lock:
            self.progress = text
            self.reports += 1

    def read(self, after: int) -> tuple[EmittedEvent, ...]:
        """Return the next kept events with a number above *after*."""
        with self._lock:
            kept = len(self._events)
            begin = max(0, after - (self.last - kept))
            return tuple(self._events[index] for index in range(begin, min(begin + _BATCH, kept)))

    @property
    def followed(self) -> bool:
        """Whether a follower waits."""
        return self._changed is not None

    def next_change(self) -> anyio.Event:
        """Return the event that is set by the next change. Call on the event loop."""
        if self._changed is None:
            self._changed = anyio.Event()
        return self._changed

    def wake(self) -> None:
        """Wake the followers. Call on the event loop."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()


class FollowedTask(Protocol):
    """What a follower reads of the task."""

    @property
    def state(self) -> TaskState: ...


class TaskFollower:
    """
    What `task.follow()` returns: an asynchronous iterator of `TaskUpdate`.

    An update has what is new since the one before it. The last one has the terminal state of the task; then the
    iteration ends. A follower that is slow gets more events in one update; it never makes the task wait.

    Cancellation: a cancelled `anext()` has taken nothing; the next one goes on in its place.
    """

    __slots__ = ("_after", "_ended", "_journal", "_reports", "_task")

    def __init__(self, task: FollowedTask, journal: Journal, after: int) -> None:
        self._task = task
        self._journal = journal
        self._after = min(after, journal.last)
        self._reports = 0
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskUpdate:
        """Wait for the next update, and return it."""
        await anyio.lowlevel.checkpoint()
        while not self._ended:
            changed = self._journal.next_change()  # first, for what another thread emits in this moment
            update = self._next()
            if update is not None:
                return update
            await changed.wait()
        raise StopAsyncIteration

    def _next(self) -> TaskUpdate | None:
        journal = self._journal
        state = self._task.state  # before the events: after its end, a task has no more of them
        events = journal.read(self._after)
        after = events[-1].number if events else self._after
        self._ended = state.finished and after == journal.last
        if not events and not self._ended and self._reports == journal.reports:
            return None
        missed = events[0].number - self._after - 1 if events else 0
        self._after = after
        self._reports = journal.reports
        return TaskUpdate(events, missed, after, progress_of(journal), state)


def progress_of(journal: Journal | None) -> Json:
    """Return the last progress value; `None` if there is none."""
    if journal is None or journal.progress is None:
        return None
    return json.loads(journal.progress)  # type: ignore[no-any-return]
