"""The routes by which a client follows a job."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of functions inside of a function.
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tasks_core.exceptions import InvalidConfigError

from tasks_fastapi._request import SCOPE_KEY

from ._followed import Followed, JobRequest, RequestedJob
from ._make import EVENTS_ROUTE, ROUTE, links_of
from ._models import Job, JobProblem
from ._stream import EventStream, streams_of

_PROBLEM = "application/problem+json"
_NOT_FOUND = JobProblem(
    title="No such job",
    status=404,
    detail="There is no job with this id, or there is none any more, or it is not yours.",
)
_ELSEWHERE = JobProblem(
    title="No such job in this process",
    status=404,
    detail="A task in memory is known to the process that runs it, and ends with it. If the application has several "
    "processes, make the task durable, or route all requests of one client to one process.",
)

_CANNOT_CANCEL = JobProblem(title="The engine of this job cancels no tasks", status=501)

_PROBLEM_RESPONSE: dict[str, Any] = {
    "description": "There is no such job, or it belongs to another client.",
    "content": {_PROBLEM: {"schema": JobProblem.model_json_schema()}},
}
_EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "data": {"type": "string", "description": "JSON"},
        "event": {"type": "string", "enum": ["message", "progress", "missed", "slow", "end", "shutdown"]},
        "id": {"type": "string"},
        "retry": {"type": "integer", "minimum": 0},
    },
}
_STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: each event of the job without a name, and `progress`, `missed`, `slow`, "
        "`end` and `shutdown`.",
        "content": {"text/event-stream": {"itemSchema": _EVENT_SCHEMA}},
    },
    204: {"description": "The client has the end of the job already."},
    404: _PROBLEM_RESPONSE,
}


def jobs_router(
    *,
    authorize: Callable[..., Any] | None = None,
    ids_are_enough: bool = False,
    heartbeat: float = 15.0,
    client_timeout: float = 30.0,
) -> APIRouter:
    """
    Return the routes by which clients follow jobs: `app.include_router(jobs_router(authorize=...), prefix="/jobs")`.

    - `GET /{job_id}`: a `Job`, with the state, the progress, and the result or a problem document;
    - `DELETE /{job_id}`: cancels the task. 202 if it had not ended, 200 if it had;
    - `GET /{job_id}/events`: server-sent events, for `EventSource`. A client that connects again goes on after the
      header `Last-Event-ID`, or after `?after=17`, without a gap or a double. `progress` has the last progress value.
      `end` has the `Job` and is the last event. `shutdown` says that the process ends, `missed` that events were
      dropped before the client had read them, `slow` that it has read nothing for `client_timeout`; they say after
      which event to go on. A client that goes away cancels nothing.

    The answer to an id that is unknown, to one whose time is over, and to that of another client is the same.

    Args:
        authorize: Says for each request whether the client may follow the job: a dependency of FastAPI that returns
            `True` or `False`, or raises an exception of its own. It may have a parameter `job: RequestedJob`, whose
            `owner` is what `job(task, owner=...)` was given, and parameters of FastAPI as any dependency.

        ids_are_enough: Whether each client that has an id may follow and cancel its job. An id cannot be guessed; but
            it is in URLs, which are in logs.

        heartbeat: Seconds between two signs of life in a stream without events, so that proxies keep it open.

        client_timeout: Seconds that a client may take to read what was sent, before its stream is closed. It gets
            `slow` if it reads again within a second, and goes on after the last id that it has in any case.

    Raises:
        InvalidConfigError: neither `authorize` nor `ids_are_enough=True` was given, or both; or a number of seconds is
            not above 0.
    """
    if (authorize is None) is not ids_are_enough:
        raise InvalidConfigError(
            "jobs_router() needs to know who may follow a job: write jobs_router(authorize=is_owner), or "
            "jobs_router(ids_are_enough=True) if each client that has an id may"
        )
    for name, seconds in (("heartbeat", heartbeat), ("client_timeout", client_timeout)):
        if not isinstance(seconds, (int, float)) or not seconds > 0:
            raise InvalidConfigError(f"jobs_router({name}={seconds!r}): {name} must be a number of seconds above 0")
    router = APIRouter()
    allowed_by = Depends(_always if authorize is None else authorize)

    @router.get("/{job_id}", name=ROUTE, response_model=Job[Any], responses={404: _PROBLEM_RESPONSE})
    async def read_job(job: RequestedJob, request: Request, allowed: Any = allowed_by) -> Any:
        """Return the state, the progress, and the result of a job."""
        followed = _admit(job, allowed)
        if followed is None:
            return _refusal(job)
        return await followed.read(links_of(request, job.id))

    @router.delete(
        "/{job_id}",
        name=ROUTE,
        response_model=Job[Any],
        responses={202: {"model": Job[Any], "description": "Its cancellation was requested."}, 404: _PROBLEM_RESPONSE},
    )
    async def cancel_job(job: RequestedJob, request: Request, response: Response, allowed: Any = allowed_by) -> Any:
        """Cancel a job."""
        followed = _admit(job, allowed)
        if followed is None:
            return _refusal(job)
        cancelled = await followed.cancel()
        if cancelled is None:
            return _problem(_CANNOT_CANCEL)
        if cancelled:
            response.status_code = 202
        return await followed.read(links_of(request, job.id))

    @router.get(
        "/{job_id}/events",
        name=EVENTS_ROUTE,
        status_code=200,
        response_class=EventStream,
        responses=_STREAM_RESPONSES,
    )
    async def follow_job(
        job: RequestedJob,
        request: Request,
        last_event_id: Annotated[
            str | None, Header(description="What the client has had already.", pattern=r"^\d{1,15}(-end)?$")
        ] = None,
        after: Annotated[
            int, Query(ge=0, lt=10**15, description="The same, for a client that cannot set the header.")
        ] = 0,
        allowed: Any = allowed_by,
    ) -> Response:
        """Stream the events of a job, its progress and its end."""
        followed = _admit(job, allowed)
        if followed is None:
            return _refusal(job)
        number, dash, _ = (last_event_id or str(after)).partition("-")
        if dash:
            return Response(status_code=204)  # EventSource does not connect again after that
        links = links_of(request, job.id)
        return EventStream(
            followed.follow(int(number)),
            lambda: followed.read(links),
            streams_of(request.scope[SCOPE_KEY].scheduler),
            after=int(number),
            heartbeat=heartbeat,
            client_timeout=client_timeout,
        )

    return router


async def _always() -> bool:
    return True


def _admit(job: JobRequest, allowed: object) -> Followed | None:
    """Return the job if the client may follow it."""
    if not isinstance(allowed, bool):
        raise TypeError(
            f"jobs_router(authorize=...): the function returned {type(allowed).__qualname__!r}. It returns True or "
            "False: whether the client may follow the job"
        )
    return job.followed if allowed else None


def _refusal(job: JobRequest) -> Response:
    return _problem(_ELSEWHERE if job.elsewhere else _NOT_FOUND)


def _problem(problem: JobProblem) -> Response:
    return JSONResponse(problem.model_dump(), status_code=problem.status, media_type=_PROBLEM)
