"""`explore_orders()`: the body of a test, with its tasks in other orders than the one in which they were scheduled."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from math import prod
from random import Random
from typing import Literal, TypeAlias

import anyio

from . import _refusals
from ._assertions.end_of_test import EndOfTestChecks, add_findings
from ._control import Control
from ._engine import RecordedEngine
from ._messages import orders
from ._messages.timeline import timeline
from ._recording.call import Target
from ._recording.order import Choice, Choose
from ._recording.recording import Recording

# How many runs may be made to find a smaller change of the order.
_MOST_SHRINKING = 200

Action: TypeAlias = Literal["restore", "body", "drain"]


@dataclass(frozen=True, slots=True)
class ExploredOrders:
    """What `explore_orders()` has done."""

    run: int
    """How many different orders were run."""
    total: int
    """How many orders there are. If not all were run, it is the number that the usual order suggests."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the body."""

    choices: tuple[Choice, ...]
    started: tuple[str, ...]
    error: BaseException | None
    timeline: str

    @property
    def order(self) -> list[int]:
        """The choices as numbers, without the last ones that are 0."""
        order = [choice.index for choice in self.choices]
        while order and order[-1] == 0:
            order.pop()
        return order


class Exploration:
    """
    Runs a body with its tasks in different orders.

    Args:
        restore: Brings back the state before the body; called before each run.

        keep: Tasks that start at once.

        limit: The largest number of runs, those for shrinking not counted.

        seed: Decides which orders are run if there are more than *limit*.
    """

    def __init__(
        self,
        recording: Recording,
        control: Control,
        engine: RecordedEngine,
        checks: EndOfTestChecks,
        *,
        restore: Callable[[], object],
        keep: Sequence[Target],
        limit: int,
        seed: int,
        order: Sequence[int] | None,
    ) -> None:
        self._recording = recording
        self._control = control
        self._checks = checks
        self._engine = engine
        self._restore = restore
        self._keep = keep
        self._limit = limit
        self._seed = seed
        self._order = order
        self._before = engine.snapshot()

    def explore(self, body: Callable[[], object], drain: Callable[[], None]) -> ExploredOrders:
        """Run the body in a thread without an event loop."""
        __tracebackhide__ = True
        actions: dict[Action, Callable[[], object]] = {"restore": self._restore, "body": body, "drain": drain}
        with closing(self._explore()) as steps:
            error: BaseException | None = None
            while True:
                try:
                    action = steps.send(error)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]  # the type of StopIteration.value is Any
                error = None
                try:
                    result = actions[action]()
                    if inspect.iscoroutine(result):
                        result.close()  # otherwise a warning that it was never awaited
                        raise TypeError(_refusals.awaitable_order(action))
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as raised:  # pytest.fail() raises no Exception
                    error = raised

    async def aexplore(self, body: Callable[[], object], drain: Callable[[], Awaitable[None]]) -> ExploredOrders:
        """Run the body on the running event loop."""
        __tracebackhide__ = True
        actions: dict[Action, Callable[[], object]] = {"restore": self._restore, "body": body, "drain": drain}
        with closing(self._explore()) as steps:
            error: BaseException | None = None
            while True:
                try:
                    action = steps.send(error)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]  # the type of StopIteration.value is Any
                error = None
                try:
                    result = actions[action]()
                    if inspect.isawaitable(result):
                        await result
                except (KeyboardInterrupt, SystemExit, anyio.get_cancelled_exc_class()):
                    raise
                except BaseException as raised:  # as above
                    error = raised

    # ---- which orders ----

    def _explore(self) -> Generator[Action, BaseException | None, ExploredOrders]:
        __tracebackhide__ = True
        if self._order is not None:
            run = yield from self._run(_fixed(self._order, strict=True))
            if run.error is not None:
                raise run.error
            return ExploredOrders(1, 1)
        usual = yield from self._run(_fixed(()))
        if usual.error is not None:
            add_findings(usual.error, [orders.usual_order()])
            raise usual.error
        if not usual.choices:
            raise AssertionError(orders.one_order(len(usual.started)))
        total = prod(choice.among for choice in usual.choices)
        seen = {usual.started}
        runs = self._all_orders(usual) if total <= self._limit else self._random_orders()
        failed: Run | None = None
        choose = next(runs, None)
        while choose is not None and failed is None and len(seen) < self._limit:
            run = yield from self._run(choose)
            seen.add(run.started)
            if run.error is not None:
                failed = run
            else:
                choose = _next(runs, run)
        if failed is None:
            return ExploredOrders(len(seen), len(seen) if choose is None else total)
        failed = yield from self._shrink(failed)
        note = orders.failing_order(
            order=failed.order,
            started=failed.started,
            usual=usual.started,
            run=len(seen),
            total=total,
            seed=self._seed,
            timeline=failed.timeline,
        )
        assert failed.error is not None
        add_findings(failed.error, [note])
        raise failed.error

    def _all_orders(self, last: Run) -> Generator[Choose, Run, None]:
        """Yield every order once: the last choice that has a further candidate takes it."""
        choices = _without_last_candidates(last)
        while choices:
            last = yield _fixed([*(choice.index for choice in choices[:-1]), choices[-1].index + 1])
            choices = _without_last_candidates(last)

    def _random_orders(self) -> Generator[Choose, Run, None]:
        random = Random(self._seed)

        def choose(candidates: Sequence[str], _: Sequence[Choice]) -> int:
            return random.randrange(len(candidates))

        yield from (choose for _ in range(10 * self._limit))  # the same order may come again

    def _shrink(self, failed: Run) -> Generator[Action, BaseException | None, Run]:
        """Move single tasks back towards the order of scheduling, as long as the body fails."""
        left = _MOST_SHRINKING
        candidates = _with_one_task_moved(failed.started)
        while candidates and left:
            left -= 1
            order = candidates.pop(0)
            run = yield from self._run(_like(order))
            if run.error is not None and run.started == order:
                failed, candidates = run, _with_one_task_moved(order)
        return failed

    # ---- one run ----

    def _run(self, choose: Choose) -> Generator[Action, BaseException | None, Run]:
        error = yield "restore"
        self._engine.rewind(self._before)
        with self._control.choosing(self._keep, choose) as order:
            if error is None:
                error = yield "body"
            late = yield "drain"
        error = error or late
        if error is None:
            findings = [*self._checks.after_body(), *self._not_started()]
            error = AssertionError("\n".join(findings)) if findings else None
        return Run(tuple(order.choices), tuple(order.started), error, timeline(self._recording))

    def _not_started(self) -> Iterator[str]:
        if any(task.reason == _refusals.HELD_UNTIL_TEST_END for task in self._recording.tasks):
            yield orders.not_started()


