"""Phases whose durable tasks are submitted before the phase opens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tasks_core._phase import TaskPhase
from tasks_core._task import PENDING, Task, TaskState

from .engine import BatchEngine
from .task import DurableTask, SubmitBatch, check_submitted

if TYPE_CHECKING:
    from tasks_core._config import Outcome, TaskConfig
    from tasks_core._scheduler import TaskScheduler

SubmitOn: TypeAlias = Literal["open", "submit", "schedule"]
"""When a phase submits its durable tasks: see `DurablePhase`."""


class DurablePhase(TaskPhase):
    """
    A `TaskPhase` that can submit its durable tasks before it opens.

    ```python
    after_commit = DurablePhase(scheduler, "after_commit", submit_on="submit")
    after_commit.schedule(charge, order.id)
    await after_commit.submit()  # returns when the engine has acknowledged
    after_commit.open()
    ```

    Args:
        scheduler: As for `TaskPhase`.

        name: As for `TaskPhase`.

        origin: As for `TaskPhase`.

        config: As for `TaskPhase`.

        opened: As for `TaskPhase`.

        submit_on: When durable tasks are submitted to the engine. `"open"`: when the phase opens, as all other tasks
            start. `"submit"`: when `submit()` is called, which the owner of the phase must do before `open()`.
            `"schedule"`: at the call of `schedule()`, without waiting for the phase, except those for `when="error"`.
    """

    __slots__ = ("_durable", "_submit_on", "submitted", "unsubmitted")

    submitted: Outcome | None
    """
    The outcome that `submit()` was given. Durable tasks that are scheduled from then on are submitted at once, or
    discarded. May be set in place of a call of `submit()` where there is nothing to wait for.
    """

    unsubmitted: bool
    """Whether there are durable tasks that `submit()` has not waited for."""

    def __init__(
        self,
        scheduler: TaskScheduler,
        name: str,
        *,
        origin: object = None,
        config: TaskConfig | None = None,
        opened: bool = False,
        submit_on: SubmitOn = "open",
    ) -> None:
        TaskPhase.__init__(self, scheduler, name, origin=origin, config=config, opened=opened)
        self._submit_on = submit_on
        self.submitted = None
        self.unsubmitted = False
        self._durable: list[DurableTask] = []  # those that submit() has to wait for

    def sibling(self, name: str, submit_on: SubmitOn = "open") -> DurablePhase:
        """Make a phase for another moment of the same thing, as `TaskPhase.sibling()` does."""
        phase = DurablePhase.__new__(DurablePhase)
        self._set_up_sibling(phase, name)
        phase._submit_on = submit_on
        phase.submitted = None
        phase.unsubmitted = False
        phase._durable = []
        return phase

    async def submit(self, outcome: Outcome = "success") -> None:
        """
        Submit the durable tasks to the engine, ahead of `open()`, and return when it has acknowledged them all.

        Those that are not for this *outcome* are discarded. Those that are scheduled later are submitted at once. Other
        tasks are not touched. Call it on the event loop of the scheduler.

        Cancellation: the tasks go on.

        Raises:
            EngineUnavailableError: the engine did not acknowledge one of them, or was not asked because the
                scheduler has ended.
            Exception: what else the engine raised for one of them.
        """
        self.submitted = outcome
        if not (self._durable or self._waiting):
            return
        try:
            await self._submit(outcome)
        except BaseException:
            self.submitted = None  # the outcome of open() may turn out to be another one
            raise
        for task in self._durable_waiting():
            self._waiting.remove(task.id)
            self._take_durable(task)

    async def _submit(self, outcome: Outcome) -> None:
        tracked, self._durable = self._durable, []
        self.unsubmitted = False
        usual = outcome == "success"  # where a task is for it without `when` and `transaction`, the call is not needed
        meant = [
            task
            for task in self._durable_waiting()
            if self._immediate
            or (usual and task.config.when is None and task.transaction is None)
            or task._is_for(outcome)
        ]
        _make_batches([task for task in meant if task.transaction is None])
        # Those in a transaction one after the other, last, because a connection does one thing at a time.
        for task in sorted(meant, key=lambda task: task.transaction is not None):
            self._waiting.remove(task.id)
            self._runner.ready(task)
            if task.transaction is not None:
                await task.wait()
        submitted = [task for task in dict.fromkeys((*tracked, *meant)) if task.id not in self._waiting]
        for task in submitted:
            await task.wait()
        for task in submitted:
            if task._state is not TaskState.SUCCEEDED:
                check_submitted(task)

    def _durable_waiting(self) -> list[DurableTask]:
        tasks = map(self._runner.ledger.get, self._waiting)
        return [task for task in tasks if isinstance(task, DurableTask)]

    def _opened_again(self, outcome: Outcome) -> None:
        if self._keeps_transactions:
            self.submitted = outcome  # submit() was not called, and will not be
            self._pass_on()

    def _drop(self, task: Task[Any], outcome: Outcome) -> None:
        if isinstance(task, DurableTask) and task.dropped:
            self._runner.ledger.drop(task, "the savepoint that it was scheduled in was rolled back")
        else:
            super()._drop(task, outcome)

    def _schedule_durable(self, task: DurableTask) -> None:
        """Take a durable task that was just accepted."""
        if task._state is PENDING and self.submitted is None and self._submit_on == "submit":
            self.unsubmitted = True
            self._durable.append(task)
        self._take_durable(task)

    def _take_durable(self, task: Task[Any]) -> None:
        """Keep, submit or discard a durable task, on the thread of the loop."""
        assert isinstance(task, DurableTask)
        if task._state is not PENDING:
            return
        if self._discarded is not None:
            self._take(task)
        elif self._submit_on == "schedule" and task.config.when != "error":
            self._runner.ready(task)
        elif self.submitted is not None and self._outcome is None:
            if task._is_for(self.submitted):
                self._runner.ready(task)
            else:
                self._drop(task, self.submitted)
        elif self._keeps_transactions and task.transaction is not None:
            self._waiting.append(task.id)
        else:
            self._take(task)

    @property
    def _keeps_transactions(self) -> bool:
        """Return whether the caller uses the connection at the moment, and must not be disturbed."""
        return self._immediate and self._submit_on == "submit" and self.submitted is None


def _make_batches(tasks: list[DurableTask]) -> None:
    """Have tasks of one engine be submitted together, where it can do that."""
    by_engine: dict[int, list[DurableTask]] = {}
    for task in tasks:
        by_engine.setdefault(id(task.engine), []).append(task)
    for together in by_engine.values():
        if len(together) > 1 and isinstance(together[0].engine, BatchEngine):
            batch = SubmitBatch(together)
            for task in together:
                task.batch = batch
