"""What a worker tells the database about the end of a task, so that it may be told twice."""

from __future__ import annotations

from datetime import datetime

from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager

from ._queries import COUNT, FINISH, RETRY


class Reports(JobManager):
    """
    Speaks for one delivery of a job, and not for the next.

    procrastinate's own reports concern the job, whoever has it by now: one that is repeated after a connection broke
    would fail, or take a task that is to be tried again away from the worker that tries it already.
    """

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        assert not delete_job, "the worker keeps what has ended"
        await self.connector.execute_query_async(FINISH, job_id=job.id, attempts=job.attempts, status=status.value)

    async def retry_job(
        self,
        job: Job,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        await self.connector.execute_query_async(RETRY, job_id=job.id, attempts=job.attempts, retry_at=retry_at)

    async def count(self, job: Job, counter: str) -> None:
        """Add one to what the job knows about its earlier deliveries."""
        before = job.task_kwargs.get(counter, 0)
        assert isinstance(before, int)
        await self.connector.execute_query_async(
            COUNT, job_id=job.id, attempts=job.attempts, counter=counter, count=before + 1
        )
