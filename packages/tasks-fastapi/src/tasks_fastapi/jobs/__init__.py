"""
Jobs that a client follows: 202 Accepted, then state, progress, result, and a stream of events that can be resumed.

```python
app.include_router(jobs_router(authorize=is_owner), prefix="/jobs")


@app.post("/answers", status_code=202)
async def answer(question: str, tasks: Tasks, job: MakeJob, user: CurrentUser) -> Job[str]:
    return job(tasks.schedule(generate, question), owner=user.id)
```

Start reading at `_router.py` (what a client calls). Imports go one way:

```text
_router
_make | _stream
_followed | _signals
_models
```
"""

from ._followed import RequestedJob
from ._make import JobMaker, MakeJob, job_maker
from ._models import Job, JobLinks, JobProblem
from ._router import jobs_router

__all__ = (
    "Job",
    "JobLinks",
    "JobMaker",
    "JobProblem",
    "MakeJob",
    "RequestedJob",
    "job_maker",
    "jobs_router",
)
