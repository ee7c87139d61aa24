"""
The exceptions of tasks-fastapi, which also raises those of tasks-core.

```text
TasksError (tasks_core)
├── TasksNotInstalledError  (RuntimeError)  `add_tasks(app)` was never called
└── TasksInstallationError  (RuntimeError)  `add_tasks(app)` was called twice, or too late
```
"""

from tasks_core import TasksError

__all__ = ("TasksInstallationError", "TasksNotInstalledError")


class TasksNotInstalledError(TasksError, RuntimeError):
    """Raised when code uses the tasks of an application for which `add_tasks()` was never called."""


class TasksInstallationError(TasksError, RuntimeError):
    """Raised by `add_tasks()` for an application that already has tasks or has already started."""
