"""What `ProcrastinateEngine` was given for its workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from uuid import uuid4

from tasks_core.engines import DEFAULT_QUEUE


@dataclass(slots=True)
class Beats:
    """When the database has acknowledged a sign of life of a worker of this process for the last time."""

    at: float | None = None

    def note(self) -> None:
        self.at = monotonic()

    def age(self) -> float | None:
        """Return seconds; `None` if no worker runs."""
        at = self.at
        return None if at is None else monotonic() - at


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
    beats: Beats = field(default_factory=Beats, compare=False)
    holder: str = field(default_factory=lambda: uuid4().hex, compare=False)
    """By what the database knows this engine of this process, where processes take turns."""

    @property
    def kept(self) -> dict[str, float]:
        """Seconds for which tasks that have ended are kept, by their state."""
        return {"succeeded": self.keep_finished, "failed": self.keep_failed, "cancelled": self.keep_cancelled}

    def stored_queue(self, name: str) -> str:
        """Return what a queue is called in the database."""
        return self.queue if name == DEFAULT_QUEUE else name

    def queue_of(self, stored: str) -> str:
        """Return the name that a function or a caller gives to a queue of the database."""
        return DEFAULT_QUEUE if stored == self.queue else stored
