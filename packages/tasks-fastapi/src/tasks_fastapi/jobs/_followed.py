"""A job behind its id: what the router asks, whatever kind of task it is."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends
from pydantic import TypeAdapter
from starlette.requests import Request
from tasks_core import Task, TaskScheduler, TasksError, TaskState
from tasks_core.engines import EngineCapabilityError, EngineUnavailableError, FollowedCall
from tasks_core.frameworks import find_followed, follow_stored, task_state
from tasks_core.types import TaskUpdate

from tasks_fastapi._access import get_tasks
from tasks_fastapi._request import SCOPE_KEY, RequestOrigin

from ._models import Job, JobLinks, JobProblem

logger = logging.getLogger("tasks_fastapi")

DURABLE = "d-"
"""What the ids of durable tasks begin with."""

NO_RESULT = JobProblem(title="The result cannot be given as JSON", status=500)

_any: TypeAdapter[Any] = TypeAdapter(Any)


class Followed(Protocol):
    """A job that exists."""

    async def read(self, links: JobLinks) -> Job[Any]:
        """Return what the client gets."""
        ...

    def follow(self, after: int) -> AsyncIterator[TaskUpdate]:
        """Return what is new after the event with this number; the last update has a terminal state."""
        ...

    async def cancel(self) -> bool | None:
        """Cancel the task; return whether it had not ended, or `None` if that is not possible."""
        ...


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What `authorize=` decides about; see `RequestedJob`."""

    id: str
    """The id in the path. It may be that of no job."""
    owner: str | None = None
    """What `job(task, owner=...)` was given; `None` also for an id that is unknown."""
    followed: Followed | None = field(default=None, repr=False)
    elsewhere: bool = False
    """Whether the id looks like that of a task in the memory of another process."""


async def requested_job(job_id: str, request: Request) -> JobRequest:
    """Find the job of the path. An unknown id raises nothing, so that `authorize=` is asked for each request."""
    get_tasks(request)  # raises if there are none
    origin: RequestOrigin = request.scope[SCOPE_KEY]
    scheduler = origin.scheduler
    token = job_id.removeprefix(DURABLE)
    kept = scheduler.find_kept(token)  # also a durable task that this process runs, because no engine has it
    if kept is not None:
        return JobRequest(job_id, kept.owner, JobInMemory(job_id, kept.task))
    if job_id.startswith(DURABLE):
        call = await find_followed(scheduler, token)
        return (
            JobRequest(job_id) if call is None else JobRequest(job_id, call.owner, StoredJob(job_id, call, scheduler))
        )
    mark, dash, _ = job_id.partition("-")
    elsewhere = bool(dash) and len(mark) == 8 and not scheduler.made_id(job_id)
    return JobRequest(job_id, elsewhere=elsewhere)


RequestedJob = Annotated[JobRequest, Depends(requested_job)]
"""
A parameter of the function for `authorize=`: the job that the client asks for.

```python
async def is_owner(job: RequestedJob, user: CurrentUser) -> bool:
    return job.owner == user.id
```
"""


class JobInMemory:
    """A task of this process."""

    def __init__(self, job_id: str, task: Task[Any]) -> None:
        self._id = job_id
        self._task = task

    async def read(self, links: JobLinks) -> Job[Any]:
        task = self._task
        result, error = outcome_of(task)
        return Job[Any](id=self._id, state=task.state, progress=task.progress, result=result, error=error, links=links)

    def follow(self, after: int) -> AsyncIterator[TaskUpdate]:
        return self._task.follow(after)

    async def cancel(self) -> bool:
        return self._task.cancel()


class StoredJob:
    """A durable task, which a worker runs."""

    def __init__(self, job_id: str, call: FollowedCall, scheduler: TaskScheduler) -> None:
        self._id = job_id
        self._receipt = call.receipt
        self._scheduler = scheduler

    async def read(self, links: JobLinks) -> Job[Any]:
        status = await self._receipt.status()
        state = task_state(status.state)
        result, error = None, problem_of(state)
        if state is TaskState.SUCCEEDED:
            result, error = await self._result()
        return Job[Any](id=self._id, state=state, progress=status.progress, result=result, error=error, links=links)

    async def _result(self) -> tuple[Any, JobProblem | None]:
        try:
            return json_result(await self._receipt.result(), f"job {self._id}")
        except EngineCapabilityError:  # it stores no results
            return None, None
        except EngineUnavailableError:
            raise
        except TasksError as error:
            logger.error("The result of job %s cannot be given to its client: %s", self._id, error)
            return None, NO_RESULT

    def follow(self, after: int) -> AsyncIterator[TaskUpdate]:
        return follow_stored(self._scheduler, self._receipt.id, after)

    async def cancel(self) -> bool | None:
        try:
            return await self._receipt.cancel()
        except EngineCapabilityError:
            return None


def outcome_of(task: Task[Any]) -> tuple[Any, JobProblem | None]:
    """Return the result as JSON, or why there is none; both are `None` for a task that has not ended."""
    if task.state is TaskState.SUCCEEDED:
        return json_result(task.result(), repr(task))
    return None, problem_of(task.state)


def json_result(result: Any, title: str) -> tuple[Any, JobProblem | None]:
    """Return a result as JSON; a problem if it cannot be serialized."""
    try:
        return _any.dump_python(result, mode="json", by_alias=True), None
    except ValueError as error:
        logger.error("The result of %s cannot be given to its client: %s", title, error)
        return None, NO_RESULT


def problem_of(state: TaskState) -> JobProblem | None:
    """Return why a task in this state has no result; `None` if it may have one."""
    match state:
        case TaskState.FAILED:
            return JobProblem(title="The job failed", status=500)
        case TaskState.CANCELLED:
            return JobProblem(title="The job was cancelled", status=409)
        case TaskState.DISCARDED:
            return JobProblem(title="The job was not started", status=503)
    return None
