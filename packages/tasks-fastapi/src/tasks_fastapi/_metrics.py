"""Metrics of tasks: how many run, how long they take, how many fail, how many are lost."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from opentelemetry.metrics import Meter
from tasks_core import Task, TaskObserver, TaskScheduler, TaskState

from ._spans import error_type

# The buckets that FastAPI uses for its requests, and longer ones.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 300, 600, 1800, 3600)


class TaskInstruments:
    """The instruments of one meter; created once for each meter."""

    __slots__ = ("duration", "failures", "losses", "running")

    def __init__(self, meter: Meter) -> None:
        self.running = meter.create_up_down_counter(
            "tasks.running", unit="{task}", description="Number of tasks that run."
        )
        self.duration = meter.create_histogram(
            "tasks.duration",
            unit="s",
            description="Duration of the attempts of tasks.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self.failures = meter.create_counter(
            "tasks.failures", unit="{task}", description="Number of tasks whose last attempt failed."
        )
        self.losses = meter.create_counter(
            "tasks.losses",
            unit="{task}",
            description="Number of tasks that were cancelled or discarded without a request to do so.",
        )


class TaskMetrics(TaskObserver):
    """Records the metrics of the tasks of one scheduler, by name and phase."""

    def __init__(self, scheduler: TaskScheduler, instruments: TaskInstruments) -> None:
        self._scheduler = scheduler
        self._instruments = instruments
        self._started: dict[int, float] = {}

    def task_started(self, task: Task[Any]) -> None:
        """Count the attempt as running."""
        if self._scheduler.owns(task):
            self._started[task.id] = perf_counter()
            self._instruments.running.add(1, _labels(task))

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        """Record an attempt that is followed by another one."""
        self._attempt_ended(task, {"task.outcome": "retrying", "error.type": error_type(exception)})

    def task_finished(self, task: Task[Any]) -> None:
        """Record the last attempt, if there was one, and count a failure or a loss."""
        if not self._scheduler.owns(task):
            return
        labels = {"task.outcome": str(task.state)}
        if task.state is TaskState.FAILED:
            labels["error.type"] = error_type(task.exception)  # type: ignore[arg-type]  # a failed task has one
            self._instruments.failures.add(1, {**_labels(task), "error.type": labels["error.type"]})
        if task.lost:
            self._instruments.losses.add(1, {**_labels(task), **labels})
        self._attempt_ended(task, labels)

    def _attempt_ended(self, task: Task[Any], labels: dict[str, str]) -> None:
        started = self._started.pop(task.id, None)
        if started is not None:
            self._instruments.running.add(-1, _labels(task))
            self._instruments.duration.record(perf_counter() - started, {**_labels(task), **labels})


def _labels(task: Task[Any]) -> dict[str, str]:
    if task.phase is None:
        return {"task.name": task.name}
    return {"task.name": task.name, "task.phase": task.phase.name}
