"""Every error that tasks-core raises on purpose.

```text
TasksError
├── InvalidTaskError        (TypeError)     what was passed cannot be scheduled
├── InvalidConfigError      (ValueError)    an option has a value that it cannot have
├── SchedulerNotStartedError (RuntimeError) `schedule()` before `async with scheduler`
├── SchedulerClosedError    (RuntimeError)  `schedule()` after shutdown began
├── TaskQueueFullError      (RuntimeError)  `max_pending` tasks are waiting already
├── TaskNotFinishedError    (RuntimeError)  `result()` of a task that still runs
├── TaskCancelledError      (RuntimeError)  the result of a task that was cancelled
└── TaskDiscardedError      (RuntimeError)  the result of a task that was dropped unstarted
```

An exception raised *by a task* is never wrapped: it arrives as the object that was raised.
"""

__all__ = (
    "InvalidConfigError",
    "InvalidTaskError",
    "SchedulerClosedError",
    "SchedulerNotStartedError",
    "TaskCancelledError",
    "TaskDiscardedError",
    "TaskNotFinishedError",
    "TaskQueueFullError",
    "TasksError",
)


class TasksError(Exception):
    """Root of all errors of the tasks packages; catch it to catch them all."""


class InvalidTaskError(TasksError, TypeError):
    """Raised by `schedule()` when the function cannot be called with these arguments, or is no function."""


class InvalidConfigError(TasksError, ValueError):
    """Raised where an option is given, when its value is outside of what the option allows."""


class SchedulerNotStartedError(TasksError, RuntimeError):
    """Raised by `schedule()` on a scheduler that was never entered with `async with`."""


class SchedulerClosedError(TasksError, RuntimeError):
    """Raised by `schedule()` once shutdown has begun, except inside a task that still runs."""


class TaskQueueFullError(TasksError, RuntimeError):
    """
    Raised by `schedule()` when `max_pending` tasks are waiting to start.

    Nothing of the refused task is kept. Tasks accepted before are not affected.
    """


class TaskNotFinishedError(TasksError, RuntimeError):
    """Raised by `Task.result()` when the task has not reached a terminal state."""


class TaskCancelledError(TasksError, RuntimeError):
    """Raised by `await task` and `Task.result()` when the task was cancelled; the message has the reason."""


class TaskDiscardedError(TasksError, RuntimeError):
    """Raised by `await task` and `Task.result()` when the task never started; the message has the reason."""
