"""Trace context that is stored with a durable call; without OpenTelemetry, nothing happens here."""

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
    """Return the headers that identify the current span to another process."""
    headers: dict[str, str] = {}
    modules = _opentelemetry()
    if modules is not None:
        modules[0].inject(headers)
    return headers


@contextmanager
def continued_span(name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[None]:
    """Run the block in a span of the trace of *headers*; an exception that leaves the block is recorded."""
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