def _next(runs: Generator[Choose, Run, None], run: Run) -> Choose | None:
    try:
        return runs.send(run)
    except StopIteration:
        return None


def _without_last_candidates(run: Run) -> list[Choice]:
    """Return the choices of a run up to the last one that could be made differently."""
    choices = list(run.choices)
    while choices and choices[-1].index + 1 == choices[-1].among:
        choices.pop()
    return choices


def _with_one_task_moved(started: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the orders in which one task is elsewhere and fewer pairs have changed places, the fewest first."""
    orders = {
        (*rest[:place], task, *rest[place:])
        for index, task in enumerate(started)
        for rest in [started[:index] + started[index + 1 :]]
        for place in range(len(started))
    }
    return sorted((order for order in orders if _changes(order) < _changes(started)), key=_changes)


def _changes(started: Sequence[str]) -> int:
    """Return how many pairs of tasks have another order than the one in which they were scheduled."""
    numbers = [int(task[1:].partition(" ")[0]) for task in started]
    return sum(first > second for first, second in combinations(numbers, 2))


def _like(started: Sequence[str]) -> Choose:
    """Return a function that starts tasks in the order of *started*, and tasks that are not in it last."""
    positions = {task: position for position, task in enumerate(started)}

    def choose(candidates: Sequence[str], _: Sequence[Choice]) -> int:
        return min(range(len(candidates)), key=lambda index: positions.get(candidates[index], len(positions)))

    return choose


def _fixed(order: Sequence[int], *, strict: bool = False) -> Choose:
    """Return a function that makes the choices of *order*, and from then on takes the task that was scheduled first."""

    def choose(candidates: Sequence[str], before: Sequence[Choice]) -> int:
        position = len(before)
        index = order[position] if position < len(order) else 0
        if index >= len(candidates) and strict:
            raise ValueError(orders.no_such_choice(order, position, len(candidates)))
        return min(index, len(candidates) - 1)

    return choose
