"""Keys: which task has a key, and which tasks wait until it has ended."""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock
from typing import Any, Protocol

from tasks_core._task import PENDING, Task

from .ledger import Ledger


class KeyOwner(Protocol):
    """What keys need from the runner."""

    ledger: Ledger

    def now(self) -> float: ...
    def discard(self, task: Task[Any], reason: str) -> None: ...


class Joined(Exception):  # noqa: N818  # no error
    """Raised by `Keys.enter()`: the call makes no task, because it joins *task*."""

    def __init__(self, task: Task[Any]) -> None:
        self.task = task


class Keys:
    """
    The keys of the tasks of a scheduler.

    A task takes its key when nothing else but its delay and the limits is in its way, and has it until it has ended,
    between its attempts too. Only then may the next task of the key start. Everything is O(1) for each task, and
    nothing is kept for a key that no task has.

    Any thread may look for the task that it joins, and enters its own into the ledger under the same lock. No code of
    users is called under it: neither observers nor handlers of log records.
    """

    __slots__ = ("_arriving", "_holders", "_lock", "_runner", "_waiting")

    def __init__(self, runner: KeyOwner) -> None:
        self._runner = runner
        # Reentrant: a finalizer or a signal handler that calls schedule() may run in the middle of it.
        self._lock = RLock()
        # Ids, not tasks: the ledger has the tasks that have not ended.
        self._holders: dict[str, int] = {}
        # When the delays of those that wait end, by their ids, in order. A dictionary would scan what was removed.
        self._waiting: dict[str, OrderedDict[int, float]] = {}

        # The last one that was accepted and that the event loop has not seen yet.
        self._arriving: dict[str, Task[Any]] = {}

    def enter(self, task: Task[Any], here: bool, announcing: bool) -> bool:
        """Do what `Ledger.enter()` does, unless *task* joins another: then raise `Joined`. From any thread."""
        key, phase = task.config.key, task.phase
        assert key is not None
        with self._lock:
            if (joined := self.find_joined(task)) is not None:
                raise Joined(joined)
            entered = self._runner.ledger.enter(task, here, announcing)
            if entered and (phase is None or (phase.outcome is not None and task._is_for(phase.outcome))):
                self._arriving[key] = task
        return entered

    def forget(self, task: Task[Any]) -> None:
        """Note that the event loop has seen the task."""
        key = task.config.key
        with self._lock:
            if key is not None and self._arriving.get(key) is task:
                del self._arriving[key]

    def find_joined(self, task: Task[Any]) -> Task[Any] | None:
        """Return the task that *task*, which was not accepted yet, joins; from any thread."""
        config = task.config
        assert config.key is not None
        if config.on_conflict not in (None, "join") or (task.phase is not None and not task.phase.opened):
            return None
        with self._lock:
            return self._arriving.get(config.key) or self._last(config.key)

    def take(self, task: Task[Any], delay: float) -> bool:
        """Return whether the task has its key; otherwise it waits, or was discarded. Call on the loop."""
        key = task.config.key
        assert key is not None
        reason = f"task #{task.id} replaced it, which has the same key {key!r}"
        discarded: list[Task[Any]] = []
        now = self._runner.now()
        with self._lock:
            self.forget(task)
            last = self._last(key)
            has_key = last is None or self._holders[key] == task.id
            if not has_key and task.config.on_conflict in (None, "join"):
                assert last is not None
                reason = f"task #{last.id} has its key {key!r}"
                discarded.append(task)
            elif not has_key:
                if task.config.on_conflict == "replace":
                    discarded, has_key = self._find_replaced(key)
                if not has_key:
                    self._waiting.setdefault(key, OrderedDict())[task.id] = now + delay
            if has_key:
                self._holders[key] = task.id  # first, so that the end of the other does not release the key
        for other in discarded:
            # An observer may end one of them when it hears of the end of another.
            if not other._state.finished:
                self._runner.discard(other, reason)
        return has_key and not task._state.finished

    def _find_replaced(self, key: str) -> tuple[list[Task[Any]], bool]:
        """Return the tasks of the key that have not started, and whether the one that has the key is one of them."""
        replaced = [self._runner.ledger.get(number) for number in self._waiting.pop(key, ())]
        holder = self._runner.ledger.get(self._holders[key])
        free = holder is None or holder._state is PENDING
        if free:
            replaced.append(holder)
        return [task for task in replaced if task is not None], free

    def release(self, task: Task[Any]) -> tuple[Task[Any], float] | None:
        """Note the end of a task; return the task that has the key next, and the seconds that are left of its delay."""
        key = task.config.key
        assert key is not None
        now = self._runner.now()
        with self._lock:
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
            return following, max(0.0, due - now)

    def _last(self, key: str) -> Task[Any] | None:
        waiting = self._waiting.get(key)
        number = next(reversed(waiting), None) if waiting else self._holders.get(key)
        return None if number is None else self._runner.ledger.get(number)

    def __len__(self) -> int:
        return len(self._holders) + len(self._waiting) + len(self._arriving)
