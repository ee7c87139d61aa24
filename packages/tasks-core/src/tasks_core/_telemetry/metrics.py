"""Metrics of tasks: how many run, how long they take, how many fail, how many are lost."""

from __future__ import annotations

from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry.metrics import Meter

from tasks_core._decision import Snooze
from tasks_core._observer import TaskObserver
from tasks_core._scheduler import TaskScheduler
from tasks_core._task import Task

from .spans import Outcome, error_type, outcome

# The buckets that FastAPI uses for its requests, and longer ones.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 300, 600, 1800, 3600)


class TaskInstruments:
    """The instruments of one meter."""

    __slots__ = ("duration", "failures", "losses", "running")

    def __init__(self, meter: Meter) -> None:
        self.running = meter.create_up_down_counter(
            "tasks.running", unit="{task}", description="Number of tasks that run."
        )
        self.duration = meter.create_histogram(
            "tasks.duration",
            unit="s",
            description="Duration of the attempts of tasks.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.failures = meter.create_counter(
            "tasks.failures", unit="{task}", description="Number of tasks whose last attempt failed."
        )
        self.losses = meter.create_counter(
            "tasks.losses",
            unit="{task}",
            description="Number of tasks that were cancelled or discarded without a request to do so.",
        )


_instruments: WeakKeyDictionary[Meter, TaskInstruments] = WeakKeyDictionary()


def instruments_of(meter: Meter) -> TaskInstruments:
    """Return the instruments of a meter, created once: a scheduler may live as long as a request."""
    if meter not in _instruments:
        _instruments[meter] = TaskInstruments(meter)
    return _instruments[meter]


class TaskMetrics(TaskObserver):
    """Records the metrics of the tasks of one scheduler, by name and phase."""

    def __init__(self, scheduler: TaskScheduler, meter: Meter) -> None:
        self._scheduler = scheduler
        self._instruments = instruments_of(meter)
        self._started: dict[int, float] = {}

    def task_started(self, task: Task[Any]) -> None:
        """Count the attempt as running."""
        if self._scheduler.owns(task):
            self._started[task.id] = perf_counter()
            self._instruments.running.add(1, self._labels(task))

    def task_retrying(self, task: Task[Any], exception: Exception, delay: float) -> None:
        """Record an attempt that is followed by another one."""
        if isinstance(exception, Snooze):
            self._attempt_ended(task, {"task.outcome": "snoozed"})
        else:
            self._attempt_ended(task, {"task.outcome": "retrying", "error.type": error_type(exception)})

    def task_finished(self, task: Task[Any]) -> None:
        """Record the last attempt, if there was one, and count a failure or a loss."""
        if not self._scheduler.owns(task):
            return
        name, error = self._outcome(task)
        labels = {"task.outcome": name}
        if error is not None:
            labels["error.type"] = error_type(error)
        if name == "failed":
            self._instruments.failures.add(1, {**self._labels(task), "error.type": labels["error.type"]})
        if task.lost:
            self._instruments.losses.add(1, {**self._labels(task), **labels})
        self._attempt_ended(task, labels)

    def _outcome(self, task: Task[Any]) -> Outcome:
        return outcome(task)

    def _labels(self, task: Task[Any]) -> dict[str, str]:
        if task.phase is None:
            return {"task.name": task.name}
        return {"task.name": task.name, "task.phase": task.phase.name}

    def _attempt_ended(self, task: Task[Any], labels: dict[str, str]) -> None:
        started = self._started.pop(task.id, None)
        if started is not None:
            self._instruments.running.add(-1, self._labels(task))
            self._instruments.duration.record(perf_counter() - started, {**self._labels(task), **labels})
