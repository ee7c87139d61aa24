"""Observers: what tracing, metrics and tests hear of tasks, and how they act on an attempt."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ._support.call import function_name
from ._support.log import logger
from ._support.overrides import OverrideStack, Subscription
from .exceptions import InvalidConfigError

if TYPE_CHECKING:
    from ._config import Outcome
    from ._journal import EmittedEvent
    from ._service import Service
    from ._task import PhaseInfo, Task


class RunAttempt(Protocol):
    """What `TaskObserver.around_attempt` calls to run the attempt: the task's own function, or *func* in its place."""

    def __call__(self, func: Callable[..., Any] | None = None, /) -> Awaitable[Any]: ...


class TaskObserver:
    """
    The base class of observers. Override the methods that you need; the others cost nothing.

    Every method may be called from the event loop of any scheduler in the process, and `task_scheduled` also from the
    thread that called `schedule()`. None may block, and only `around_attempt` is a coroutine function. An exception
    that an observer raises is logged, and changes nothing for the task; only `around_attempt` is part of the attempt
    itself, and what it raises is the failure of that attempt.
    """

    def task_scheduled(self, task: Task[Any]) -> None:
        """`schedule()` accepted the task; called before `schedule()` returns and before the task can start."""

    def task_started(self, task: Task[Any]) -> None:
        """An attempt begins; `task.attempts` is its number."""

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        """
        An attempt failed with *exception*, and the task runs again after *delay* seconds.

        Or the task, or its error handler, has decided to run later: then *exception* is the `Snooze`. If that is a
        durable task, which its engine delivers again, `task_finished` follows.
        """

    def task_finished(self, task: Task[Any]) -> None:
        """The task reached its terminal state; called exactly once for each task that was scheduled."""

    def task_emitted(self, task: Task[Any], event: EmittedEvent) -> None:
        """`task.emit()` added an event; called on the thread that emitted it."""

    def task_reported(self, task: Task[Any]) -> None:
        """`task.report()` replaced `task.progress`; called on the thread that reported it."""

    def phase_opened(self, phase: PhaseInfo, outcome: Outcome) -> None:
        """A phase opens; called before the first of its tasks starts."""

    def phase_discarded(self, phase: PhaseInfo, reason: str) -> None:
        """A phase will never open; called before its tasks are discarded."""

    def origin_event(self, origin: object, event: str) -> None:
        """
        `announce(origin, event)` was called: *event* happened to what phases belong to (`TaskPhase.origin`).

        For a request, tasks-fastapi announces `request_started`, `route_returned`, `response_started`, `response_sent`
        and `request_finished`, in this order; its origin has the attributes `method`, `path`, `status` and `error`.
        """

    def shutdown_started(self, tasks: Sequence[Task[Any]], grace_period: float) -> None:
        """A scheduler begins to shut down: *tasks* are those not finished, and have *grace_period* seconds for that."""

    def service_starting(self, service: Service) -> None:
        """
        A service begins in a moment: `service_started` follows, or `service_ended` if it is cancelled before.

        Also called from the thread that added the service, or started it again, before that call returns. The timer of
        a periodic task is a service too (`service.periodic`).
        """

    def service_started(self, service: Service) -> None:
        """A service begins: when the scheduler starts, or when it is started again by `service.start()`."""

    def service_ended(self, service: Service) -> None:
        """A service has ended and will not be started again by itself; `service.state` says how."""

    def hold_task(self, task: Task[Any]) -> bool:
        """
        Return whether to keep the task from starting although its phase is open.

        Called once for each task. A held task stays pending until `tasks_core.testing.release_task(task)`; one that is
        still held when shutdown begins is discarded.
        """
        return False

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        """
        Run one attempt of the task: return `await run()`, with whatever is wanted around it.

        `run(func)` calls *func* with the task's arguments in place of the task's own function. Returning without `run`
        replaces the result; raising makes the attempt fail. Runs in the context of the task. If the attempt fails, the
        line that logs the failure is written with the context variables that this method has set around `run()`: an
        isolation scope of an error tracker, or the span that the line belongs to.
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
            setattr(self, hook, tuple(getattr(observer, hook) for observer in observers if _overrides(observer, hook)))


def _overrides(observer: TaskObserver, hook: str) -> bool:
    default = getattr(TaskObserver, hook)
    return getattr(type(observer), hook, default) is not default


hooks = Hooks()
_observers: OverrideStack[TaskObserver] = OverrideStack(hooks.update)


def observe(observer: TaskObserver) -> Subscription:
    """
    Call the methods of *observer* for the tasks of every scheduler in this process, until the subscription is closed.

    Observers are looked up at the moment of each event, so that it does not matter whether the scheduler or the
    observer was made first. They are called in the order of their `observe()` calls.

    Raises:
        InvalidConfigError: a method other than `around_attempt` is a coroutine function, which nothing would await.
    """
    for hook in HOOKS:
        if hook != "around_attempt" and inspect.iscoroutinefunction(getattr(observer, hook, None)):
            raise InvalidConfigError(
                f"observe({type(observer).__qualname__}()): {hook} is a coroutine function, which nothing would "
                f"await. Write `def {hook}(self, ...)`, without `async`"
            )
    return _observers.add(observer)


def announce(origin: object, event: str) -> bool:
    """
    Call `origin_event(origin, event)` of all observers; return whether there is one.

    *origin* is what phases belong to. Costs nothing if no observer overrides `origin_event`.
    """
    if not hooks.origin_event:
        return False
    notify(hooks.origin_event, origin, event)
    return True


def notify(callbacks: tuple[Callable[..., object], ...], *args: object) -> None:
    """Call every callback, also when one before it has raised."""
    for callback in callbacks:
        _ask(callback, *args)


def is_held(task: Task[Any]) -> bool:
    """Ask all observers; return whether one of them holds the task."""
    answers = [_ask(hold_task, task) for hold_task in hooks.hold_task]
    return any(answers)


def _ask(callback: Callable[..., object], *args: object) -> object:
    try:
        return callback(*args)
    except KeyboardInterrupt:
        raise  # meant for the process
    except BaseException as error:  # SystemExit too: the task is not the observer's to end
        # By its own name if it has one: a partialmethod or a mock has none.
        logger.error("An observer raised in %s; the task is not affected", _name(callback), exc_info=error)
        return None


def _name(callback: Callable[..., object]) -> str:
    return function_name(callback).rpartition(".")[2]
