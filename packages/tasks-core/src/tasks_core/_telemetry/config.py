"""The settings of telemetry, and the providers that they lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from tasks_core._support.rules import Rule, is_finite_seconds
from tasks_core.exceptions import InvalidConfigError

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider
else:  # annotations can be resolved without OpenTelemetry
    MeterProvider = TracerProvider = Any

_INTERVAL = Rule(lambda value: is_finite_seconds(value) and bool(value), "a number of seconds above 0")


class TelemetryConfig(TypedDict, total=False):
    """
    Settings for `Worker(engine, telemetry={...})` and `add_tasks(app, telemetry={...})`.

    The first four are named as those of `FastAPI(telemetry={...})` are. A setting that is left out has its default.
    `{"tracing": False, "metrics": False}` turns telemetry off.
    """

    tracer_provider: TracerProvider | None
    """The provider of spans. Default: the global provider."""
    meter_provider: MeterProvider | None
    """The provider of metrics. Default: the global provider."""
    tracing: bool
    """Whether each attempt of a task, and each submit of a durable task, is a span. Default: `True`."""
    metrics: bool
    """Whether metrics of tasks and queues are recorded. Default: `True`."""
    queues: bool
    """Whether this process takes its turns in measuring the queues of its engine. Default: `True`."""
    queue_interval: float
    """Seconds between two looks at the queues. Default: 15."""


def check_telemetry(config: TelemetryConfig | None) -> TelemetryConfig:
    """
    Return the settings, which may be none.

    Raises:
        InvalidConfigError: there is no such setting, or it has a value that it cannot have.
    """
    config = config or {}
    unknown = set(config) - set(TelemetryConfig.__annotations__)
    if unknown:
        raise InvalidConfigError(
            f"telemetry has no setting {min(unknown)!r}; it has {', '.join(TelemetryConfig.__annotations__)}"
        )
    if "queue_interval" in config:
        _INTERVAL.check("queue_interval", config["queue_interval"])
    return config


def find_tracer(config: TelemetryConfig) -> Tracer | None:
    """Return the tracer; `None` if nothing is to be traced, or there is no provider. OpenTelemetry is installed."""
    from opentelemetry import trace

    provider = config.get("tracer_provider") or trace.get_tracer_provider()
    if not config.get("tracing", True) or _is_placeholder(provider, trace.TracerProvider):
        return None
    tracer = provider.get_tracer(*_scope())
    return None if isinstance(tracer, trace.NoOpTracer) else tracer


def find_meter(config: TelemetryConfig) -> Meter | None:
    """Return the meter; `None` if nothing is to be measured, or there is no provider. OpenTelemetry is installed."""
    from opentelemetry import metrics

    provider = config.get("meter_provider") or metrics.get_meter_provider()
    if not config.get("metrics", True) or _is_placeholder(provider, metrics.MeterProvider):
        return None
    meter = provider.get_meter(*_scope())
    return None if isinstance(meter, metrics.NoOpMeter) else meter


def _scope() -> tuple[str, str]:
    from importlib.metadata import version

    return "tasks_core", version("tasks-core")


def _is_placeholder(provider: object, kind: type[Any]) -> bool:
    # The API has no predicate for this, but the providers that it defines itself are those that do nothing.
    return f"{type(provider).__module__}.".startswith(f"{kind.__module__}.")
