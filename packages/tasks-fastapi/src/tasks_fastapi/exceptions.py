"""
The exceptions of tasks-fastapi, which also raises those of tasks-core.

```text
TasksError (tasks_core)
├── TasksNotInstalledError  (RuntimeError)  `add_tasks(app)` was never called
├── SeveralLifespansError   (RuntimeError)  `get_scheduler(app)` with several schedulers to choose from
└── TasksInstallationError  (RuntimeError)  `add_tasks(app)` was called twice, or too late
```
"""

from tasks_core import TasksError

__all__ = ("SeveralLifespansError", "TasksInstallationError", "TasksNotInstalledError")


class TasksNotInstalledError(TasksError, RuntimeError):
    """Raised when code uses the tasks of an application for which `add_tasks()` was never called."""


class TasksInstallationError(TasksError, RuntimeError):
    """Raised by `add_tasks()` for an application that already has tasks or has already started."""


class SeveralLifespansError(TasksError, RuntimeError):
    """Raised by `get_scheduler(app)` when several lifespans run and the caller is part of none of them."""
