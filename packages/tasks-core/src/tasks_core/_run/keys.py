"""Keys: which task has a key, and which tasks wait until it has ended."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

from tasks_core._support.log import logger
from tasks_core._task import PENDING, Task

from .ledger import Ledger, title


class KeyOwner(Protocol):
    """What keys need from the runner."""

    ledger: Ledger

    def now(self) -> float: ...
    def discard(self, task: Task[Any], reason: str) -> None: ...


class Keys:
    """
    The keys of the tasks of a scheduler.

    A task takes its key when nothing else but its delay and the limits is in its way, and has it until it has ended,
    between its attempts too. Only then may the next task of the key start. Everything is O(1) for each task, and
    nothing is kept for a key that no task has.
    """

    __slots__ = ("_arriving", "_holders", "_runner", "_waiting")

    def __init__(self, runner: KeyOwner) -> None:
        self._runner = runner
        # Ids, not tasks: the ledger has the tasks that have not ended.
        self._holders: dict[str, int] = {}
        # When the delays of those that wait end, by their ids, in order. A dictionary would scan what was removed.
        self._waiting: dict[str, OrderedDict[int, float]] = {}

        # The last one that another thread has scheduled and that the event loop has not seen yet.
        self._arriving: dict[str, Task[Any]] = {}

    def arrive(self, task: Task[Any]) -> None:
        """Let calls join a task before the event loop has seen it; from another thread, before it is accepted."""
        if task.phase is None or task.phase.opened:
            assert task.config.key is not None
            self._arriving[task.config.key] = task

    def forget(self, task: Task[Any]) -> None:
        """Undo `arrive()`."""
        key = task.config.key
        if self._arriving and key is not None and self._arriving.get(key) is task:
            self._arriving.pop(key, None)

    def find_joined(self, task: Task[Any]) -> Task[Any] | None:
        """Return the task that *task*, which was not accepted yet, joins; from any thread."""
        config = task.config
        assert config.key is not None
        if config.on_conflict not in (None, "join") or (task.phase is not None and not task.phase.opened):
            return None
        joined = self._arriving.get(config.key) or self._last(config.key)
        # One that is not in the ledger is not accepted yet, and may be refused.
        if joined is None or joined._state.finished or self._runner.ledger.get(joined.id) is None:
            return None
        logger.info("No task was made of the call at %s: %s has its key %r", task.where, title(joined), config.key)
        return joined

    def take(self, task: Task[Any], delay: float) -> bool:
        """Return whether the task has its key; otherwise it waits, or was discarded. Call on the loop."""
        key = task.config.key
        assert key is not None
        self.forget(task)
        last = self._last(key)
        if last is None or self._holders[key] == task.id:
            self._holders[key] = task.id
            return True
        if task.config.on_conflict in (None, "join"):
            self._runner.discard(task, f"task #{last.id} has its key {key!r}")
            return False
        if task.config.on_conflict == "replace" and self._replace_waiting(key, task):
            return True
        self._waiting.setdefault(key, OrderedDict())[task.id] = self._runner.now() + delay
        return False

    def _replace_waiting(self, key: str, task: Task[Any]) -> bool:
        """Discard the tasks of the key that have not started; return whether *task* has the key now."""
        reason = f"task #{task.id} replaced it, which has the same key {key!r}"
        for waiting in list(self._waiting.pop(key, ())):
            # An observer may end one of them when it hears of the end of another.
            if (replaced := self._runner.ledger.get(waiting)) is not None:
                self._runner.discard(replaced, reason)
        holder = self._runner.ledger.get(self._holders[key])
        if holder is None or holder._state is not PENDING:
            return False
        self._holders[key] = task.id  # first, so that the end of the other does not release the key
        self._runner.discard(holder, reason)
        return True

    def release(self, task: Task[Any]) -> tuple[Task[Any], float] | None:
        """Note the end of a task; return the task that has the key next, and the seconds that are left of its delay."""
        key = task.config.key
        assert key is not None
        self.forget(task)
        waiting = self._waiting.get(key)
        if self._holders.get(key) != task.id:
            if waiting is not None and waiting.pop(task.id, None) is not None and not waiting:
                del self._waiting[key]
            return None
        if not waiting:
            del self._holders[key]
            return None
        number, due = waiting.popitem(last=False)
        if not waiting:
            del self._waiting[key]
        following = self._runner.ledger.get(number)
        assert following is not None  # what ends while it waits has been removed above
        self._holders[key] = number
        return following, max(0.0, due - self._runner.now())

    def _last(self, key: str) -> Task[Any] | None:
        waiting = self._waiting.get(key)
        number = next(reversed(waiting), None) if waiting else self._holders.get(key)
        return None if number is None else self._runner.ledger.get(number)

    def __len__(self) -> int:
        return len(self._holders) + len(self._waiting) + len(self._arriving)
