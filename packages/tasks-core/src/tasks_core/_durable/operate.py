"""What an engine may offer to operators: numbers, a look at stored tasks, and verbs that act on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol, TypedDict, Unpack, runtime_checkable

from tasks_core._support.jsontext import Json
from tasks_core._support.rules import Rule, is_count, is_finite_seconds, is_text
from tasks_core.exceptions import InvalidConfigError

from .attempts import AttemptRecord
from .calls import DurableState

COUNT_BOUND: Final = 100_000
"""Counts of `OperableEngine.statistics()` end here: such a number means "this many or more"."""

ENDED: Final = (DurableState.SUCCEEDED, DurableState.FAILED, DurableState.CANCELLED)
"""The states of tasks that have ended."""


class TaskFilter(TypedDict, total=False):
    """Which stored tasks are meant. What is left out restricts nothing, unless a method says otherwise."""

    state: DurableState
    name: str
    """The registered name of the function, in full."""
    queue: str
    """One queue; left out: all queues of the engine."""
    error: str
    """A part of the error of the last attempt that failed; upper and lower case are the same."""
    older_than: float
    """Seconds since the task was submitted, at least."""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """The numbers of one queue, at one moment. Counts end at `COUNT_BOUND`."""

    queue: str
    waiting: int
    """Tasks that a worker may take now."""
    running: int
    failed: int
    """Tasks that failed, and are kept."""
    delayed: int
    """Tasks that are not due yet, among them those between two attempts."""
    oldest_waiting: float | None
    """Seconds for which the task that has waited longest could have been taken; `None` if none waits."""
    ended_per_second: float
    """How many tasks have ended in a second lately, whether they succeeded or not."""
    workers_alive: int
    workers_silent: int
    """Workers that gave no sign of life for so long that their tasks are taken over."""
    paused: bool = False
    """Whether the whole queue is paused."""
    paused_names: tuple[str, ...] = ()
    """The functions that are paused in this queue."""


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A durable task as its engine has it. Arguments are not part of it."""

    id: str
    """The id of its receipt."""
    key: str
    """Its idempotency key."""
    name: str
    queue: str
    state: DurableState
    attempts: int
    """How many attempts have ended; see `DurableStatus.attempts`."""
    submitted_at: datetime | None
    changed_at: datetime | None
    """When its state changed for the last time."""
    due_at: datetime | None
    """When a task that is pending may start; `None`: now."""
    error: str | None
    """The error of the last attempt that failed."""


@dataclass(frozen=True, slots=True)
class StoredTaskPage:
    """A part of what `OperableEngine.find()` finds."""

    tasks: tuple[StoredTask, ...]
    after: str | None
    """What to pass as `after=` for the next page; `None`: there is no other. A page with few tasks may have one."""


@dataclass(frozen=True, slots=True)
class StoredTaskEvent:
    """A moment in the life of a stored task."""

    type: str
    """In the words of the engine."""
    at: datetime


