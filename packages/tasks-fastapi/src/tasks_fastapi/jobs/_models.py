"""What a client gets: the models of the responses."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field
from tasks_core import TaskState

T = TypeVar("T")


class JobProblem(BaseModel):
    """A problem document, as RFC 9457 has it. It says nothing of the exception, which is for the log."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None


class JobLinks(BaseModel):
    """Where a client goes on; paths of the application that made the job."""

    self: str = Field(description="State, progress and result; with DELETE, cancels the job.")
    events: str = Field(description="The stream of events, for EventSource.")


class Job(BaseModel, Generic[T]):
    """A task as its client sees it. `T` is the type of its result."""

    id: str = Field(description="It cannot be guessed.")
    state: TaskState
    progress: Any = Field(default=None, description="The last value that the task has reported, any JSON.")
    result: T | None = Field(default=None, description="What the task has returned, once it has succeeded.")
    error: JobProblem | None = Field(default=None, description="Why there is no result, once it has ended without one.")
    links: JobLinks
