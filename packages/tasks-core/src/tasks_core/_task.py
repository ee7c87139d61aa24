"""One task: what was scheduled, its state, and its result."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import Context
from enum import StrEnum
from functools import lru_cache
from itertools import count
from threading import local
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import anyio.lowlevel

from ._current import current
from ._journal import Journal, TaskFollower, progress_of
from ._support.call import function_name
from ._support.jsontext import Json, JsonInput, json_text
from ._support.provider import ProvidedCall
from .exceptions import TaskCancelledError, TaskDiscardedError, TaskNotFinishedError

if TYPE_CHECKING:
    from ._config import Outcome, TaskConfig

T = TypeVar("T")


class TaskState(StrEnum):
    """
    The state of a task.

    ```text
    pending ─→ running ─→ succeeded | failed | cancelled
       │        ↑   ↓
       │       retrying ─→ cancelled
       └─→ cancelled | discarded
    ```
    """

    PENDING = "pending", False
    """The scheduler has accepted it; it has not started."""
    RUNNING = "running", False
    """An attempt runs, or its error handler."""
    RETRYING = "retrying", False
    """An attempt failed, and another will start."""
    SUCCEEDED = "succeeded", True
    """The function returned."""
    FAILED = "failed", True
    """The function raised, and there is no further attempt."""
    CANCELLED = "cancelled", True
    """Cancelled: by `task.cancel()`, by shutdown, or from within. `task.reason` says which."""
    DISCARDED = "discarded", True
    """It was dropped before it started; `task.reason` says why."""

    finished: bool
    """Whether the state is final."""

    def __new__(cls, value: str, finished: bool) -> Self:
        state = str.__new__(cls, value)
        state._value_ = value
        state.finished = finished
        return state

    __hash__ = str.__hash__  # Enum's own is written in Python, and every task is counted by its state


# Constants for the hot path: on CPython 3.11, looking up a member of an enum costs as much as ten attributes.
PENDING, RUNNING, SUCCEEDED = TaskState.PENDING, TaskState.RUNNING, TaskState.SUCCEEDED

_ids = count(1)


class NativeTask(Protocol):
    """A running coroutine of the event loop."""

    def cancel(self) -> object:
        """Request cancellation; call on the thread of the loop."""
        ...

    def done(self) -> bool:
        """Return whether the coroutine has ended, in whatever way."""
        ...


class PhaseInfo(Protocol):
    """What can be read from the `TaskPhase` that a task was scheduled into."""

    @property
    def name(self) -> str:
        """The name of the moment."""
        ...

    @property
    def origin(self) -> object:
        """The object that the phase belongs to: a request, a session."""
        ...

    @property
    def opened(self) -> bool:
        """Whether the phase has begun."""
        ...

    @property
    def outcome(self) -> Outcome | None:
        """The outcome that the phase was opened with; `None` before that."""
        ...


class ThreadAttempt(Protocol):
    """A call of a plain function on behalf of a task, as the worker thread that runs it sees it."""

    task: Task[Any]
    given_up: bool
    """Whether the task no longer waits for the function to return."""


class _Thread(local):
    attempt: ThreadAttempt | None = None


THREAD = _Thread()
"""`attempt` is what the current thread runs, in a worker thread."""


class Writer(Protocol):
    """What writes and finds the journal of a task."""

    def emit(self, task: Task[Any], text: bytes) -> None: ...
    def report(self, task: Task[Any], text: bytes) -> None: ...
    def journal_of(self, task: Task[Any]) -> Journal: ...


class TaskOwner(Protocol):
    """What a task needs of the machinery that runs it."""

    @property
    def following(self) -> Writer: ...
    @property
    def scheduler(self) -> Any: ...  # the TaskScheduler
    def now(self) -> float: ...
    def here(self) -> bool: ...
    def loop_runs(self) -> bool: ...
    def check_wait(self, task: Task[Any]) -> None: ...
    def cancel(self, task: Task[Any]) -> bool: ...
    def release(self, task: Task[Any]) -> None: ...
    async def call_in_thread(self, task: Task[Any], func: Callable[[], object]) -> Any: ...


class Task(Generic[T]):
    """
    A scheduled task: the handle that `schedule()` returns.

    The task does not depend on the handle, which may be dropped. `await task` returns the result, or raises the very
    exception that the task raised. `repr()` never shows arguments.

    A task has one state at any time (`state`), ends in exactly one of the four terminal states, and never leaves it.
    """

    __slots__ = (
        "__weakref__",
        "_cancel_reason",
        "_code",
        "_context",
        "_failed_in",
        "_finished",
        "_instruction",
        "_is_async",
        "_journal",
        "_label",
        "_lost",
        "_native",
        "_owner",
        "_phase",
        "_reason",
        "_result",
        "_started",
        "_state",
        "_tickets",
        "_traceback",
        "args",
        "attempts",
        "config",
        "exception",
        "func",
        "id",
        "kwargs",
        "scheduled_at",
    )

    # For kinds of task that do not call `func` here. `_perform` is what an attempt awaits instead; such a task starts
    # when its phase opens, whatever the limits, the delay and the observers that hold tasks say.
    _perform: ClassVar[Callable[..., Coroutine[Any, Any, Any]] | None] = None

    _label: Any  # is set for a task that log lines name in another way; see `_run/ledger.py`

    id: int
    """Unique among the tasks of the process, in the order of scheduling."""
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    config: TaskConfig
    """The configuration in force: the options of `.task(...)`, merged over the inherited ones."""
    attempts: int
    """How many attempts have started; one that ended in `Snooze` does not count."""
    exception: BaseException | None
    """What the last failed attempt raised; it is kept when a later attempt succeeds or is cancelled."""
    scheduled_at: float
    """When `schedule()` was called, by the clock of the scheduler."""

    # Set when there is something to keep, and missing otherwise: most tasks need none of them.
    _lost: bool
    _journal: Journal
    """What the task has emitted and reported; there from the first event, progress value or follower on."""
    _failed_in: Context
    """The context variables inside of all observers, at the end of the last attempt."""
    _provided: ProvidedCall | None = None
    """How to call the function, if a provider supplies arguments; see `ProvidedTask`."""

    def __init__(
        self,
        owner: TaskOwner,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        config: TaskConfig,
        phase: PhaseInfo | None,
        is_async: bool | ProvidedCall,
        context: Context,
        code: CodeType,
        instruction: int,
        now: float,
    ) -> None:
        self.id = next(_ids)
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.config = config
        self.attempts = 0
        self.exception = None
        self._reason: str | None = None
        self.scheduled_at = now
        self._owner = owner
        self._phase: Any = phase  # the TaskPhase
        self._is_async = is_async
        self._context: Context | None = context
        self._code = code
        self._instruction = instruction
        self._state = PENDING
        self._tickets = 0  # which limits the task counts against; see `Ticket` in _run/ledger.py
        self._native: NativeTask | None = None
        self._cancel_reason: str | None = None
        self._traceback: TracebackType | None = None
        self._result: Any = None
        self._started: anyio.Event | None = None
        self._finished: anyio.Event | None = None

    @property
    def name(self) -> str:
        """`TaskConfig.name`, or the name of the function."""
        return self.config.name or function_name(self.func)

    @property
    def phase(self) -> PhaseInfo | None:
        """The `TaskPhase` that the task was scheduled into; `None` if directly into a scheduler."""
        return self._phase  # type: ignore[no-any-return]  # a TaskPhase

    @property
    def scheduler(self) -> Any:
        """The `TaskScheduler` that runs the task; `None` when that is closed and no longer referenced."""
        return self._owner.scheduler

    @property
    def state(self) -> TaskState:
        """The current state."""
        return self._state

    @property
    def finished(self) -> bool:
        """Whether the task is in a terminal state."""
        return self._state.finished

    @property
    def reason(self) -> str | None:
        """
        Why the task was cancelled or discarded.

        It is set before the cancellation arrives, so that the task can read `current_task().reason` while it is being
        cancelled: `"task.cancel() was called"`, or which bound of the shutdown was over. `None` before that, and for
        a task that succeeded or failed.
        """
        return self._reason if self._state.finished else self._cancel_reason

    @property
    def cancel_requested(self) -> bool:
        """
        Whether the function should stop; for a plain function, which no cancellation can reach.

        ```python
        def export(rows: Iterable[Row]) -> None:
            for row in rows:
                if current_task().cancel_requested:
                    return
                write(row)
        ```

        True after `cancel()`, after shutdown has cancelled the task, and in a thread whose attempt took longer than
        `timeout`.
        """
        attempt = THREAD.attempt
        given_up = attempt is not None and attempt.task is self and attempt.given_up
        return given_up or self._cancel_reason is not None

    @property
    def lost(self) -> bool:
        """Whether the task was cancelled or discarded by shutdown or from outside, and not by `cancel()`."""
        return getattr(self, "_lost", False)  # set for lost tasks only, because every slot costs each task

    @property
    def where(self) -> str:
        """The `file:line` that called `schedule()`."""
        return f"{self._code.co_filename}:{_line(self._code, self._instruction)}"

    @property
    def age(self) -> float:
        """Seconds since `schedule()` was called."""
        return self._owner.now() - self.scheduled_at

    @property
    def started(self) -> anyio.Event:
        """Set when the first attempt starts: `task.started.is_set()`, `await task.started.wait()`."""
        if self._started is None:
            self._started = anyio.Event()
        if self.attempts and not self._started.is_set():  # read after the start, or by a thread during the start
            self._started.set()
        return self._started

    @property
    def progress(self) -> Json:
        """The last value that was given to `report()`; `None` before that."""
        journal: Journal | None = getattr(self, "_journal", None)
        return progress_of(journal)

    def report(self, progress: JsonInput, /) -> None:
        """
        Replace the progress of the task: `current_task().report({"done": 3, "of": 10})`. May be called from any thread.

        Never waits. Followers see the last value only. Does nothing when the task has ended, and in a thread that its
        task has abandoned.

        Raises:
            InvalidEventError: *progress* is not JSON of at most 64 KiB.
        """
        text = json_text(progress, "report()")
        if self._has_voice():
            self._owner.following.report(self, text)

    def emit(self, event: JsonInput, /) -> None:
        """
        Add an event for the followers of the task: `emit({"token": "Hello"})`. May be called from any thread.

        Never waits. The events of a task are numbered from 1. The last 10,000 are kept, and at most 1 MiB of them, for
        as long as the handle is kept: a follower that comes later gets them too. Does nothing when the task has ended,
        and in a thread that its task has abandoned. A task that runs again emits again, with further numbers.

        Raises:
            InvalidEventError: *event* is not JSON of at most 64 KiB.
        """
        text = json_text(event, "emit()")
        if self._has_voice():
            self._owner.following.emit(self, text)

    def _has_voice(self) -> bool:
        """Return whether what the caller reports is that of the attempt which runs."""
        attempt = THREAD.attempt
        abandoned = attempt is not None and attempt.task is self and attempt.given_up
        return not abandoned and not self._state.finished

    def follow(self, after: int = 0) -> TaskFollower:
        """
        Follow the events, the progress and the end of the task.

        ```python
        async for update in task.follow():
            for event in update.events:
                print(event.number, event.data)
        ```

        There may be any number of followers. A follower that goes away changes nothing for the task, and none of them
        makes it wait.

        Args:
            after: The number of the last event that the caller has already.

        Returns:
            An asynchronous iterator of `TaskUpdate`, on the event loop of the scheduler. The last update has a terminal
            state. It is a follower of its own, at its own place.

        Raises:
            RuntimeError: the caller runs on another event loop than the scheduler, which could not wake it.
        """
        if not self._state.finished and not self._owner.here():
            raise RuntimeError(
                f"{self.name!r} cannot be followed from here: task.follow() works on the event loop of the scheduler "
                "only. Follow it in a task of that scheduler: scheduler.schedule(follow, task), where `follow` is your "
                "coroutine function with `async for update in task.follow()`"
            )
        return TaskFollower(self, self._owner.following.journal_of(self), after)

    async def wait(self) -> None:
        """
        Return when the task is in a terminal state; never raises because of how it ended.

        Cancellation: cancelling the waiter does not cancel the task.

        Raises:
            RuntimeError: the caller runs on another event loop than the scheduler, which could not wake it; or the wait
                could never end: the caller is the task itself, the phase of the task waits for the caller, or the
                scheduler is paused.
        """
        if self._state.finished:
            await anyio.lowlevel.checkpoint()
            return
        if not self._owner.here():
            raise RuntimeError(
                "task.wait() and `await task` work on the event loop of the scheduler only. "
                "From a worker thread of that loop write: anyio.from_thread.run(task.wait)"
            )
        self._owner.check_wait(self)
        if self._finished is None:
            self._finished = anyio.Event()
        await self._finished.wait()

    def result(self) -> T:
        """
        Return what the function returned.

        Raises:
            TaskNotFinishedError: the task is not in a terminal state.
            TaskCancelledError: the task was cancelled.
            TaskDiscardedError: the task was discarded.
            BaseException: the task failed; this is the exception that it raised.
        """
        match self._state:
            case TaskState.SUCCEEDED:
                return self._result  # type: ignore[no-any-return]
            case TaskState.FAILED:
                assert self.exception is not None
                try:
                    # As asyncio.Future does, because the traceback would grow with each call otherwise.
                    raise BaseException.with_traceback(self.exception, self._traceback)
                finally:
                    del self  # the traceback refers to this frame, which would be a reference cycle
            case TaskState.CANCELLED:
                raise TaskCancelledError(f"{self._title()} was cancelled: {self.reason}") from self.exception
            case TaskState.DISCARDED:
                raise TaskDiscardedError(f"{self._title()} was discarded: {self.reason}")
        raise TaskNotFinishedError(f"{self._title()} is {self._state}: wait for it first, with `await task.wait()`")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "add_done_callback":  # asyncio.wait() asks for it
                raise AttributeError(
                    f"{self._title()} is awaitable, and no future of asyncio, which asyncio.wait() needs. Write "
                    "asyncio.wait({asyncio.ensure_future(task)}), or asyncio.gather(task). To be called at the end: "
                    ".task(on_end=...)"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __await__(self) -> Generator[Any, Any, T]:
        try:
            yield from self.wait().__await__()
            return self.result()
        finally:
            del self  # the traceback refers to this frame, which would be a reference cycle

    def cancel(self) -> bool:
        """
        Cancel the task, whether it is shielded or not. May be called from any thread.

        Returns:
            Whether the task had not ended. If so, it is cancelled now, or receives the cancellation that follows.

        A task that has not started will not start. One that runs receives a cancellation, as with `anyio.CancelScope`:
        it may clean up, and decides how it ends. A function in a worker thread cannot be stopped, so that its task is
        cancelled and the thread is abandoned; the function can look at `cancel_requested`. Cancelling a finished task
        does nothing.

        On asyncio this is one `asyncio.Task.cancel()`: what the task awaits is cancelled once, also behind an anyio
        shield of its own. On trio everything that it awaits is cancelled from then on, unless shielded.
        """
        return self._owner.cancel(self)

    def __repr__(self) -> str:
        phase = "" if self._phase is None else f" {self._phase.name}"
        return f"<Task {self.name!r} #{self.id}{phase} {self._state}>"

    def _is_for(self, outcome: Outcome) -> bool:
        """Return whether the task is to run when its phase ends in *outcome*."""
        when = self.config.when or "success"
        return when == outcome or when == "always"

    def _title(self) -> str:
        return f"Task {self.name!r} #{self.id}"


class ProvidedTask(Task[T]):
    """A task whose function gets arguments that a provider of the scheduler supplies."""

    __slots__ = ("_provided",)

    def __init__(
        self,
        owner: TaskOwner,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        config: TaskConfig,
        phase: PhaseInfo | None,
        provided: bool | ProvidedCall,
        *more: Any,
    ) -> None:
        # Not as a coroutine function, which an attempt calls without asking for more.
        super().__init__(owner, func, args, kwargs, config, phase, False, *more)
        assert not isinstance(provided, bool)
        self._provided = provided


def current_task() -> Task[Any] | None:
    """
    Return the task that runs the caller, or `None` outside of one.

    Works in coroutines, in functions that run in a worker thread, and in what they call. A coroutine that a task
    started by itself (with `asyncio.create_task`) counts as part of the task until the task has ended. A function in a
    worker thread is part of its task for as long as it runs, also when the task has ended without it.
    """
    task = current()
    if not isinstance(task, Task):
        return None
    if not task._state.finished:
        return task
    return task if THREAD.attempt is not None and THREAD.attempt.task is task else None


def emit(event: JsonInput, /) -> None:
    """
    Call `emit()` of the task that runs the caller: `emit({"token": "Hello"})`.

    Outside of a task it does nothing, so that a test can call a function that emits.

    Raises:
        InvalidEventError: *event* is not JSON of at most 64 KiB.
    """
    task = current_task()
    if task is None:
        json_text(event, "emit()")
    else:
        task.emit(event)


def report(progress: JsonInput, /) -> None:
    """
    Call `report()` of the task that runs the caller: `report({"done": 3, "of": 10})`.

    Outside of a task it does nothing, so that a test can call a function that reports.

    Raises:
        InvalidEventError: *progress* is not JSON of at most 64 KiB.
    """
    task = current_task()
    if task is None:
        json_text(progress, "report()")
    else:
        task.report(progress)


def event_loop_runs(task: Task[Any]) -> bool:
    """
    Return whether the event loop of the scheduler of *task* runs. While it does not, the task cannot go on.

    May be called from any thread.
    """
    return task._owner.loop_runs()


def release_task(task: Task[Any]) -> None:
    """
    Start a task that an observer holds (`TaskObserver.hold_task`); do nothing if no observer holds it.

    May be called from any thread.
    """
    task._owner.release(task)


@lru_cache(maxsize=1024)  # shutdown may need it for a hundred thousand tasks, all from the same few lines
def _line(code: CodeType, instruction: int) -> int:
    """Find the line of an instruction; computed on demand, because `frame.f_lineno` costs a microsecond."""
    lines = (line for start, end, line in code.co_lines() if start <= instruction < end and line is not None)
    return next(lines, code.co_firstlineno)
