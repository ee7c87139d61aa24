"""
The errors of tasks-fastapi; those of tasks-core can be raised as well.

```text
TasksError (tasks_core)
├── TasksNotInstalledError  (RuntimeError)  `add_tasks(app)` was never called
└── TasksInstallationError  (RuntimeError)  `add_tasks(app)` was called twice, or too late
```
"""

from tasks_core import TasksError

__all__ = ("TasksInstallationError", "TasksNotInstalledError")


class TasksNotInstalledError(TasksError, RuntimeError):
    """Raised where tasks are asked for on an application on which `add_tasks()` was never called."""


class TasksInstallationError(TasksError, RuntimeError):
    """Raised by `add_tasks()` on an application that has tasks already, or that has started."""
