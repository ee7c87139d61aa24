"""A delivery that runs as a task of the scheduler of a worker, as observers see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks_core._task import Task

    from .engine import Delivery


class Delivered(ABC):
    """A delivery that a task of the worker runs."""

    __slots__ = ()

    @property
    @abstractmethod
    def delivery(self) -> Delivery:
        """What the engine has delivered."""

    @property
    @abstractmethod
    def engine_name(self) -> str:
        """The name of the engine."""

    @abstractmethod
    def outcome(self, task: Task[Any]) -> str:
        """
        Return what has become of the call now that *task* has ended: its state, or where the call goes next.

        `"retrying"`: the attempt has failed, and there is another one. `"redelivered"`: the call is back in the queue
        without a failure, because the worker is being stopped.
        """


def delivered(task: Task[Any]) -> Delivered | None:
    """Return the delivery that *task* runs; `None` for any other task."""
    # By its handler, which only the task of a delivery has: one more reference for each task would be for nothing.
    attempt = getattr(task.config.on_error, "__self__", None)
    return attempt if isinstance(attempt, Delivered) else None
