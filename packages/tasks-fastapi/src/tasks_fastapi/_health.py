"""`health_router()`: what a load balancer and an orchestrator ask an application."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from tasks_core.engines import engine_of
from tasks_core.frameworks import worker_problems

from ._access import get_scheduler
from ._schedulers import schedulers_of

_ANSWERS: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready; `problems` says why."}}


def health_router(*, max_pending: int | None = None) -> APIRouter:
    """
    Return a router with `GET /alive` and `GET /ready`, for the probes of a platform.

    ```python
    app.include_router(health_router(), prefix="/health")
    ```

    `/alive` answers with 200 whenever the event loop runs. `/ready` answers with 503 while the application drains, and
    when its engine does not answer; for an application that runs durable tasks itself (`worker_concurrency=`), also
    when their worker has given no sign of life for 30 seconds, or its queue is paused.
    The body says what is wrong, and nothing else: `{"ready": false, "problems": ["..."]}`.

    Args:
        max_pending: How many tasks may wait in memory for the application to be ready. Default: any number.
    """
    router = APIRouter(tags=["health"])

    @router.get("/alive", include_in_schema=False)
    async def alive() -> dict[str, bool]:
        return {"alive": True}

    @router.get("/ready", include_in_schema=False, responses=_ANSWERS)
    async def ready(request: Request, response: Response) -> dict[str, Any]:
        problems = await _problems(request, max_pending)
        response.status_code = 503 if problems else 200
        response.headers["Cache-Control"] = "no-store"
        return {"ready": not problems, "problems": problems}

    return router


async def _problems(request: Request, max_pending: int | None) -> list[str]:
    scheduler = get_scheduler(request.app)
    problems = []
    if scheduler.stopping.is_set():
        problems.append("The application is being stopped")
    pending = scheduler.statistics().pending
    if max_pending is not None and pending > max_pending:
        problems.append(f"{pending} tasks are waiting")
    engine = engine_of(scheduler)
    if engine is not None:
        schedulers = schedulers_of(request.app)
        works = schedulers is not None and schedulers.works
        problems += await worker_problems(engine, works=works)
    return problems
