"""What `ProcrastinateEngine` was given for its workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """See `ProcrastinateEngine` for what each of them means."""

    queue: str
    heartbeat: float
    max_deaths: int
    unknown_for: float
    keep_finished: float
    keep_failed: float
    keep_cancelled: float
