"""What happened, as data: requests, tasks, and one event for each thing that happened to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from tasks_core import Task

from tasks_testing._text import function_name, show_error

from .call import Call, Target, base_function, matches
from .durable_run import PHASE, DurableRun

R = TypeVar("R")

Phase: TypeAlias = Literal["immediate", "after_route", "after_response"]
"""When a task of a request starts. A task that was scheduled into a scheduler directly has none."""

State: TypeAlias = Literal["scheduled", "held", "running", "waiting", "succeeded", "failed", "cancelled", "dropped"]
"""
Where a task is: `waiting` is for its delay or its next attempt, `dropped` means that it never started and never will.
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
    "retried",
    "succeeded",
    "failed",
    "cancelled",
    "dropped",
]
"""What happened: to a request (the first six), or to a task."""

Marker: TypeAlias = Literal["route_returned", "response_started", "response_sent", "request_finished"]
"""A moment in the life of a request that `assert_order()` can name."""

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "dropped"})


class RecordedRequest:
    """An HTTP request or a WebSocket connection that an app with tasks has served."""

    def __init__(self, index: int, seq: int, origin: Any) -> None:
        self.index = index
        """0 for the first one of the recording."""
        self.finished = False
        """Whether the application has returned, or raised."""
        self._origin = origin
        self._seq = seq

    @property
    def method(self) -> str:
        """The HTTP method, or `"WEBSOCKET"`."""
        return str(getattr(self._origin, "method", type(self._origin).__name__))

    @property
    def path(self) -> str:
        return str(getattr(self._origin, "path", ""))

    @property
    def status(self) -> int | None:
        """The status of the response; `None` until there is one."""
        return getattr(self._origin, "status", None) or None

    @property
    def error(self) -> BaseException | None:
        """The exception that left the application, if one did."""
        return getattr(self._origin, "error", None)

    def __str__(self) -> str:
        ended = self.status or show_error(self.error, 40)
        return f"#{self.index + 1} {self.method} {self.path}{f' -> {ended}' if ended else ''}"

    def __repr__(self) -> str:
        return f"<RecordedRequest {self}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """One thing that happened. Order is told by `seq`; the times are for people."""

    seq: int
    """Grows with each event of the process."""
    at: float
    """Seconds since the recording began."""
    clock: float
    """What `tasks_recorder.clock.now` said."""
    kind: EventKind
    task: RecordedTask[Any] | None = None
    request: RecordedRequest | None = None
    phase: str | None = None
    attempt: int = 0
    error: BaseException | None = None
    detail: str = ""
    thread: str = ""
    """The name of the thread in which it happened."""


class RecordedTask(Generic[R]):
    """A task that was scheduled while the recording was on."""

    def __init__(
        self,
        number: int,
        seq: int,
        handle: Task[R],
        request: RecordedRequest | None,
        run: DurableRun | None = None,
    ) -> None:
        self.id = number
        """1 for the first one of the recording."""
        self.handle = handle
        """What `schedule()` returned; for a run of a durable task, the task of its last attempt."""
        self.request = request
        """The request that it belongs to; `None` if it was scheduled outside of one."""
        self.call: Call[R] = Call(handle.func, handle.args, handle.kwargs)
        """The function and its arguments."""
        self.attempts = 0
        """How many attempts have started."""
        self.error: BaseException | None = None
        """What the last failed attempt raised."""
        self.reason: str | None = None
        """Why it was cancelled or dropped."""
        self._seq = seq
        self._run = run
        self._progress: State = "scheduled"
        self._held = False
        self._lost = False  # shutdown, or something outside of the test, ended it
        self._released = False
        self._acknowledged = False  # its failure is expected
        self._asserted = False  # an assertion has dealt with it
        self._allowed_to_run = False  # it may outlive the test
        self._injected: list[BaseException] = []
        self._loop_thread: int | None = None
        self._own_events: list[TaskEvent] = []

    @property
    def name(self) -> str:
        """`TaskConfig.name`, or the name of the function."""
        return self.handle.name

    @property
    def phase(self) -> str | None:
        """
        A `Phase`, the name of a `TaskPhase` of your own, or `None` if it was scheduled into a scheduler.

        That of a run of a durable task is `"durable"`.
        """
        if self._run is not None:
            return PHASE
        return None if self.handle.phase is None else self.handle.phase.name

    @property
    def delay(self) -> float:
        """The seconds that it was told to wait before its first attempt."""
        return self.handle.config.delay or 0.0

    @property
    def where(self) -> str:
        """The `file:line` that scheduled it; a run of a durable task has that of the handing over."""
        return self.handle.where if self._run is None else self._run.where

    @property
    def opened(self) -> bool:
        """Whether its phase is open."""
        return self.handle.phase is None or self.handle.phase.opened

    @property
    def state(self) -> State:
        if self._progress == "scheduled" and self.delay and self.opened:
            return "waiting"
        return self._progress

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self._progress in TERMINAL

    @property
    def events(self) -> Sequence[TaskEvent]:
        """What happened to it."""
        return tuple(self._own_events)

    @property
    def result(self) -> R:
        """
        What the function returned.

        Raises:
            AssertionError: it has not succeeded.
        """
        if self._progress != "succeeded":
            told = (
                f": {show_error(self.error)}" if self.error is not None else f": {self.reason}" if self.reason else ""
            )
            raise AssertionError(f"{self} has no result, it is {self.state}{told}")
        return self.handle.result()

    def __str__(self) -> str:
        name = self.name if self.handle.config.name else ""
        return f"#{self.id} {f'{name}: ' if name else ''}{self.call!r}"

    def __repr__(self) -> str:
        phase = "" if self.phase is None else f" {self.phase}"
        return f"<RecordedTask {self}{phase} {self.state}>"


def is_meant(task: RecordedTask[Any], target: Target | None) -> bool:
    """Whether *target* names the task; `None` names all."""
    return target is None or matches(target, task.name, task.call)


def written(task: RecordedTask[Any]) -> str:
    """Return what names the task in the code of a test: its function, or its name if the function has none."""
    name = function_name(base_function(task.call.fn))
    has_name = hasattr(base_function(task.call.fn), "__qualname__") and name.replace(".", "").isidentifier()
    return name if has_name else repr(task.name)
