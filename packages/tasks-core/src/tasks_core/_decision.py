"""What a task, or its error handler, may decide in place of a result or a failure: to run later, or never again."""

from __future__ import annotations

from ._support.rules import Rule, is_finite_seconds, is_stored_text

_LONGEST = 100 * 365 * 24 * 3600.0

_DELAY = Rule(
    lambda value: is_finite_seconds(value) and value <= _LONGEST, "a number of seconds from 0 to 100 years, as in 60"
)
_REASON = Rule(
    is_stored_text, "a text of 1 to 500 characters without NUL and surrogates, as in 'the order was withdrawn'"
)


class Decision(Exception):  # noqa: N818  no error: it ends an attempt that has not failed
    """The base class of `Snooze` and `Cancel`."""


class Snooze(Decision):
    """
    Raise or return it in a task, and the task runs again, *delay* seconds from now. That is no failure.

    ```python
    async def fetch_report(order_id: int) -> None:
        if not await is_ready(order_id):
            raise Snooze(60)
        await save(await download(order_id))
    ```

    `on_error` is not called, the retry policy counts no attempt, and `task.attempts` has the same number in the next
    one. There is a line at INFO. The task keeps its key meanwhile. A task that snoozes each time never ends.

    An error handler may return it too: then the failure that it was given does not count.

    A group of exceptions counts if it has this one only, because a task group raises it as a group.

    Raises:
        InvalidConfigError: *delay* is not a number of seconds from 0 to 100 years.
    """

    delay: float

    def __init__(self, delay: float) -> None:
        if not _DELAY.allows(delay):
            _DELAY.refuse("delay", delay, "Snooze(")
        self.delay = delay
        super().__init__(delay)

    def __str__(self) -> str:
        return f"it runs again in {self.delay:g} s"


class Cancel(Decision):
    """
    Raise or return it in a task, and the task ends as cancelled, with *reason*. It is not run again.

    ```python
    async def remind(order_id: int) -> None:
        if await is_withdrawn(order_id):
            raise Cancel("the order was withdrawn")
        await send_reminder(order_id)
    ```

    `on_error` is not called. *reason* is in the status of the task and in a line at INFO, so it must have no data in
    it that the log must not have. `await task` and `await receipt.result()` raise `TaskCancelledError`.

    An error handler may return it too: then the task that failed ends as cancelled.

    A group of exceptions counts if it has this one only.

    Raises:
        InvalidConfigError: *reason* is not a text of 1 to 500 characters that PostgreSQL can store.
    """

    reason: str

    def __init__(self, reason: str) -> None:
        if not _REASON.allows(reason):
            _REASON.refuse("reason", reason, "Cancel(")
        self.reason = reason
        super().__init__(reason)


class AttemptEnded(BaseException):
    """
    Ends an attempt as a cancellation does, wherever it is raised: on the event loop or in a thread.

    It is no `Exception`, so that a function that handles all exceptions does not handle this one.
    """


def decision_in(error: BaseException) -> Decision | None:
    """Return the decision that *error* is, or that is alone in it, if it is a group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, Decision) else None
