"""
Every error that tasks-core raises on purpose.

```text
TasksError
├── InvalidTaskError        (TypeError)     the argument cannot be scheduled
├── InvalidConfigError      (ValueError)    an option has a value that it cannot have
├── SchedulerNotStartedError (RuntimeError) `schedule()` before `async with scheduler`
├── SchedulerClosedError    (RuntimeError)  `schedule()` after shutdown began
├── WrongEventLoopError     (RuntimeError)  `schedule()` where the event loop of the scheduler cannot be reached
├── TaskQueueFullError      (RuntimeError)  `max_pending` tasks are waiting already
├── TaskNotFinishedError    (RuntimeError)  `result()` of a task that has not ended
├── TaskCancelledError      (RuntimeError)  the result of a task that was cancelled
├── TaskDiscardedError      (RuntimeError)  the result of a task that never started
├── InvalidEventError       (TypeError)     what a task emits or reports is not JSON
├── NotAddressableError     (TypeError)     another process could not find the function
├── ArgumentCodecError      (TypeError)     an argument of a durable task cannot be serialized
├── UnknownTaskError        (LookupError)   no durable function has this name in this process
├── DurableTaskFailedError (RuntimeError)   `receipt.result()` of a task that has failed
├── ResultNotStoredError    (RuntimeError)  `receipt.result()` of a task whose result JSON cannot carry
├── UnknownReceiptError     (LookupError)   `receipt.result()` of a task that the engine has not, or no longer
├── DurableTaskGivenUpError (RuntimeError)  what `on_error` gets for a call that is not run any more
├── DurableTaskTakenOverError (RuntimeError) `complete()` of a task that another worker has by now
└── EngineError
    ├── EngineNotConfiguredError (RuntimeError) a durable task was scheduled without an engine
    ├── EngineCapabilityError (ValueError)      the engine has not the capability that the call needs
    ├── EngineSchemaError    (RuntimeError)     the tables of the engine are missing, or of another version
    └── EngineUnavailableError (ConnectionError) the engine did not acknowledge a call
```

An exception raised *by a task* is never wrapped: it arrives as the object that was raised.
"""

__all__ = (
    "ArgumentCodecError",
    "DurableTaskFailedError",
    "DurableTaskGivenUpError",
    "DurableTaskTakenOverError",
    "EngineCapabilityError",
    "EngineError",
    "EngineNotConfiguredError",
    "EngineSchemaError",
    "EngineUnavailableError",
    "InvalidConfigError",
    "InvalidEventError",
    "InvalidTaskError",
    "NotAddressableError",
    "ResultNotStoredError",
    "SchedulerClosedError",
    "SchedulerNotStartedError",
    "TaskCancelledError",
    "TaskDiscardedError",
    "TaskNotFinishedError",
    "TaskQueueFullError",
    "TasksError",
    "UnknownReceiptError",
    "UnknownTaskError",
    "WrongEventLoopError",
)


class TasksError(Exception):
    """Root of all errors of the tasks packages; catch it to catch them all."""


class InvalidTaskError(TasksError, TypeError):
    """Raised by `schedule()` when the function cannot be called with these arguments, or is no function."""


class InvalidEventError(TasksError, TypeError):
    """Raised by `emit()` and `report()` for a value that is not JSON, or is longer than 64 KiB."""


class InvalidConfigError(TasksError, ValueError):
    """Raised where an option is set to a value that it does not allow."""


class SchedulerNotStartedError(TasksError, RuntimeError):
    """Raised by `schedule()` on a scheduler that was never entered with `async with`."""


class SchedulerClosedError(TasksError, RuntimeError):
    """Raised by `schedule()` after shutdown has begun, except inside a task that still runs."""


class WrongEventLoopError(TasksError, RuntimeError):
    """
    Raised by `schedule()` on another event loop than that of the scheduler, if that loop does not run at the moment.

    If it runs, in another thread, the task is accepted and starts there.
    """


class TaskQueueFullError(TasksError, RuntimeError):
    """
    Raised by `schedule()` when `max_pending` tasks are waiting to start.

    The refused task leaves no trace. Tasks that were accepted before are not affected.
    """


class TaskNotFinishedError(TasksError, RuntimeError):
    """Raised by `Task.result()` when the task has not reached a terminal state."""


class TaskCancelledError(TasksError, RuntimeError):
    """Raised by `await task` and `Task.result()` when the task was cancelled; the message has the reason."""


class TaskDiscardedError(TasksError, RuntimeError):
    """Raised by `await task` and `Task.result()` when the task never started; the message has the reason."""


class NotAddressableError(TasksError, TypeError):
    """Raised by `durable()` and `schedule()` for a function that a worker in another process could not find."""


class ArgumentCodecError(TasksError, TypeError):
    """Raised by `schedule()` for an argument that JSON cannot carry unchanged; names the parameter and the type."""


class UnknownTaskError(TasksError, LookupError):
    """Raised on a worker for a name that no durable function is registered under; the call stays in the queue."""


class DurableTaskGivenUpError(TasksError, RuntimeError):
    """Passed to `on_error` on a worker when a call is not run any more: its workers died, or did not understand it."""


class DurableTaskTakenOverError(TasksError, RuntimeError):
    """
    Raised by `durable_context().complete(session)` when the call no longer belongs to this attempt: roll back.

    The worker seemed dead, so that another one has the call by now; or the attempt is over, or its end is stored
    already.
    """


class DurableTaskFailedError(TasksError, RuntimeError):
    """Raised by `receipt.result()` when the task has failed; the message has the type of its exception, and no more."""


class ResultNotStoredError(TasksError, RuntimeError):
    """Raised by `receipt.result()` when the task has succeeded, and JSON cannot carry what it returned."""


class UnknownReceiptError(TasksError, LookupError):
    """Raised by `receipt.result()` when the engine has no such task, or has it no longer."""


class EngineError(TasksError):
    """Root of the errors of engines."""


class EngineNotConfiguredError(EngineError, RuntimeError):
    """Raised by `schedule()` for a durable function on a scheduler without an engine."""


class EngineCapabilityError(EngineError, ValueError):
    """Raised by `schedule()` for an option that the engine does not support; no option is ever ignored."""


class EngineSchemaError(EngineError, RuntimeError):
    """Raised on entering an engine whose tables are missing, or belong to another version."""


class EngineUnavailableError(EngineError, ConnectionError):
    """
    Raised when an engine did not acknowledge a call: by the task of the submit, and by `DurablePhase.submit()`.

    It is not known whether the engine has stored the call; an `idempotency_key` makes it safe to try again.
    """