@dataclass(frozen=True, slots=True)
class StoredTaskDetails:
    """All that an engine knows of a task."""

    task: StoredTask
    events: tuple[StoredTaskEvent, ...] = ()
    """In order."""
    errors: tuple[AttemptRecord, ...] = ()
    """Those of the attempts that failed, in order, as far as the engine keeps them."""
    progress: Json = None
    result: Json = None
    reason: str | None = None
    """Why it was cancelled, or is not run any more, as far as that was said."""
    headers: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Json] | None = field(default=None, repr=False)
    """`None` unless they were asked for."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Workers take no tasks of a queue, or none of one function in a queue."""

    queue: str
    name: str | None
    """`None`: all functions."""
    since: datetime


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Whether an engine can do its work."""

    reachable: bool
    """Whether the engine has answered."""
    problems: tuple[str, ...]
    """What is wrong, one sentence each; empty if nothing is."""

    @property
    def healthy(self) -> bool:
        """Whether the engine answers, and nothing is wrong."""
        return self.reachable and not self.problems


@runtime_checkable
class OperableEngine(Protocol):
    """
    What an `Engine` may have besides: numbers, and verbs for operators.

    All methods need an engine that was entered. They are for people, commands and pages: the way of a task from its
    submit to its end uses none of them.

    Raises:
        EngineUnavailableError: (each method but `health()`) the engine does not answer.
    """

    async def statistics(self, *, count_to: int = COUNT_BOUND) -> Sequence[QueueStatistics]:
        """Return the numbers of each queue of the engine, by name; no count goes beyond *count_to*."""
        ...

    async def find(self, *, after: str | None = None, limit: int = 50, **which: Unpack[TaskFilter]) -> StoredTaskPage:
        """
        Return stored tasks, those first that were submitted last.

        A call reads a bounded number of tasks. So it may return fewer than *limit*, and there may be more: as long as
        `page.after` is not `None`, pass it as *after*.

        Args:
            after: `after` of the page before.
            limit: How many tasks at most.
            which: See `TaskFilter`.

        Raises:
            InvalidConfigError: an argument has a value that it cannot have.
        """
        ...

    async def show(self, task_id: str, /, *, arguments: bool = False) -> StoredTaskDetails | None:
        """Return all that is known of a task, with its arguments only if *arguments*; `None` if there is no such."""
        ...

    async def retry(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """
        Have tasks that failed, or were cancelled, begin again at once, with all attempts of their retry policy.

        A task that is pending and not due yet is due at once.

        Args:
            task_id: One task; or *which*: all that the filter finds. Without `state=` in it, those that failed.
            dry_run: Count only.
            on_progress: Called with the number of tasks so far, after each batch.
            which: See `TaskFilter`.

        Returns:
            How many tasks there were.

        Raises:
            InvalidConfigError: neither an id nor a filter, both, or a filter for a state that cannot be retried.
        """
        ...

    async def cancel(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """
        Cancel tasks: a pending one has ended on return; a running one is cancelled by its worker soon after.

        The parameters are those of `retry()`; a filter without `state=` means pending and running tasks.
        """
        ...

    async def discard(
        self,
        task_id: str | None = None,
        /,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int], object] | None = None,
        **which: Unpack[TaskFilter],
    ) -> int:
        """
        Delete tasks that failed or were cancelled, so that their keys may be used again.

        The parameters are those of `retry()`; a filter without `state=` means tasks that failed.
        """
        ...

    async def pause(self, *, queue: str | None = None, name: str | None = None) -> None:
        """
        Have workers take no more tasks of a queue, or of a function; those that run go on.

        Submits are accepted meanwhile. A pause is stored with the tasks: it holds for all workers, also after they were
        started anew, until `resume()`.

        Args:
            queue: The queue; left out: all queues of the engine that there are now.
            name: The registered name of the function; left out: all.

        Raises:
            InvalidConfigError: neither was given.
        """
        ...

    async def resume(self, *, queue: str | None = None, name: str | None = None) -> None:
        """End what `pause()` with the same arguments began; nothing happens if there was no such pause."""
        ...

    async def pauses(self) -> Sequence[Pause]:
        """Return what is paused."""
        ...

    async def purge(
        self,
        *,
        older_than: float | None = None,
        state: DurableState | None = None,
        queue: str | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> int:
        """
        Delete tasks that have ended, now, and return how many there were.

        Args:
            older_than: Seconds since their end; left out: those for which the engine keeps such tasks.
            state: Succeeded, failed or cancelled ones only.
            queue: Those of one queue only.
            on_progress: Called with the number of tasks so far, after each batch.

        Raises:
            InvalidConfigError: an argument has a value that it cannot have.
        """
        ...

    async def health(self) -> EngineHealth:
        """Return whether the engine can do its work, and what is wrong. Raises nothing for an engine that is away."""
        ...

    def last_beat(self) -> float | None:
        """
        Return the seconds since the engine has acknowledged a sign of life of a worker in this process.

        `None` if no worker runs in this process, or none has given one yet. Any thread may ask.
        """
        ...


@runtime_checkable
class MeteredEngine(Protocol):
    """What an engine may have besides, so that of all processes one at a time looks at the numbers of a queue."""

    async def statistics_in_turn(self, seconds: float, /) -> Sequence[QueueStatistics]:
        """
        Return the numbers of those queues whose turn this process has, or takes, for the next *seconds*.

        A process that asks again within that time keeps its turn. The others get nothing for the queue meanwhile.

        Raises:
            EngineUnavailableError: the engine does not answer.
        """
        ...


_STATES = (DurableState.PENDING, DurableState.RUNNING, *ENDED)

_RULES = {
    "state": Rule(
        lambda value: isinstance(value, DurableState) and value is not DurableState.UNKNOWN, "a DurableState"
    ),
    "name": Rule(is_text, "the registered name of a function"),
    "queue": Rule(is_text, "the name of a queue"),
    "error": Rule(is_text, "a part of the text of an error"),
    "older_than": Rule(is_finite_seconds, "seconds, 0 or more"),
    "after": Rule(is_text, "`after` of a page"),
    "limit": Rule(
        lambda value: is_count(value) and isinstance(value, int) and value <= 1000, "a number from 1 to 1000"
    ),
    "count_to": Rule(is_count, "a whole number, 1 or more"),
}


def check_operation(**given: object) -> None:
    """
    Check the arguments of a method of `OperableEngine`; `None` means that one was left out.

    Raises:
        InvalidConfigError: one has a value that it cannot have.
    """
    for name, value in given.items():
        if name not in _RULES:
            known = ", ".join(TaskFilter.__annotations__)
            raise InvalidConfigError(f"{name!r} is no part of a filter of stored tasks; those are {known}")
        if value is not None:
            _RULES[name].check(name, value)


def check_verb(
    verb: str, task_id: str | None, which: TaskFilter, allowed: Sequence[DurableState], default: DurableState | None
) -> TaskFilter:
    """
    Check what a verb acts on, and return its filter, with the state that it means if none is given.

    Raises:
        InvalidConfigError: neither an id nor a filter, both, or a filter for a state that the verb cannot act on.
    """
    check_operation(**which)
    if task_id is not None and which:
        raise InvalidConfigError(f"{verb}() takes an id or a filter, not both: {verb}('17'), or {verb}(name='charge')")
    if task_id is None and not which:
        raise InvalidConfigError(
            f"{verb}() needs an id or a filter: {verb}('17'), {verb}(name='charge'), or for all of a state "
            f"{verb}(state=DurableState.{allowed[0].name})"
        )
    state = which.get("state", default)
    if state is None:
        return which
    if state not in allowed:
        raise InvalidConfigError(
            f"{verb}() was given state={state.value!r}, and acts on tasks that are "
            f"{' or '.join(one.value for one in allowed)}"
        )
    return {**which, "state": state}


def check_pause(verb: str, queue: str | None, name: str | None) -> None:
    """
    Check the arguments of `pause()` and `resume()`.

    Raises:
        InvalidConfigError: neither was given, or one has a value that it cannot have.
    """
    check_operation(queue=queue, name=name)
    if queue is None and name is None:
        raise InvalidConfigError(f"{verb}() needs a queue or a name: {verb}(queue='mail'), or {verb}(name='charge')")


def problems_of(statistics: Sequence[QueueStatistics]) -> tuple[str, ...]:
    """Return what is wrong with the queues of an engine, one sentence each."""
    problems = []
    for queue in statistics:
        if queue.workers_silent:
            problems.append(f"Queue {queue.queue!r}: {queue.workers_silent} workers give no sign of life")
        if queue.paused:
            problems.append(f"Queue {queue.queue!r} is paused")
        elif (queue.waiting or queue.running) and not queue.workers_alive:
            problems.append(f"Queue {queue.queue!r} has tasks to run, and no worker is alive")
        problems += [f"Queue {queue.queue!r}: {name!r} is paused" for name in queue.paused_names]
    return tuple(problems)
