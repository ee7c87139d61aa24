"""How log lines name a durable call, in their text and in their fields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallLabel:
    """
    Identifies a durable call in the log, without its arguments.

    `logger.info("%s is back in the queue", label, extra=label.fields)`
    """

    name: str
    key: str
    id: str
    """The id of its receipt; empty if the engine does not say."""
    queue: str
    attempt: int | None = None
    """`None` where no attempt is meant."""

    def __str__(self) -> str:
        attempt = "" if self.attempt is None else f" attempt {self.attempt},"
        return f"Task {self.name!r}, {self.where},{attempt}"

    @property
    def where(self) -> str:
        """The part of a line that says which call of the function is meant."""
        job = f"job {self.id}, " if self.id else ""
        return f"key {self.key}, {job}queue {self.queue}"

    @property
    def fields(self) -> dict[str, object]:
        """The `extra` of a log record."""
        fields: dict[str, object] = {
            "task_name": self.name,
            "task_key": self.key,
            "task_receipt_id": self.id,
            "task_queue": self.queue,
        }
        if self.attempt is not None:
            fields["task_attempt"] = self.attempt
        return fields
