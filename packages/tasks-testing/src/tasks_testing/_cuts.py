"""`run_durable(cut="everywhere")`: each durable task, cut off once at each of its suspensions."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import anyio

from . import _refusals
from ._assertions.end_of_test import add_findings
from ._engine import EngineSnapshot, RecordedEngine
from ._messages import cuts
from ._recording.cut import Cut

Action: TypeAlias = tuple[Literal["restore", "run", "check"], Callable[[], Any]]


@dataclass(frozen=True)
class Round:
    """One run of every submitted task, with a cut."""

    name: str
    """The task that is cut off."""
    cut: Cut
    last: int
    """The number of the last place of that task."""


class CutEverywhere:
    """
    Runs the submitted tasks once without a cut, then once for each place of each of them.

    Args:
        engine: Stores the submitted calls.

        run: Runs the waiting calls.

        restore: Brings back the state before the first run; called before each run.

        check: Asserts the outcome of a run; its result has to be the same after each run.

        on_cut: Closes what the death of the process would close; called between a cut and the next attempt.

        limit: The largest number of suspensions of one task.
    """

    def __init__(
        self,
        engine: RecordedEngine,
        run: Callable[[], Awaitable[None]],
        restore: Callable[[], object],
        check: Callable[[], object],
        on_cut: Callable[[], object] | None,
        limit: int,
    ) -> None:
        self._engine = engine
        self._run = run
        self._restore = restore
        self._check = check
        self._on_cut = on_cut
        self._limit = limit
        self._round: Round | None = None

    def all(self) -> None:
        """Make every run, each on an event loop of its own."""
        __tracebackhide__ = True
        actions = self._actions()
        result: Any = None
        while True:
            try:
                kind, action = actions.send(result)
            except StopIteration:
                return
            try:
                if kind == "run":
                    _run_in_daemon_thread(self._run)
                    result = None
                else:
                    result = action()
            except BaseException as error:
                self._note_cut(error, kind)
                raise
            if inspect.isawaitable(result):
                getattr(result, "close", lambda: None)()  # otherwise a warning that it was never awaited
                raise TypeError(_refusals.awaitable_in_sync(kind))

    async def aall(self) -> None:
        """Make every run on the running event loop."""
        __tracebackhide__ = True
        actions = self._actions()
        result: Any = None
        while True:
            try:
                kind, action = actions.send(result)
            except StopIteration:
                return
            try:
                result = action()
                if inspect.isawaitable(result):
                    result = await result
            except BaseException as error:
                self._note_cut(error, kind)
                raise

    def _note_cut(self, error: BaseException, kind: str) -> None:
        if self._round is None:
            return
        name, cut = self._round.name, self._round.cut
        blocked = cut.made and kind == "run"
        add_findings(error, [cuts.place_of(name, cut, self._round.last), *([cuts.may_block()] if blocked else [])])

    def _actions(self) -> Generator[Action, Any, None]:
        before = self._engine.snapshot()
        counted: list[Cut] = []

        def count(_: int) -> Cut:
            counted.append(Cut(None))
            return counted[-1]

        reference = yield from self._one_run(before, count)
        names = [name for name, _ in reference.states]
        if not names:
            raise AssertionError(cuts.nothing_to_cut())
        for delivery, (name, uncut) in enumerate(zip(names, counted, strict=True)):
            if uncut.suspensions > self._limit:
                raise ValueError(cuts.too_many_places(name, uncut.suspensions, self._limit))
            for at in range(uncut.suspensions + 2):
                cut = Cut(at)
                self._round = Round(name, cut, uncut.suspensions + 1)
                outcome = yield from self._one_run(before, _only(delivery, cut))
                if outcome != reference:
                    raise AssertionError(cuts.different(name, cut, uncut.suspensions + 1, reference, outcome))

    def _one_run(
        self, before: EngineSnapshot, cut_for: Callable[[int], Cut | None]
    ) -> Generator[Action, Any, cuts.Outcome]:
        yield "restore", self._restore
        self._engine.rewind(before)
        self._engine.cut_for = cut_for
        if self._on_cut is not None:
            self._engine.on_cut = self._on_cut
        yield "run", self._run
        result = yield "check", self._check
        tasks = [run.task for run in self._engine.deliveries if run.task is not None]
        return cuts.Outcome(result, tuple((task.name, task.state) for task in tasks))


def _run_in_daemon_thread(run: Callable[[], Awaitable[None]]) -> None:
    """
    Run a coroutine function on an event loop in a daemon thread.

    The threads that it starts inherit that they are daemons. One that belongs to a function that was cut off, such as
    that of a database driver, never ends, and otherwise the process would wait for it at its exit.
    """
    ended: Future[None] = Future()

    def main() -> None:
        try:
            ended.set_result(anyio.run(run))
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=copy_context().run, args=(main,), name="run_durable", daemon=True).start()
    ended.result()


def _only(delivery: int, cut: Cut) -> Callable[[int], Cut | None]:
    return lambda number: cut if number == delivery else None
