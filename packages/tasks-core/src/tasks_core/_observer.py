"""Watching tasks, and stepping in before an attempt: the seam for tracing, metrics and tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ._support.log import logger
from ._support.overrides import OverrideStack, Subscription

if TYPE_CHECKING:
    from ._config import Outcome
    from ._task import PhaseInfo, Task


class RunAttempt(Protocol):
    """What `TaskObserver.around_attempt` calls to run the attempt: the task's own function, or *func* in its place."""

    def __call__(self, func: Callable[..., Any] | None = None, /) -> Awaitable[Any]: ...


class TaskObserver:
    """
    Something that wants to know what happens to tasks. Override what you need; the rest costs nothing.

    Every method may be called from the event loop of any scheduler in the process, and `task_scheduled` also from the
    thread that called `schedule()`; none may block. An exception raised by an observer is logged and harms nobody; only
    `around_attempt` is part of the attempt itself, and what it raises is the failure of that attempt.
    """

    def task_scheduled(self, task: Task[Any]) -> None:
        """`schedule()` accepted the task; called before `schedule()` returns and before the task can start."""

    def task_started(self, task: Task[Any]) -> None:
        """An attempt begins; `task.attempts` says which."""

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        """An attempt failed with *exception*, and the task runs again after *delay* seconds."""

    def task_finished(self, task: Task[Any]) -> None:
        """The task reached its terminal state; called exactly once for each task that was scheduled."""

    def phase_opened(self, phase: PhaseInfo, outcome: Outcome) -> None:
        """A phase opens; called before the first of its tasks starts."""

    def phase_discarded(self, phase: PhaseInfo, reason: str) -> None:
        """A phase will never open; called before its tasks are discarded."""

    def origin_event(self, origin: object, event: str) -> None:
        """
        Something happened to what phases belong to (`TaskPhase.origin`), as `announce()` was told.

        For a request, tasks-fastapi announces `request_started`, `route_returned`, `response_started`, `response_sent`
        and `request_finished`, in this order; its origin has the attributes `method`, `path`, `status` and `error`.
        """

    def shutdown_started(self, tasks: Sequence[Task[Any]], grace_period: float) -> None:
        """A scheduler begins to shut down: *tasks* are those not finished, and have *grace_period* seconds for that."""

    def hold_task(self, task: Task[Any]) -> bool:
        """
        Say whether to keep the task from starting although its phase is open.

        Asked once for each task. A held task stays pending until `tasks_core.testing.release_task(task)`; one that is
        still held when shutdown begins is discarded.
        """
        return False

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        """
        Run one attempt of the task: return `await run()`, with whatever is wanted around it.

        `run(func)` calls *func* with the task's arguments in place of the task's own function. Returning without `run`
        replaces the result; raising makes the attempt fail. Runs in the context of the task.
        """
        return await run()


HOOKS: tuple[str, ...] = tuple(name for name in vars(TaskObserver) if not name.startswith("_"))
"""The names of the hooks: the public methods of `TaskObserver`."""


class Hooks:
    """
    The overridden methods of all observers, one tuple for each hook, so that an event without a listener is one test.

    The tuples are replaced and never changed, because an observer may come or go while an event is being delivered.
    """

    __slots__ = HOOKS

    if TYPE_CHECKING:

        def __getattr__(self, hook: str) -> tuple[Callable[..., Any], ...]: ...

    def __init__(self) -> None:
        self.update(())

    def update(self, observers: tuple[TaskObserver, ...]) -> None:
        """Replace the tuples by the overridden methods of *observers*."""
        for hook in HOOKS:
            default = getattr(TaskObserver, hook)
            listening = [o for o in observers if getattr(type(o), hook, default) is not default]
            setattr(self, hook, tuple(getattr(observer, hook) for observer in listening))


hooks = Hooks()
_observers: OverrideStack[TaskObserver] = OverrideStack(hooks.update)


def observe(observer: TaskObserver) -> Subscription:
    """
    Tell *observer* about the tasks of every scheduler in this process, until the subscription is closed.

    Observers are looked up at the moment of each event, so it does not matter which was there first, the scheduler or
    the observer. They are called in the order in which they came.
    """
    return _observers.add(observer)


def announce(origin: object, event: str) -> bool:
    """
    Tell observers that *event* happened to *origin*, something that phases belong to; return whether anybody listens.

    Free if nobody does.
    """
    if not hooks.origin_event:
        return False
    notify(hooks.origin_event, origin, event)
    return True


def notify(callbacks: tuple[Callable[..., object], ...], *args: object) -> None:
    """Call every callback, whatever the others do."""
    for callback in callbacks:
        _ask(callback, *args)


def is_held(task: Task[Any]) -> bool:
    """Ask all observers whether one of them holds the task."""
    answers = [_ask(hold_task, task) for hold_task in hooks.hold_task]
    return any(answers)


def _ask(callback: Callable[..., object], *args: object) -> object:
    try:
        return callback(*args)
    except KeyboardInterrupt:
        raise  # meant for the process
    except BaseException:  # SystemExit too: the observer is a guest in somebody else's task
        logger.exception("An observer raised in %s; the task is not affected", callback.__name__)
        return None
