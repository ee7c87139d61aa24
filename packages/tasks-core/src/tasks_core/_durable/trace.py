"""Trace context that is stored with a durable call; without OpenTelemetry, nothing happens here."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tasks_core._support.log import logger

if TYPE_CHECKING:
    from types import ModuleType

    from opentelemetry.trace import Span, Tracer

    from tasks_core._scheduler import TaskScheduler
    from tasks_core._task import Task


@cache
def opentelemetry() -> tuple[ModuleType, ModuleType] | None:
    """Return the modules `propagate` and `trace`; `None` if OpenTelemetry is not installed."""
    try:
        from opentelemetry import propagate, trace
    except ImportError:
        return None
    return propagate, trace


submit_tracers: WeakKeyDictionary[TaskScheduler, Tracer] = WeakKeyDictionary()
"""The tracers of the schedulers whose submits are spans."""


def submit_span(
    scheduler: TaskScheduler | None, task: Task[Any], name: str, engine: str, queue: str, key: str
) -> Span | None:
    """
    Start the span of a submit, if submits of *scheduler* are traced.

    It begins with the call and not with the first attempt of the submit, because the call is what is stored: also by a
    commit that comes before the attempt.
    """
    tracer = None if scheduler is None else submit_tracers.get(scheduler)
    modules = opentelemetry()
    if tracer is None or modules is None:
        return None
    attributes: dict[str, str | int] = {
        "task.id": task.id,
        "task.name": name,
        "task.key": key,
        "messaging.system": engine,
        "messaging.operation.name": "submit",
        "messaging.operation.type": "send",
        "messaging.destination.name": queue,
    }
    try:
        return tracer.start_span(f"submit {name}", kind=modules[1].SpanKind.PRODUCER, attributes=attributes)
    except Exception:  # raised by a sampler or a processor, which must not fail the call
        logger.exception("OpenTelemetry could not start a span; the task is not affected")
        return None


def trace_headers(span: Span | None) -> dict[str, str]:
    """Return the headers that identify *span*, or the current one, to another process."""
    headers: dict[str, str] = {}
    modules = opentelemetry()
    if modules is not None:
        propagate, trace = modules
        propagate.inject(headers, None if span is None else trace.set_span_in_context(span))
    return headers
