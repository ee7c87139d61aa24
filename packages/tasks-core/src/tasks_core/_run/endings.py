"""The `on_end` of a task: called between its terminal state and its removal from the ledger."""

from __future__ import annotations

from typing import Any, Protocol

import anyio

from tasks_core._clock import Clock, clock_in_force, steady
from tasks_core._loop.loop import Loop
from tasks_core._retry import ask
from tasks_core._support.log import logger
from tasks_core._task import Task, TaskState

from .ledger import ENDING, Ledger, log_fields, title

# Seconds that a handler may take.
_LIMIT = 10.0


class EndingOwner(Protocol):
    """What the end of a task needs from the runner."""

    clock: Clock
    loop: Loop
    ledger: Ledger


class Endings:
    """
    Calls the handlers, each in a native task of its own.

    Until its handler has returned, a task is in its terminal state and in the ledger: shutdown, `idle()` and a recorder
    wait for it.
    """

    __slots__ = ("_runner",)

    def __init__(self, runner: EndingOwner) -> None:
        self._runner = runner

    def begin(self, task: Task[Any], state: TaskState, reason: str | None) -> bool:
        """Call the handler of a task that ends, if it has one and this has not been done; return whether it runs."""
        if task.config.on_end is None or task._tickets & ENDING:
            return False
        if self._runner.ledger.closed:
            logger.warning("on_end of %s is not called: shutdown is over", title(task), extra=log_fields(task))
            return False
        task._tickets |= ENDING
        task._state = state
        task._reason = reason
        if task._finished is not None:
            task._finished.set()
        self._runner.ledger.end_journal(task)
        context = None if task._context is None else task._context.copy()
        coroutine = self._run(task)
        try:
            task._native = self._runner.loop.spawn(context, "on_end", coroutine)
        except Exception as error:  # of the task factory of the event loop, for example
            coroutine.close()
            _log(task, "could not be started", error)
            return False
        return True

    async def _run(self, task: Task[Any]) -> None:
        clock = steady(clock_in_force(self._runner.clock))
        try:
            with self._runner.loop.deadline(clock, clock.now() + _LIMIT):
                assert task.config.on_end is not None
                await ask(task.config.on_end, task)
                return
            _log(task, f"took longer than {_LIMIT:g} s and was cancelled")
        except anyio.get_cancelled_exc_class():
            _log(task, "was cancelled")
        except BaseException as error:  # a handler is a guest: SystemExit does not leave it
            _log(task, "raised", error)
            if isinstance(error, KeyboardInterrupt):
                self._runner.loop.interrupt(error)
        finally:
            self.finish(task)
            del task  # the frame is kept, through `f_back`, by that of a handler that failed: a cycle

    def finish(self, task: Task[Any]) -> None:
        """Remove a task from the ledger whose handler has returned, or will not."""
        if self._runner.ledger.get(task.id) is not None:
            self._runner.ledger.settle(task, task._state, task._reason)


def _log(task: Task[Any], what: str, error: BaseException | None = None) -> None:
    logger.error("on_end of %s %s", title(task), what, exc_info=error, extra=log_fields(task))
