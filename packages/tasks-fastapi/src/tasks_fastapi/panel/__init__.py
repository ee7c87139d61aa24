"""
A page for operators: what this process and the durable queues do, what failed and why, and buttons that act.

```python
from tasks_fastapi.panel import tasks_panel

app.include_router(tasks_panel(), prefix="/_tasks", dependencies=[Depends(admin)])
```

Imports go one way:

```text
_router
_render
_history | _html | _assets
```
"""

from ._router import tasks_panel

__all__ = ("tasks_panel",)
