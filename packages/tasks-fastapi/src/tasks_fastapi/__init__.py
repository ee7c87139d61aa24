"""
Background tasks for FastAPI that start at the right moment. A task that is lost is always logged.

Start reading at `_app.py` (`add_tasks()`), then `_asgi.py` (the middleware around the application) and `_request.py`
(the tasks of a request, and when their phases open). Imports go one way:

```text
exceptions  _unavailable
_telemetry
_request ── _schedulers ── _access ── _dependencies ── _provider
_handlers, _asgi ── _app    _worker    _health
jobs    panel
```
"""

from tasks_core import Provided, Task, TaskConfig, TaskErrorHandler, retry
from tasks_core.types import TelemetryConfig

from ._access import current_tasks, get_scheduler, get_tasks
from ._app import add_tasks
from ._dependencies import Tasks, request_tasks
from ._health import health_router
from ._request import ApplicationOrigin, RequestOrigin, RequestTasks, WebSocketOrigin
from ._unavailable import TASK_QUEUE_FULL_RESPONSES
from .exceptions import SeveralLifespansError, TasksInstallationError, TasksNotInstalledError

__all__ = (
    "TASK_QUEUE_FULL_RESPONSES",
    "ApplicationOrigin",
    "Provided",
    "RequestOrigin",
    "RequestTasks",
    "SeveralLifespansError",
    "Task",
    "TaskConfig",
    "TaskErrorHandler",
    "Tasks",
    "TasksInstallationError",
    "TasksNotInstalledError",
    "TelemetryConfig",
    "WebSocketOrigin",
    "add_tasks",
    "current_tasks",
    "get_scheduler",
    "get_tasks",
    "health_router",
    "request_tasks",
    "retry",
)
