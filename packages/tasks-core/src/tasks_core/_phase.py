"""Tasks that wait for a moment: the end of a route, the commit of a transaction."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ._config import Outcome, TaskConfig
from ._observer import hooks, notify
from ._schedule import ScheduleTarget, refuse_when
from ._support.rules import show
from ._task import PENDING, Task
from .exceptions import InvalidConfigError

if TYPE_CHECKING:
    from ._scheduler import TaskScheduler


class TaskPhase(ScheduleTarget):
    """
    Collects tasks until `open()` starts them or `discard()` discards them. Only the first of these calls has an effect.

    ```python
    after_commit = TaskPhase(scheduler, "after_commit")
    after_commit.schedule(send_receipt, order.id)
    await session.commit()
    after_commit.open()
    ```

    A task scheduled into an open phase starts at once; one scheduled into a discarded phase is discarded. All methods
    may be called from any thread.

    Args:
        scheduler: Where the tasks run. Its shutdown, its limits and its `config` apply.

        name: The name of the moment in logs, reports and statistics.

        origin: The object that the phase belongs to (a request, a session); observers can read it.

        config: Replaces the configuration of the scheduler for all tasks of the phase, field by field.

        opened: The moment is now: every task starts at once, and has no outcome to wait for (`when` is refused).
    """

    __slots__ = (
        "_discarded",
        "_immediate",
        "_inherited",
        "_outcome",
        "_runner",
        "_waiting",
        "config",
        "name",
        "origin",
    )

    def __init__(
        self,
        scheduler: TaskScheduler,
        name: str,
        *,
        origin: object = None,
        config: TaskConfig | None = None,
        opened: bool = False,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidConfigError(f'TaskPhase(scheduler, {show(name)}): name must be a text, such as "after_commit"')
        if config is not None and config.key is not None:
            raise InvalidConfigError("TaskPhase(config=...): key is for one call: phase.task(key=...).schedule(...)")
        self._runner = scheduler._runner
        self.config = self._inherited = scheduler.config if config is None else scheduler.config.merge(config)
        self._waiting: list[int] = []  # ids: a task that is cancelled while it waits is released at once
        self._immediate = opened
        self._outcome: Outcome | None = "success" if opened else None
        self._discarded: str | None = None
        self.name = str.__str__(name)  # the `__str__` of a subclass may raise
        self.origin = origin

    config: TaskConfig
    """What tasks of the phase get when `.task(...)` does not specify it."""
    name: str
    """The name of the moment."""
    origin: object
    """The object that the phase belongs to."""

    def sibling(self, name: str) -> TaskPhase:
        """
        Return a new phase for another moment of the same origin.

        It has the scheduler, the configuration and the origin of this phase, and is not open. It does not depend on
        what happens to this phase.

        ```python
        after_rollback = after_commit.sibling("after_rollback")
        ```

        Args:
            name: The name of the moment.
        """
        phase = TaskPhase.__new__(TaskPhase)
        self._set_up_sibling(phase, name)
        return phase

    def _set_up_sibling(self, phase: TaskPhase, name: str) -> None:
        # Not by calling the class, which checks its arguments and costs twice as much: a request makes one or two.
        phase._runner = self._runner
        phase.config = phase._inherited = self.config
        phase._waiting = []
        phase._immediate = False
        phase._outcome = None
        phase._discarded = None
        phase.name = name
        phase.origin = self.origin

    @property
    def opened(self) -> bool:
        """Whether the phase has begun."""
        return self._outcome is not None

    @property
    def outcome(self) -> Outcome | None:
        """The outcome that `open()` was called with; `None` before that."""
        return self._outcome

    def open(self, outcome: Outcome = "success") -> None:
        """
        Begin the phase: start the tasks that are for this *outcome* (`TaskConfig.when`), and discard the rest.

        Tasks start at the next turn of the event loop, in the order in which they were scheduled (trio runs the tasks
        of one turn in any order).

        Raises:
            InvalidConfigError: *outcome* is neither `"success"` nor `"error"`.
        """
        if outcome not in ("success", "error"):
            raise InvalidConfigError(f"open({outcome!r}): outcome must be 'success' or 'error'")
        loop = self._runner.loop
        try:
            here = loop.running() is loop.native  # Loop.here(), without the call
        except RuntimeError:
            here = False
        if not here:
            loop.post(partial(self.open, outcome))
        elif self._outcome is not None or self._discarded is not None:
            self._opened_again(outcome)
        else:
            self._outcome = outcome
            if hooks.phase_opened:
                notify(hooks.phase_opened, self, outcome)
            if self._waiting:
                self._pass_on()

    def discard(self, reason: str) -> None:
        """Discard the tasks, and those that are scheduled here later; each is logged with *reason*, at INFO."""
        self._runner.loop.call(self._discard, reason)

    def _opened_again(self, outcome: Outcome) -> None:
        """Do nothing; a kind of phase that holds tasks back although it is open starts them now."""

    def _discard(self, reason: str) -> None:
        if self._outcome is not None or self._discarded is not None:
            return
        self._discarded = reason
        if hooks.phase_discarded:
            notify(hooks.phase_discarded, self, reason)
        self._pass_on()

    def _pass_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for task_id in waiting:
            task = self._runner.ledger.get(task_id)
            if task is not None:
                self._take(task)

    def _take(self, task: Task[Any]) -> None:
        """Keep, start or discard an accepted task, on the thread of the loop."""
        if task._state is not PENDING:
            return  # cancelled before the request of another thread arrived here
        if self._discarded is not None:
            self._runner.ledger.drop(task, self._discarded)
        elif self._outcome is None:
            self._waiting.append(task.id)
        elif self._immediate or (task.config.when is None and self._outcome == "success"):
            self._runner.ready(task)  # the usual case, without the call that follows
        elif task._is_for(self._outcome):
            self._runner.ready(task)
        else:
            self._drop(task, self._outcome)

    def _holds(self, task: Task[Any]) -> bool:
        """Return whether the task waits for the phase."""
        return task.id in self._waiting

    def _drop(self, task: Task[Any], outcome: Outcome) -> None:
        when = task.config.when or "success"
        self._runner.ledger.drop(task, f"it is for when={when!r}, and {self.name} ended in {outcome}")

    def _refuse(self, config: TaskConfig) -> None:
        if self._immediate:
            refuse_when(config)

    _is_phase = True

    def __repr__(self) -> str:
        state = self._outcome or ("waiting" if self._discarded is None else "discarded")
        return f"<{type(self).__name__} {self.name} {state}, {len(self._waiting)} tasks>"
