"""What keeps the telemetry of FastAPI apart from what tasks do."""

from __future__ import annotations

from typing import Any

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach

try:
    from fastapi.telemetry import get_telemetry_data
except ImportError:  # pragma: no cover  # before FastAPI has telemetry of its own

    def get_telemetry_data() -> Any:  # type: ignore[misc]  # all that is asked is whether it is None
        """Return nothing."""
        return None


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
