"""Which observers the tasks of a scheduler need for OpenTelemetry, by what is installed and configured."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from tasks_core._observer import observe
from tasks_core._telemetry.config import TelemetryConfig, check_telemetry, find_meter, find_tracer

from .operate import MeteredEngine
from .trace import opentelemetry, submit_tracers

if TYPE_CHECKING:
    from tasks_core._scheduler import TaskScheduler

_INTERVAL = 15.0


class Telemetry:
    """
    Registers the observers that a `TelemetryConfig` asks for.

    Raises:
        InvalidConfigError: there is no such setting, or it has a value that it cannot have.
    """

    __slots__ = ("config",)

    def __init__(self, config: TelemetryConfig | None) -> None:
        self.config: TelemetryConfig = check_telemetry(config)

    def observe(self, scheduler: TaskScheduler) -> AbstractContextManager[Any]:
        """
        Trace and measure the tasks of *scheduler* until the returned context manager exits.

        An observer is registered only for what has a provider at the time of the call. Without one, tasks pay nothing.
        """
        observers = ExitStack()
        if opentelemetry() is None:
            return observers
        tracer = find_tracer(self.config)
        if tracer is not None:
            from .spans import DurableSpans

            submit_tracers[scheduler] = tracer
            observers.callback(submit_tracers.pop, scheduler, None)
            observers.enter_context(observe(DurableSpans(scheduler, tracer)))
        meter = find_meter(self.config)
        if meter is not None:
            from .spans import DurableMetrics

            observers.enter_context(observe(DurableMetrics(scheduler, meter)))
        return observers

    def queue_gauges(self, engine: object) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """
        Return a coroutine function that measures the queues of *engine* until it is cancelled, if there is a need.

        There is none without a provider of metrics, and for an engine that is no `MeteredEngine`.
        """
        if opentelemetry() is None or not self.config.get("queues", True) or not isinstance(engine, MeteredEngine):
            return None
        meter = find_meter(self.config)
        if meter is None:
            return None
        from .gauges import QueueGauges

        return QueueGauges(engine, meter, self.config.get("queue_interval", _INTERVAL)).run
