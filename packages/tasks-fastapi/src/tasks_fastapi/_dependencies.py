"""The annotation of a parameter of endpoints and dependencies: `tasks: Tasks`."""

from typing import Annotated, TypeAlias

from fastapi import Depends
from starlette.requests import HTTPConnection

from ._access import get_tasks
from ._request import RequestTasks


# A coroutine function, because FastAPI runs a plain function in a thread.
async def request_tasks(connection: HTTPConnection) -> RequestTasks:
    """Return the tasks of the request or WebSocket that the application serves."""
    return get_tasks(connection)


# With a scope, FastAPI does not check for each request whether the function is a generator. The scope is "request",
# because dependencies of both scopes may depend on it.
Tasks: TypeAlias = Annotated[RequestTasks, Depends(request_tasks, scope="request")]
"""
The tasks of the current request: a parameter of endpoints and dependencies, in HTTP routes and WebSockets alike.

```python
@app.post("/users")
async def create_user(email: str, tasks: Tasks) -> User: ...
```

It is `Annotated[RequestTasks, Depends(request_tasks, scope="request")]`. The order of parameters does not matter.
"""
