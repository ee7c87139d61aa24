"""What a type checker says about jobs."""

from typing import assert_type

from fastapi import APIRouter
from tasks_core import TaskState, durable
from tasks_fastapi import Tasks
from tasks_fastapi.jobs import Job, JobProblem, MakeJob, RequestedJob, jobs_router


async def generate(words: int) -> str:
    return "word " * words


async def accept(tasks: Tasks, job: MakeJob) -> Job[str]:
    task = tasks.schedule(generate, 3)
    accepted = job(task, owner="ann")
    assert_type(accepted, Job[str])
    assert_type(accepted.id, str)
    assert_type(accepted.state, TaskState)
    assert_type(accepted.result, str | None)
    assert_type(accepted.error, JobProblem | None)
    assert_type(accepted.links.events, str)
    job(generate)  # type: ignore[call-overload]
    job(task, owner=1)  # type: ignore[call-overload]
    return job(task)


async def accept_another(tasks: Tasks, job: MakeJob) -> Job[int]:
    task = tasks.schedule(generate, 3)
    return job(task)  # type: ignore[arg-type]


@durable
async def render(number: int) -> str:
    return str(number)


async def accept_durable(tasks: Tasks, job: MakeJob) -> Job[str]:
    accepted = job(tasks.schedule(render, 3))
    assert_type(accepted, Job[str])
    return accepted


async def is_owner(job: RequestedJob) -> bool:
    assert_type(job.owner, str | None)
    return job.owner == job.id


assert_type(jobs_router(authorize=is_owner, heartbeat=5, client_timeout=10.5), APIRouter)
jobs_router(authorize=True)  # type: ignore[arg-type]
jobs_router(ids_are_enough=1)  # type: ignore[arg-type]
