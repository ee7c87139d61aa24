"""A health endpoint for a load balancer, with the numbers of the scheduler."""

from typing import Any

from fastapi import FastAPI, Request, Response
from tasks_fastapi import TASK_QUEUE_FULL_RESPONSES, Tasks, add_tasks, get_scheduler

MAX_PENDING = 1000

app = FastAPI()
add_tasks(app, max_concurrency=50, max_pending=MAX_PENDING, retry_after=5)


async def send_report(name: str) -> None:
    print(f"report {name} sent")


@app.post("/reports/{name}", status_code=202, responses=TASK_QUEUE_FULL_RESPONSES)
async def order_report(name: str, tasks: Tasks) -> dict[str, str]:
    tasks.after_response.schedule(send_report, name)  # 503 with Retry-After when 1000 tasks are pending
    return {"report": name}


@app.get("/health")
async def health(request: Request, response: Response) -> dict[str, Any]:
    scheduler = get_scheduler(request.app)
    statistics = scheduler.statistics()
    healthy = statistics.pending < MAX_PENDING * 0.9 and not scheduler.stopping.is_set()
    response.status_code = 200 if healthy else 503
    return {"healthy": healthy, "tasks": statistics.as_dict()}
