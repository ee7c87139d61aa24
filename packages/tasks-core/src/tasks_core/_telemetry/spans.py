"""A span for each attempt of a task, in the trace in which the task was scheduled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from opentelemetry.trace import Span, StatusCode, Tracer, use_span

from tasks_core._decision import Snooze
from tasks_core._observer import RunAttempt, TaskObserver
from tasks_core._scheduler import TaskScheduler
from tasks_core._support.log import logger
from tasks_core._task import Task, TaskState

Outcome = tuple[str, BaseException | None]


class TaskSpans(TaskObserver):
    """
    Creates a span for each attempt of the tasks of one scheduler, including the error handler.

    It is the current span inside the task, also in worker threads. Its parent is the span that was current at the call
    of `schedule()`, which has usually ended by then and is not extended.
    """

    def __init__(self, scheduler: TaskScheduler, tracer: Tracer) -> None:
        self._scheduler = scheduler
        self._tracer = tracer
        self._spans: dict[int, Span] = {}

    async def around_attempt(self, task: Task[Any], run: RunAttempt, /) -> Any:
        """Run the attempt inside its span."""
        if not self._scheduler.owns(task):
            return await run()
        try:
            span = self._start(task)
        except Exception:  # raised by a sampler or a processor, which must not fail the task
            logger.exception("OpenTelemetry could not start a span; the task is not affected")
            return await run()
        if span is None:
            return await run()
        # task_retrying() or task_finished() ends the span, because only they know what the end of the attempt means.
        self._spans[task.id] = span
        with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            return await run()

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        """End the span of an attempt that is followed by another one."""
        self._end(task, ("snoozed", None) if isinstance(exception, Snooze) else ("retrying", exception))

    def task_finished(self, task: Task[Any]) -> None:
        """End the span of the last attempt. A task that never started has none."""
        self._end(task, self._outcome(task))

    def _start(self, task: Task[Any]) -> Span | None:
        return self._tracer.start_span(f"task {task.name}", attributes=attributes(task))

    def _outcome(self, task: Task[Any]) -> Outcome:
        return outcome(task)

    def _end(self, task: Task[Any], outcome: Outcome) -> None:
        span = self._spans.pop(task.id, None)
        if span is None:
            return
        name, error = outcome
        span.set_attribute("task.outcome", name)
        if error is not None:
            span.set_attribute("error.type", error_type(error))
            span.record_exception(error)
            span.set_status(StatusCode.ERROR)
        elif task.lost:
            span.set_status(StatusCode.ERROR, task.reason)
        span.end()


def outcome(task: Task[Any]) -> Outcome:
    """Return how a task has ended, and its exception if it has failed."""
    return str(task.state), task.exception if task.state is TaskState.FAILED else None


def error_type(error: BaseException) -> str:
    """Return the name of the class of an exception, as the semantic conventions define it."""
    return _qualified(type(error))


def attributes(task: Task[Any]) -> dict[str, str | int]:
    """Return the attributes that identify the task, which never include its arguments."""
    file, _, line = task.where.rpartition(":")
    attributes: dict[str, str | int] = {
        "task.id": task.id,
        "task.name": task.name,
        "task.attempt": task.attempts,
        "code.function.name": function_name(task.func),
        "code.file.path": file,
        "code.line.number": int(line),
    }
    if task.phase is not None:
        attributes["task.phase"] = task.phase.name
    return attributes


def function_name(func: Callable[..., Any]) -> str:
    """Return the name of a function with its module, as the semantic conventions define it."""
    while isinstance(func, partial):
        func = func.func
    return _qualified(func if hasattr(func, "__qualname__") else type(func))


def _qualified(thing: Any) -> str:
    module: str | None = getattr(thing, "__module__", None)  # a method of a builtin class has none
    name: str = thing.__qualname__
    return name if module in ("builtins", None) else f"{module}.{name}"
