"""`job(task)`: what the response to the request that starts a job needs."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar, overload

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import NoMatchFound
from tasks_core import DurableTask, Receipt, Task
from tasks_core.frameworks import make_followed

from tasks_fastapi.exceptions import TasksInstallationError

from ._followed import DURABLE
from ._models import Job, JobLinks

T = TypeVar("T")

ROUTE, EVENTS_ROUTE = "tasks_job", "tasks_job_events"
"""The names of the routes of `jobs_router()`."""


class JobMaker:
    """What FastAPI passes for a parameter that is annotated with `MakeJob`: `job(task)`."""

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response

    @overload
    def __call__(self, task: Task[Receipt[T]], *, owner: str | None = None) -> Job[T]: ...

    @overload
    def __call__(self, task: Task[T], *, owner: str | None = None) -> Job[T]: ...

    def __call__(self, task: Task[Any], *, owner: str | None = None) -> Job[Any]:
        """
        Let clients follow a task, and return what the response tells them: the id, the state, and where to go on.

        The response gets the header `Location`. Each call makes another id, which cannot be guessed; a task may have
        several. The task is kept until `follow_for` seconds after its end (an option of `add_tasks()`), with its events
        and its result.

        A durable task can be followed in each process whose scheduler has the engine, as long as its row is kept. It
        has one id. Call this right after `schedule()`, before the task is on its way to the engine.

        Args:
            task: What `schedule()` returned.

            owner: Whose job it is, for the function that `jobs_router(authorize=...)` has.

        Raises:
            TasksInstallationError: the application has no `jobs_router()`.
            InvalidTaskError: a durable task is on its way to the engine already.
            EngineCapabilityError: the engine stores no events.
        """
        links_of(self._request, "")  # before anything is kept
        if isinstance(task, DurableTask):
            job_id = DURABLE + make_followed(task, owner)
        else:
            job_id = task.scheduler.keep(task, owner=owner)
        links = links_of(self._request, job_id)
        self._response.headers["Location"] = links.self
        return Job[Any](id=job_id, state=task.state, links=links)


# A coroutine function, because FastAPI runs a plain function in a thread.
async def job_maker(request: Request, response: Response) -> JobMaker:
    """Return what makes jobs for the client of this request."""
    return JobMaker(request, response)


MakeJob: TypeAlias = Annotated[JobMaker, Depends(job_maker)]
"""
What lets the client of a request follow a task: a parameter of endpoints and dependencies.

```python
@app.post("/answers", status_code=202)
async def answer(question: str, tasks: Tasks, job: MakeJob) -> Job[str]:
    return job(tasks.schedule(generate, question))
```
"""


def links_of(request: Request, job_id: str) -> JobLinks:
    """Return the paths of a job, as the client of this application writes them."""
    job_id = job_id or "-"
    try:
        return JobLinks(
            self=request.url_for(ROUTE, job_id=job_id).path, events=request.url_for(EVENTS_ROUTE, job_id=job_id).path
        )
    except NoMatchFound:
        raise TasksInstallationError(
            "job(task) needs the routes by which clients follow it. Add them to the application: "
            'app.include_router(jobs_router(authorize=...), prefix="/jobs")'
        ) from None
