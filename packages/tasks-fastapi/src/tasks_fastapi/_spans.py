"""A span for each attempt of a task, in the trace in which the task was scheduled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from opentelemetry.trace import Span, StatusCode, Tracer, use_span
from tasks_core import Task, TaskObserver, TaskScheduler, TaskState
from tasks_core.types import RunAttempt

logger = logging.getLogger("tasks_fastapi")


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
            span = self._tracer.start_span(f"task {task.name}", attributes=_attributes(task))
        except Exception:  # raised by a sampler or a processor, which must not fail the task
            logger.exception("OpenTelemetry could not start a span; the task is not affected")
            return await run()
        # task_retrying() or task_finished() ends the span, because only they know what the end of the attempt means.
        self._spans[task.id] = span
        with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            return await run()

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        """End the span of an attempt that is followed by another one."""
        self._end(task, "retrying", exception)

    def task_finished(self, task: Task[Any]) -> None:
        """End the span of the last attempt. A task that never started has none."""
        self._end(task, task.state, task.exception if task.state is TaskState.FAILED else None)

    def _end(self, task: Task[Any], outcome: str, error: BaseException | None) -> None:
        span = self._spans.pop(task.id, None)
        if span is None:
            return
        span.set_attribute("task.outcome", str(outcome))
        if error is not None:
            span.set_attribute("error.type", error_type(error))
            span.record_exception(error)
            span.set_status(StatusCode.ERROR)
        elif task.lost:
            span.set_status(StatusCode.ERROR, task.reason)
        span.end()


def error_type(error: BaseException) -> str:
    """Return the name of the class of an exception, as the semantic conventions define it."""
    return _qualified(type(error))


def _attributes(task: Task[Any]) -> dict[str, str | int]:
    """Return the attributes that identify the task, which never include its arguments."""
    file, _, line = task.where.rpartition(":")
    attributes: dict[str, str | int] = {
        "task.id": task.id,
        "task.name": task.name,
        "task.attempt": task.attempts,
        "code.function.name": _function_name(task.func),
        "code.file.path": file,
        "code.line.number": int(line),
    }
    if task.phase is not None:
        attributes["task.phase"] = task.phase.name
    return attributes


def _function_name(func: Callable[..., Any]) -> str:
    while isinstance(func, partial):
        func = func.func
    return _qualified(func if hasattr(func, "__qualname__") else type(func))


def _qualified(thing: Any) -> str:
    return thing.__qualname__ if thing.__module__ in ("builtins", None) else f"{thing.__module__}.{thing.__qualname__}"
