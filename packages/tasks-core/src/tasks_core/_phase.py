"""Tasks that wait for a moment: the end of a route, the commit of a transaction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import get_ident
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ._config import Outcome, TaskConfig
from ._durable.task import DurableTask, check_submitted
from ._observer import hooks, notify
from ._schedule import ConfiguredSchedule, ScheduleTarget, new_task, refuse_when
from ._task import PENDING, Task
from .exceptions import InvalidConfigError

if TYPE_CHECKING:
    from ._scheduler import TaskScheduler

HandOver: TypeAlias = Literal["open", "submit", "now"]


class TaskPhase(ScheduleTarget):
    """
    Collects tasks until `open()` starts them, or `discard()` drops them; whichever is called first counts.

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

        name: What the moment is called: in logs, reports and statistics.

        origin: What the phase belongs to (a request, a session); kept for observers, see `TaskPhase.origin`.

        config: Over the configuration of the scheduler, for all tasks of the phase.

        opened: The moment is now: every task starts at once, and has no outcome to wait for (`when` is refused).

        hand_over: When durable tasks are handed over to the engine: `"open"`, like other tasks; `"submit"`, when
            `submit()` is called, which somebody is going to do before `open()`; `"now"`, as soon as they are scheduled,
            without waiting for the moment, except those for `when="error"`.
    """

    __slots__ = (
        "_config",
        "_discarded",
        "_durable",
        "_hand_over",
        "_immediate",
        "_outcome",
        "_runner",
        "_waiting",
        "name",
        "origin",
        "submitted",
        "unsubmitted",
    )

    def __init__(
        self,
        scheduler: TaskScheduler,
        name: str,
        *,
        origin: object = None,
        config: TaskConfig | None = None,
        opened: bool = False,
        hand_over: HandOver = "open",
    ) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidConfigError('TaskPhase(scheduler, name): name must be a text, such as "after_commit"')
        self._runner = scheduler._runner
        self._config = scheduler.config if config is None else scheduler.config.merge(config)
        self._waiting: list[int] = []  # ids: a task that is cancelled while it waits is gone at once
        self._immediate = opened
        self._outcome: Outcome | None = "success" if opened else None
        self._discarded: str | None = None
        self._hand_over = hand_over
        self.submitted: Outcome | None = None
        self.unsubmitted = False
        self._durable: list[DurableTask] = []  # those that submit() has to wait for
        self.name: str = name
        self.origin: object = origin

    def sibling(self, name: str, hand_over: HandOver = "open") -> TaskPhase:
        """
        Make a phase for another moment of the same thing: with the scheduler, the configuration and the origin of this
        one, and not open. What becomes of this one does not matter to it.

        ```python
        after_rollback = after_commit.sibling("after_rollback")
        ```

        Args:
            name: What the moment is called.

            hand_over: As `TaskPhase` takes it.
        """
        # Not by calling the class, which checks its arguments and costs twice as much: a request makes one or two.
        phase = TaskPhase.__new__(TaskPhase)
        phase._runner = self._runner
        phase._config = self._config
        phase._waiting = []
        phase._immediate = False
        phase._outcome = None
        phase._discarded = None
        phase._hand_over = hand_over
        phase.submitted = None
        phase.unsubmitted = False
        phase._durable = []
        phase.name = name
        phase.origin = self.origin
        return phase

    submitted: Outcome | None
    """
    What `submit()` was told. Durable tasks that are scheduled from then on are handed over at once, or dropped. May be
    set in place of calling `submit()` where there is nothing to wait for.
    """

    unsubmitted: bool
    """Whether there are durable tasks that `submit()` has not waited for."""

    @property
    def opened(self) -> bool:
        """Whether the phase has begun."""
        return self._outcome is not None

    @property
    def outcome(self) -> Outcome | None:
        """What `open()` was told; `None` before."""
        return self._outcome

    def open(self, outcome: Outcome = "success") -> None:
        """
        Begin the phase: start the tasks that are meant for this *outcome*, and discard the others.

        Which they are is for `TaskConfig.when` to say. Tasks start at the next turn of the event loop, in the order in
        which they were scheduled (trio takes those of one turn in any order).

        Raises:
            InvalidConfigError: *outcome* is neither `"success"` nor `"error"`.
        """
        if outcome not in ("success", "error"):
            raise InvalidConfigError(f"open({outcome!r}): outcome must be 'success' or 'error'")
        if get_ident() == self._runner.loop.thread_id:  # Loop.here(), without the call
            self._open(outcome)
        else:
            self._runner.loop.post(partial(self._open, outcome))

    def discard(self, reason: str) -> None:
        """Drop the tasks, and all that are scheduled into this phase later; *reason* is logged with each, at INFO."""
        self._runner.loop.call(self._discard, reason)

    async def submit(self, outcome: Outcome = "success") -> None:
        """
        Hand the durable tasks over to the engine, ahead of `open()`, and return when it has acknowledged them all.

        Those that are not meant for this *outcome* are discarded. Those that are scheduled later are handed over at
        once. Other tasks are not touched. Call it on the event loop of the scheduler.

        Cancellation: the tasks go on.

        Raises:
            EngineUnavailableError: the engine did not acknowledge one of them, or was not asked because the
                scheduler is at its end.
            Exception: what else the engine had to say against one of them.
        """
        self.submitted = outcome
        try:
            await self._submit(outcome)
        except BaseException:
            self.submitted = None  # the outcome may turn out to be another one, which open() is told
            raise
        for task in self._durable_waiting():
            self._waiting.remove(task.id)
            self._add_durable(task)

    async def _submit(self, outcome: Outcome) -> None:
        tracked, self._durable = self._durable, []
        self.unsubmitted = False
        meant = [task for task in self._durable_waiting() if self._immediate or task._is_for(outcome)]
        # Those in a transaction one after the other, last: a connection does one thing at a time.
        for task in sorted(meant, key=lambda task: task.transaction is not None):
            self._waiting.remove(task.id)
            self._add_durable(task)
            if task.transaction is not None:
                await task.wait()
        submitted = [task for task in dict.fromkeys((*tracked, *meant)) if task.id not in self._waiting]
        for task in submitted:
            await task.wait()
        for task in submitted:
            check_submitted(task)

    def _durable_waiting(self) -> list[DurableTask]:
        tasks = map(self._runner.ledger.get, self._waiting)
        return [task for task in tasks if isinstance(task, DurableTask)]

    def _open(self, outcome: Outcome) -> None:
        if self._immediate and self._keeps_transactions:
            self.submitted = outcome  # nobody has called submit(), and nobody is going to
            self._pass_on()
        if self._outcome is not None or self._discarded is not None:
            return
        self._outcome = outcome
        if hooks.phase_opened:
            notify(hooks.phase_opened, self, outcome)
        if self._waiting:
            self._pass_on()

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
                self._add(task)

    def _add(self, task: Task[Any]) -> None:
        """Take a task that has not started, on the thread of the loop."""
        if self._discarded is not None:
            self._runner.ledger.drop(task, self._discarded)
        elif self._outcome is None:
            self._waiting.append(task.id)
        elif self._immediate or task._is_for(self._outcome):
            self._runner.ready(task)
        else:
            self._drop(task, self._outcome)

    def _add_durable(self, task: Task[Any]) -> None:
        """Take a durable task, whose way may not be that of all others."""
        if self._discarded is not None:
            self._add(task)
        elif self._hand_over == "now" and task.config.when != "error":
            self._runner.ready(task)
        elif self.submitted is not None and self._outcome is None:
            if task._is_for(self.submitted):
                self._runner.ready(task)
            else:
                self._drop(task, self.submitted)
        elif self._keeps_transactions and task.config.transaction is not None:
            self._waiting.append(task.id)
        else:
            self._add(task)

    @property
    def _keeps_transactions(self) -> bool:
        """Whether somebody uses the connection at the moment, and must not be disturbed."""
        return self._immediate and self._hand_over == "submit" and self.submitted is None

    def _take(self, task: Task[Any]) -> None:
        """Take a task that was just scheduled."""
        if task._state is PENDING:  # else cancelled before the request of another thread got here
            self._add(task)

    def _take_durable(self, task: DurableTask) -> None:
        """Take a durable task that was just scheduled."""
        if task._state is PENDING:
            if self.submitted is None and self._hand_over == "submit":
                self.unsubmitted = True
                self._durable.append(task)
            self._add_durable(task)

    def _drop(self, task: Task[Any], outcome: Outcome) -> None:
        when = task.config.when or "success"
        self._runner.ledger.drop(task, f"it is for when={when!r}, and {self.name} ended in {outcome}")

    def _schedule(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: FrameType,
        config: TaskConfig | None = None,
    ) -> Task[Any]:
        return new_task(self._runner, self._take, config, self._config, self, func, args, kwargs, caller)

    def _configured(self, config: TaskConfig) -> ScheduleTarget:
        if self._immediate:
            refuse_when(config)
        return ConfiguredSchedule(self, self._config.merge(config))

    def __repr__(self) -> str:
        state = self._outcome or ("waiting" if self._discarded is None else "discarded")
        return f"<{type(self).__name__} {self.name} {state}, {len(self._waiting)} tasks>"
