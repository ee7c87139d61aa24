"""What tasks emit and report, and the tasks that are kept for their followers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex, token_urlsafe
from threading import RLock
from typing import Any, Protocol

from tasks_core._clock import Clock
from tasks_core._journal import EmittedEvent, Journal
from tasks_core._loop.loop import Loop
from tasks_core._observer import hooks, notify
from tasks_core._task import Task

from .ledger import Ledger

# For the first event of a task, which two threads may emit at the same moment.
_lock = RLock()


@dataclass(frozen=True, slots=True)
class KeptTask:
    """A task that `scheduler.keep()` keeps for its followers."""

    id: str
    """It cannot be guessed: code that has it was given it."""
    task: Task[Any]
    owner: str | None
    """Whose task it is, as the caller of `keep()` said."""


class Forward(Protocol):
    """Passes on what the tasks of a scheduler emit and report, from any thread and without waiting."""

    def emitted(self, task: Task[Any], event: EmittedEvent, /) -> None: ...
    def reported(self, task: Task[Any], progress: bytes, /) -> None: ...


class FollowingOwner(Protocol):
    """What this needs from the runner."""

    loop: Loop
    ledger: Ledger
    steady_clock: Clock


class Following:
    """Makes a journal for each task that emits, reports or is followed, and finds tasks that are kept, by their ids."""

    __slots__ = ("_ending", "_kept", "_mark", "_runner", "follow_for", "forward")

    def __init__(self, runner: FollowingOwner, follow_for: float) -> None:
        self._runner = runner
        self.follow_for = follow_for
        self.forward: Forward | None = None
        self._mark = ""
        self._kept: dict[str, KeptTask] = {}
        self._ending: deque[tuple[float, str]] = deque()  # until when, and the ids, of tasks that have ended

    def emit(self, task: Task[Any], text: bytes) -> None:
        """Add an event of a task; from any thread."""
        journal = self.journal_of(task)
        forward = self.forward
        then: Callable[[EmittedEvent], object] | None = None
        if forward is not None:

            def then(event: EmittedEvent) -> None:
                forward.emitted(task, event)

        event = journal.append(text, then)
        if hooks.task_emitted:
            notify(hooks.task_emitted, task, event)
        if journal.followed:
            self._runner.loop.call(journal.wake)

    def report(self, task: Task[Any], text: bytes) -> None:
        """Replace the progress value of a task; from any thread."""
        journal = self.journal_of(task)
        journal.report(text)
        if self.forward is not None:
            self.forward.reported(task, text)
        if hooks.task_reported:
            notify(hooks.task_reported, task)
        if journal.followed:
            self._runner.loop.call(journal.wake)

    def journal_of(self, task: Task[Any]) -> Journal:
        """Return the journal of a task, which is made on first use; from any thread."""
        journal: Journal | None = getattr(task, "_journal", None)
        if journal is not None:
            return journal
        with _lock:
            journal = getattr(task, "_journal", None)
            if journal is None:
                journal = task._journal = Journal()
        journals = self._runner.ledger.journals
        journals[task.id] = journal
        if task._state.finished:  # it may have ended before the line above
            journals.pop(task.id, None)
        return journal

    def end(self, task: Task[Any]) -> None:
        """Wake the followers of a task that has ended. Call on the event loop."""
        journal = self._runner.ledger.journals.pop(task.id, None)
        if journal is None:
            return
        journal.wake()
        for id_ in journal.kept:
            self._expire_later(id_)

    # ---- tasks that are kept ----

    def keep(self, task: Task[Any], owner: str | None, id_: str | None = None) -> str:
        """Keep a task until `follow_for` seconds after its end; return the id that it is found by; from any thread."""
        self._mark = self._mark or token_hex(4)
        kept = KeptTask(id_ or f"{self._mark}-{token_urlsafe(18)}", task, owner)
        self._kept[kept.id] = kept
        self.journal_of(task).kept.append(kept.id)
        if task._state.finished:
            self._expire_later(kept.id)
        return kept.id

    def first_kept(self, task: Task[Any]) -> KeptTask | None:
        """Return what the first `keep()` of a task has kept, if there was one; from any thread."""
        return next((kept for id_ in self.journal_of(task).kept if (kept := self.find(id_)) is not None), None)

    def find(self, id_: str) -> KeptTask | None:
        """Return the task that is kept under an id; from any thread."""
        self._forget_expired()
        return self._kept.get(id_)

    def made(self, id_: str) -> bool:
        """Return whether `keep()` of this scheduler may have returned the id."""
        return bool(self._mark) and id_.startswith(self._mark + "-")

    def close(self) -> None:
        """Forget all tasks."""
        self._kept.clear()
        self._ending.clear()

    def _expire_later(self, id_: str) -> None:
        self._forget_expired()
        self._ending.append((self._runner.steady_clock.now() + self.follow_for, id_))

    def _forget_expired(self) -> None:
        now = self._runner.steady_clock.now()
        while self._ending:
            until, id_ = self._ending[0]
            if until > now:
                return
            self._ending.popleft()
            self._kept.pop(id_, None)
