"""How many more calls a worker may claim, and of which queues: its slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks_core.engines import Slots, registered_queues

from ._options import WorkOptions


@dataclass(slots=True)
class _Room:
    """Slots that the calls of some queues share."""

    slots: int
    queues: list[str] = field(default_factory=list)
    taken: int = 0

    @property
    def free(self) -> int:
        return self.slots - self.taken


class WorkerSlots:
    """The slots of a worker, by queue as it is named in the database: one room for all queues, or a room for each."""

    def __init__(self, slots: Slots, options: WorkOptions) -> None:
        self._options = options
        self._shared: _Room | None = None
        self._rooms: dict[str, _Room] = {}
        if isinstance(slots, Mapping):
            for name, count in slots.items():
                queue = options.stored_queue(name)
                room = self._rooms.setdefault(queue, _Room(0, [queue]))
                room.slots += count
        else:
            self._shared = _Room(slots)
        self.refresh()

    def refresh(self) -> None:
        """Serve the queues of functions that have been registered since, if the queues were not named."""
        if self._shared is not None:
            self._shared.queues = sorted(map(self._options.stored_queue, registered_queues()))
            self._rooms.update(dict.fromkeys(self._shared.queues, self._shared))

    @property
    def queues(self) -> list[str]:
        """All queues that are served."""
        return list(self._rooms)

    def free(self) -> dict[str, Any]:
        """Return the parameters of a claim, of which `queues` is empty if no slot is free."""
        rooms = self._rooms.values() if self._shared is None else (self._shared,)
        free = [room for room in rooms if room.free > 0]
        served = [(queue, number) for number, room in enumerate(free, 1) for queue in room.queues]
        return {
            "queues": [queue for queue, _ in served],
            "rooms": [number for _, number in served],
            "free": [room.free for room in free],
        }

    def take(self, queue: str) -> None:
        self._rooms[queue].taken += 1

    def give_back(self, queue: str) -> None:
        self._rooms[queue].taken -= 1
