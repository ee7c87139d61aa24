"""Followers of durable tasks: any process reads what a worker has stored."""

from __future__ import annotations

from collections.abc import MutableMapping
from secrets import token_urlsafe
from typing import Self, cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel

from tasks_core._journal import EmittedEvent, TaskUpdate
from tasks_core._scheduler import TaskScheduler
from tasks_core._support.jsontext import Json
from tasks_core._support.log import logger
from tasks_core._task import PENDING, TaskState
from tasks_core.exceptions import EngineCapabilityError, EngineError, InvalidTaskError, SchedulerClosedError

from .calls import DurableState
from .engine import EventEngine, FollowedCall, StoredEvents
from .host import engine_of
from .memory import MemoryEngine
from .task import FOLLOW, OWNER, DurableTask

# Seconds between two looks for what is new, for all followers of this process together; and after an error.
_PAUSE, _PAUSE_AFTER_ERROR = 0.2, 1.0


def make_followed(task: DurableTask, owner: str | None) -> str:
    """
    Give a call a token that cannot be guessed, by which each process finds it once it is stored.

    If the call is not stored, but runs in this process, `scheduler.find_kept(token)` returns its task.

    Raises:
        EngineCapabilityError: the engine stores no events.
        InvalidTaskError: the call is stored, or on its way.
    """
    if not isinstance(task.engine, (EventEngine, MemoryEngine)):
        raise EngineCapabilityError(
            f"{task.name!r} cannot be followed: {task.engine.name} stores no events, for which an engine needs the "
            "methods of EventEngine"
        )
    if task._state is not PENDING or task.stored:
        raise InvalidTaskError(
            f"{task.name!r} is on its way to {task.engine.name} already: to let a client follow it, call job(task) "
            "right after schedule(), before the next await"
        )
    headers = cast("MutableMapping[str, str]", task.call.headers)
    if FOLLOW not in headers:
        headers[FOLLOW] = token_urlsafe(24)
    if owner is not None:
        headers[OWNER] = owner
    return headers[FOLLOW]


async def find_followed(scheduler: TaskScheduler, token: str) -> FollowedCall | None:
    """
    Return the call that has a token; `None` if there is none any more, or none yet.

    Raises:
        EngineUnavailableError: the engine does not answer.
    """
    engine = engine_of(scheduler)
    return await engine.find_followed(token) if isinstance(engine, EventEngine) else None


def follow_stored(scheduler: TaskScheduler, receipt_id: str, after: int) -> StoredFollower:
    """Follow a call of the engine of *scheduler*, as `task.follow(after)` follows a task of this process."""
    reader = _readers.get(scheduler)
    if reader is None:
        engine = engine_of(scheduler)
        assert isinstance(engine, EventEngine), "the call was found by find_followed()"
        reader = _readers[scheduler] = _Reader(engine)
        reader.start(scheduler)
    return StoredFollower(reader, receipt_id, after)


class _Ask:
    """What one follower waits for."""

    __slots__ = ("answered", "key", "progress", "update")

    def __init__(self, key: tuple[str, int], progress: Json) -> None:
        self.key: tuple[str, int] = key
        self.progress: Json = progress
        self.update: StoredEvents | None = None
        self.answered: anyio.Event = anyio.Event()

    def take(self, found: StoredEvents) -> None:
        if found.events or found.ended or found.status.progress != self.progress:
            self.update = found
            self.answered.set()


class _Reader:
    """Reads the events of all calls that are followed on one scheduler, by one statement for all of them."""

    def __init__(self, engine: EventEngine) -> None:
        self._engine = engine
        self._asks: set[_Ask] = set()
        self._wake = anyio.Event()
        self._failing = False

    def start(self, scheduler: TaskScheduler) -> None:
        try:
            scheduler.service(self._run, name="events of durable tasks")
        except SchedulerClosedError:
            logger.debug("Nothing is read for followers that come during shutdown")

    async def ask(self, ask: _Ask) -> StoredEvents:
        self._asks.add(ask)
        self._wake.set()
        try:
            await ask.answered.wait()
        finally:
            self._asks.discard(ask)
        assert ask.update is not None
        return ask.update

    async def _run(self) -> None:
        while True:
            if not self._asks:
                self._wake = anyio.Event()
                await self._wake.wait()
            pause = _PAUSE if await self._read() else _PAUSE_AFTER_ERROR
            await anyio.sleep(pause)

    async def _read(self) -> bool:
        try:
            found = await self._engine.read_events({ask.key for ask in self._asks})
        except EngineError as error:
            if not self._failing:
                logger.warning("The events of durable tasks cannot be read, which is tried again: %s", error)
            self._failing = True
            return False
        self._failing = False
        for ask in list(self._asks):
            if ask.key in found:
                ask.take(found[ask.key])
        return True


_readers: WeakKeyDictionary[TaskScheduler, _Reader] = WeakKeyDictionary()


class StoredFollower:
    """An asynchronous iterator of `TaskUpdate`, like `TaskFollower`, of what the engine has stored."""

    __slots__ = ("_after", "_ended", "_id", "_progress", "_reader")

    def __init__(self, reader: _Reader, receipt_id: str, after: int) -> None:
        self._reader = reader
        self._id = receipt_id
        self._after = after
        self._progress: Json = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskUpdate:
        """Wait for the next update, and return it."""
        await anyio.lowlevel.checkpoint()
        if self._ended:
            raise StopAsyncIteration
        found = await self._reader.ask(_Ask((self._id, self._after), self._progress))
        events: tuple[EmittedEvent, ...] = found.events
        missed = events[0].number - self._after - 1 if events else 0
        self._after = events[-1].number if events else self._after
        self._progress = found.status.progress
        self._ended = found.ended
        return TaskUpdate(events, missed, self._after, self._progress, task_state(found.status.state))


def task_state(state: DurableState) -> TaskState:
    """Return the state of a durable task as that of a task; one that the engine does not know will not run."""
    return TaskState.DISCARDED if state is DurableState.UNKNOWN else TaskState[state.name]
