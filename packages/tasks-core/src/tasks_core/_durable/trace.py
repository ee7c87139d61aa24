"""Trace context on its way with a durable call; nothing happens where OpenTelemetry is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType


@cache
def _opentelemetry() -> tuple[ModuleType, ModuleType] | None:
    try:
        from opentelemetry import propagate, trace
    except ImportError:
        return None
    return propagate, trace


def trace_headers() -> dict[str, str]:
    """Return what the span that is active now is to be known by elsewhere."""
    headers: dict[str, str] = {}
    modules = _opentelemetry()
    if modules is not None:
        modules[0].inject(headers)
    return headers


@contextmanager
def continued_span(name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[None]:
    """Be in a span of the trace that the headers come from; an exception that leaves the block is recorded."""
    modules = _opentelemetry()
    if modules is None:
        yield
        return
    propagate, trace = modules
    tracer = trace.get_tracer("tasks_core")
    with tracer.start_as_current_span(
        name, context=propagate.extract(headers), kind=trace.SpanKind.CONSUMER, attributes=attributes
    ):
        yield
