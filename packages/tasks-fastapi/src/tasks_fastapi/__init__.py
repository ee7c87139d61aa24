"""
Background tasks for FastAPI that are started at the right moment, and never lost without a line that says so.

Start reading at `_app.py` (`add_tasks()`), then `_asgi.py` (the layer around the application) and `_request.py` (what a
request has, and when its phases open). Imports go one way:

```text
exceptions  _overload  _refusal
_spans ── _metrics ── _telemetry
_request ── _asgi ── _app ── _dependencies
```
"""

from tasks_core import Task, TaskConfig, TaskErrorHandler, retry

from ._app import add_tasks, get_scheduler, get_tasks
from ._dependencies import Tasks, request_tasks
from ._overload import TASK_QUEUE_FULL_RESPONSES
from ._request import RequestOrigin, RequestTasks, WebSocketOrigin
from ._telemetry import TelemetryConfig
from .exceptions import TasksInstallationError, TasksNotInstalledError

__all__ = (
    "TASK_QUEUE_FULL_RESPONSES",
    "RequestOrigin",
    "RequestTasks",
    "Task",
    "TaskConfig",
    "TaskErrorHandler",
    "Tasks",
    "TasksInstallationError",
    "TasksNotInstalledError",
    "TelemetryConfig",
    "WebSocketOrigin",
    "add_tasks",
    "get_scheduler",
    "get_tasks",
    "request_tasks",
    "retry",
)
