"""The record as data: requests, tasks, and one event for each thing that happened to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from tasks_core import Task

from tasks_testing import _refusals
from tasks_testing._text import show_error

from .call import Call, Target, base_function, matches
from .durable_run import PHASE, DurableRun

R = TypeVar("R")

Phase: TypeAlias = Literal["immediate", "after_route", "after_response"]
"""When a task of a request starts. A task that was scheduled into a scheduler directly has no phase."""

State: TypeAlias = Literal["pending", "held", "running", "retrying", "succeeded", "failed", "cancelled", "discarded"]
"""
The states of `tasks_core.TaskState`, and `held`: the recorder keeps the task from starting.

A task that waits for its phase or for its delay is `pending`, a task that waits for its next attempt is `retrying`.
"""

EventKind: TypeAlias = Literal[
    "request_started",
    "route_returned",
    "response_started",
    "response_sent",
    "request_finished",
    "phase_opened",
    "scheduled",
    "held",
    "released",
    "started",
    "emitted",
    "reported",
    "retrying",
    "succeeded",
    "failed",
    "cancelled",
    "discarded",
]
"""What happened: to a request (the first six), or to a task."""

RequestMoment: TypeAlias = Literal[
    "request_started", "route_returned", "response_started", "response_sent", "request_finished"
]
"""A moment in the life of a request that `assert_order()` takes by its name."""

STATES: tuple[State, ...] = get_args(State)


def check_states(method: str, states: Iterable[str]) -> None:
    """Raise if one of *states*, which *method* was called with, is none."""
    for state in states:
        if state not in STATES:
            raise ValueError(_refusals.no_such_state(method, state, STATES))


TERMINAL = frozenset({"succeeded", "failed", "cancelled", "discarded"})


class RecordedRequest:
    """An HTTP request or a WebSocket connection that an app with tasks has served."""

    def __init__(self, index: int, seq: int, origin: Any) -> None:
        self.index = index
        """0 for the first request of the recording."""
        self.finished = False
        """Whether the application has returned or raised."""
        self._origin = origin
        self._seq = seq

    @property
    def method(self) -> str:
        """The HTTP method, or `"WEBSOCKET"`."""
        return str(getattr(self._origin, "method", type(self._origin).__name__))

    @property
    def path(self) -> str:
        """The path of the URL."""
        return str(getattr(self._origin, "path", ""))

    @property
    def status(self) -> int | None:
        """The status of the response; `None` until it starts."""
        return getattr(self._origin, "status", None) or None

    @property
    def error(self) -> BaseException | None:
        """The exception that the application raised, if it did."""
        return getattr(self._origin, "error", None)

    def __str__(self) -> str:
        ended = self.status or show_error(self.error, 40)
        return f"#{self.index + 1} {self.method} {self.path}{f' -> {ended}' if ended else ''}"

    def __repr__(self) -> str:
        return f"<RecordedRequest {self}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """One thing that happened. Compare events by `seq`; the times are for people."""

    seq: int
    """Grows with each event of the process."""
    at: float
    """Seconds since the recording began."""
    clock: float
    """The value of `tasks_recorder.clock.now` at the event."""
    kind: EventKind
    """What happened."""
    task: RecordedTask[Any] | None = None
    """The task that it happened to; `None` for an event of a request."""
    request: RecordedRequest | None = None
    """The request that it happened to, or that the task belongs to."""
    phase: str | None = None
    """The phase of the task, or the phase that opened."""
    attempt: int = 0
    """The number of attempts of the task that had started."""
    error: BaseException | None = None
    """The exception of a failed attempt."""
    detail: str = ""
    """More about the event, for people: the reason of a cancellation, the pause before the next attempt."""
    thread: str = ""
    """The name of the thread in which it happened."""


class RecordedTask(Generic[R]):
    """A task that was scheduled during the recording."""

    def __init__(
        self,
        number: int,
        seq: int,
        task: Task[R],
        request: RecordedRequest | None,
        run: DurableRun | None = None,
    ) -> None:
        self.id = number
        """1 for the first task of the recording."""
        self.task = task
        """What `schedule()` returned; for a run of a durable task, the task of its last attempt."""
        self.request = request
        """The request that it belongs to; `None` if it was scheduled outside of a request."""
        self.call: Call[R] = Call(task.func, task.args, task.kwargs)
        """The function and its arguments."""
        self.attempts = 0
        """How many attempts have started."""
        self.error: BaseException | None = None
        """The exception of the last failed attempt."""
        self.reason: str | None = None
        """Why it was cancelled or discarded."""
        self._seq = seq
        self._run = run
        self._state: State = "pending"
        self._lost = False  # shutdown ended it, or something outside of the test
        self._released = False
        self._failure_expected = False
        self._asserted = False  # an assertion was about it
        self._allowed_to_run = False  # it may outlive the test
        self._injected: list[BaseException] = []
        self._loop_thread: int | None = None
        self._own_events: list[TaskEvent] = []
        self._emitted: list[Any] = []

    @property
    def name(self) -> str:
        """`TaskConfig.name`, or the name of the function."""
        return self.task.name

    @property
    def phase(self) -> str | None:
        """
        A `Phase`, the name of a `TaskPhase` of your own, or `None` if it was scheduled into a scheduler.

        The phase of a run of a durable task is `"durable"`.
        """
        if self._run is not None:
            return PHASE
        return None if self.task.phase is None else self.task.phase.name

    @property
    def delay(self) -> float:
        """The seconds that its first attempt waits after the opening of its phase."""
        return self.task.config.delay or 0.0

    @property
    def where(self) -> str:
        """The `file:line` that scheduled it; for a run of a durable task, the line that submitted it."""
        return self.task.where if self._run is None else self._run.where

    @property
    def opened(self) -> bool:
        """Whether its phase is open."""
        return self.task.phase is None or self.task.phase.opened

    @property
    def state(self) -> State:
        """Its state, in the words of `tasks_core.TaskState`, or `"held"`."""
        return self._state

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self._state in TERMINAL

    @property
    def events(self) -> Sequence[TaskEvent]:
        """What happened to it, in order."""
        return tuple(self._own_events)

    @property
    def emitted(self) -> Sequence[Any]:
        """What it has emitted for its followers, in order, that of all its attempts."""
        return tuple(self._emitted)

    @property
    def progress(self) -> Any:
        """The last value that it has reported; `None` before that."""
        return self.task.progress

    @property
    def result(self) -> R:
        """
        What the function returned.

        Raises:
            AssertionError: The task has not succeeded.
        """
        if self._state != "succeeded":
            why = show_error(self.error) if self.error is not None else self.reason or ""
            raise AssertionError(_refusals.no_result(self, self._state, why))
        return self.task.result()

    def __str__(self) -> str:
        name = self.name if self.task.config.name else ""
        return f"#{self.id} {f'{name}: ' if name else ''}{self.call!r}"

    def __repr__(self) -> str:
        phase = "" if self.phase is None else f" {self.phase}"
        return f"<RecordedTask {self}{phase} {self.state}>"


def is_named_by(task: RecordedTask[Any], target: Target | None) -> bool:
    """Return whether *target* names the task; `None` names every task."""
    return target is None or matches(target, task.name, task.call)


def waits_for_time(task: RecordedTask[Any]) -> bool:
    """Return whether the task waits for the end of its delay, or for its next attempt."""
    return task.state == "retrying" or (task.state == "pending" and task.opened and task.delay > 0)


def code_for(task: RecordedTask[Any]) -> str:
    """Return how a test names the task in its code: by its function, or by its name if the function has none."""
    func = base_function(task.call.func)
    name = str(getattr(func, "__qualname__", "")).rpartition("<locals>.")[2]
    return name if name.replace(".", "").isidentifier() else repr(task.name)
