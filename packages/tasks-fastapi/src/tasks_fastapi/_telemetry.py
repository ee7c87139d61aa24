"""OpenTelemetry: which providers are configured, and the observers that they need."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from importlib.metadata import version
from typing import Any, TypedDict

from opentelemetry import baggage, metrics, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from tasks_core import TaskScheduler, observe
from tasks_core.exceptions import InvalidConfigError

from ._metrics import TaskInstruments, TaskMetrics
from ._spans import TaskSpans

try:
    from fastapi.telemetry import get_telemetry_data
except ImportError:  # pragma: no cover  # before FastAPI has telemetry of its own

    def get_telemetry_data() -> Any:  # type: ignore[misc]  # all that is asked is whether it is None
        """Return nothing."""
        return None


_NAME = "tasks_fastapi"
_VERSION = version("tasks-fastapi")


class TelemetryConfig(TypedDict, total=False):
    """
    Settings for `add_tasks(app, telemetry={...})`, named as those of `FastAPI(telemetry={...})` are.

    A setting that is left out has its default. `{"tracing": False, "metrics": False}` turns telemetry off.
    """

    tracer_provider: TracerProvider | None
    """The provider of spans. Default: the global provider."""
    meter_provider: MeterProvider | None
    """The provider of metrics. Default: the global provider."""
    tracing: bool
    """Whether each attempt of a task is a span. Default: `True`."""
    metrics: bool
    """Whether metrics of tasks are recorded. Default: `True`."""


class Telemetry:
    """Registers the observers that `add_tasks(app, telemetry=...)` asks for."""

    __slots__ = ("_config", "_instruments", "_meter_provider")

    def __init__(self, config: TelemetryConfig | None) -> None:
        self._config: TelemetryConfig = config or {}
        unknown = set(self._config) - set(TelemetryConfig.__annotations__)
        if unknown:
            raise InvalidConfigError(
                f"telemetry has no setting {min(unknown)!r}; it has {', '.join(TelemetryConfig.__annotations__)}"
            )
        self._meter_provider: MeterProvider | None = None
        self._instruments: TaskInstruments | None = None

    def observe(self, scheduler: TaskScheduler) -> AbstractContextManager[Any]:
        """
        Trace and measure the tasks of *scheduler* until the returned context manager exits.

        An observer is registered only for what has a provider at the time of the call. Without one, tasks pay nothing.
        """
        observers = ExitStack()
        tracer = self._tracer()
        if tracer is not None:
            observers.enter_context(observe(TaskSpans(scheduler, tracer)))
        instruments = self._find_instruments()
        if instruments is not None:
            observers.enter_context(observe(TaskMetrics(scheduler, instruments)))
        return observers

    def _tracer(self) -> trace.Tracer | None:
        if not self._config.get("tracing", True):
            return None
        provider = self._config.get("tracer_provider") or trace.get_tracer_provider()
        if _is_placeholder(provider, TracerProvider):
            return None
        tracer = provider.get_tracer(_NAME, _VERSION)
        return None if isinstance(tracer, trace.NoOpTracer) else tracer

    def _find_instruments(self) -> TaskInstruments | None:
        if not self._config.get("metrics", True):
            return None
        provider = self._config.get("meter_provider") or metrics.get_meter_provider()
        if _is_placeholder(provider, MeterProvider):
            return None
        if provider is not self._meter_provider:
            meter = provider.get_meter(_NAME, _VERSION)
            self._instruments = None if isinstance(meter, metrics.NoOpMeter) else TaskInstruments(meter)
            self._meter_provider = provider
        return self._instruments


def leave_request() -> object | None:
    """
    Make the telemetry of FastAPI take what follows for no part of the request, if there is one.

    Otherwise the request that a task serves to resolve its dependencies replaces the data of the real one. The span and
    the baggage stay.

    Returns:
        What `return_to_request()` takes; `None` if there is nothing to undo.
    """
    if get_telemetry_data() is None:
        return None
    outside = trace.set_span_in_context(trace.get_current_span(), Context())
    for name, value in baggage.get_all().items():
        outside = baggage.set_baggage(name, value, outside)
    return attach(outside)


def return_to_request(token: Any) -> None:
    """Undo `leave_request()`."""
    detach(token)


def _is_placeholder(provider: object, kind: type) -> bool:
    # The API has no predicate for this, but the providers that it defines itself are those that do nothing.
    return f"{type(provider).__module__}.".startswith(f"{kind.__module__}.")
