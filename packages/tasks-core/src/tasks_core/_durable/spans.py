"""Spans and metrics of durable tasks: a producer span for each submit, a consumer span for each run."""

from __future__ import annotations

from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry.metrics import Histogram, Meter
from opentelemetry.propagate import extract
from opentelemetry.trace import Link, Span, SpanKind, get_current_span

from tasks_core._scheduler import TaskScheduler
from tasks_core._task import Task, TaskState
from tasks_core._telemetry.metrics import BUCKETS, TaskMetrics
from tasks_core._telemetry.spans import Outcome, TaskSpans, attributes, error_type, function_name, outcome

from .delivered import delivered
from .task import DurableTask


def _outcome(task: Task[Any]) -> Outcome:
    name, error = outcome(task)
    attempt = delivered(task)
    return name if attempt is None else attempt.outcome(task), error


class DurableSpans(TaskSpans):
    """
    `TaskSpans`, by the conventions for messages where a task is a submit, or the run of what was submitted.

    A run is in the trace of its submit, and has a link to it.
    """

    def task_finished(self, task: Task[Any]) -> None:
        """End the span of the last attempt; that of a submit also if there was no attempt."""
        if isinstance(task, DurableTask) and task.span is not None and self._scheduler.owns(task):
            if task.state is TaskState.SUCCEEDED:
                task.span.set_attribute("messaging.message.id", task.result().id)
            self._spans[task.id] = task.span
        super().task_finished(task)

    def _start(self, task: Task[Any]) -> Span | None:
        if isinstance(task, DurableTask):
            span: Span | None = task.span
            if span is not None:
                span.set_attributes({**attributes(task), "task.name": task.call.name})
            return span
        attempt = delivered(task)
        if attempt is None:
            return super()._start(task)
        delivery = attempt.delivery
        context = extract(delivery.call.headers)
        submit = get_current_span(context).get_span_context()
        return self._tracer.start_span(
            f"run {task.name}",
            context,
            SpanKind.CONSUMER,
            {
                "task.id": task.id,
                "task.name": task.name,
                "task.key": delivery.call.idempotency_key,
                "task.attempt": task.attempts,
                "code.function.name": function_name(task.func),
                "messaging.system": attempt.engine_name,
                "messaging.operation.name": "run",
                "messaging.operation.type": "process",
                "messaging.destination.name": delivery.call.queue,
                "messaging.message.id": delivery.id,
            },
            [Link(submit)],  # an SDK leaves out one that leads nowhere
        )

    def _outcome(self, task: Task[Any]) -> Outcome:
        return _outcome(task)


_durations: WeakKeyDictionary[Meter, Histogram] = WeakKeyDictionary()


def _submit_duration_of(meter: Meter) -> Histogram:
    if meter not in _durations:
        _durations[meter] = meter.create_histogram(
            "tasks.submit.duration",
            unit="s",
            description="Duration of the submits of durable tasks, from the first attempt to the acknowledgement.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
    return _durations[meter]


class DurableMetrics(TaskMetrics):
    """`TaskMetrics`, in which a submit does not count as a task that runs, and runs have their queue."""

    def __init__(self, scheduler: TaskScheduler, meter: Meter) -> None:
        super().__init__(scheduler, meter)
        self._submit_duration = _submit_duration_of(meter)
        self._submits: dict[int, float] = {}

    def task_started(self, task: Task[Any]) -> None:
        """Count the attempt as running, unless it is a submit."""
        if not isinstance(task, DurableTask):
            super().task_started(task)
        elif self._scheduler.owns(task):
            self._submits[task.id] = perf_counter()

    def task_finished(self, task: Task[Any]) -> None:
        """Record the last attempt, or the submit."""
        if not isinstance(task, DurableTask):
            super().task_finished(task)
        elif self._scheduler.owns(task):
            self._submit_ended(task)

    def _submit_ended(self, task: DurableTask) -> None:
        name, error = self._outcome(task)
        labels = {**self._labels(task), "task.outcome": name}
        if error is not None:
            labels["error.type"] = error_type(error)
        if task.lost:
            self._instruments.losses.add(1, labels)
        started = self._submits.pop(task.id, None)
        if started is not None:
            self._submit_duration.record(perf_counter() - started, labels)

    def _outcome(self, task: Task[Any]) -> Outcome:
        return _outcome(task)

    def _labels(self, task: Task[Any]) -> dict[str, str]:
        labels = super()._labels(task)
        if isinstance(task, DurableTask):
            return {**labels, "task.name": task.call.name, "task.queue": task.call.queue}
        attempt = delivered(task)
        return labels if attempt is None else {**labels, "task.queue": attempt.delivery.call.queue}
