"""SQL that procrastinate has no method for. It uses its stored functions, so that its history of events stays true."""

from __future__ import annotations

from typing import LiteralString

_JOB = """ROW(
    (%(queue)s)::varchar, (%(task)s)::varchar, 0, NULL::text, NULL::text, (%(args)s)::jsonb,
    (%(scheduled_at)s)::timestamptz
)::procrastinate_job_to_defer_v1"""

SUBMIT: LiteralString = f"SELECT unnest(procrastinate_defer_jobs_v1(ARRAY[{_JOB}])) AS id, true AS created"
SUBMIT_KEY: LiteralString = f"SELECT id, created FROM tasks_submit_v1((%(key)s)::text, {_JOB})"  # noqa: S608  constant

# Reports of how a delivery ended. The answer to one may be lost with the connection, so each may come twice; and a task
# may have been taken for stalled meanwhile. A delivery is known by the number of those before it: once the row has
# another number, it has nothing to say. Except that the task is done, which spares others the work.
_MINE = "id = %(job_id)s AND status = 'doing' AND attempts = %(attempts)s"
FINISH: LiteralString = f"""
WITH mine AS (
    SELECT id FROM procrastinate_jobs
     WHERE {_MINE} OR id = %(job_id)s AND %(status)s = 'succeeded' AND status IN ('todo', 'doing')
       FOR UPDATE
)
SELECT procrastinate_finish_job_v1(id, (%(status)s)::procrastinate_job_status, false) FROM mine
"""  # noqa: S608  constant
RETRY: LiteralString = f"""
WITH mine AS (SELECT id FROM procrastinate_jobs WHERE {_MINE} FOR UPDATE)
SELECT procrastinate_retry_job_v2(id, (%(retry_at)s)::timestamptz, NULL, NULL, NULL) FROM mine
"""  # noqa: S608  constant
COUNT: LiteralString = f"""
UPDATE procrastinate_jobs SET args = jsonb_set(args, ARRAY[%(counter)s], to_jsonb((%(count)s)::int)) WHERE {_MINE}
"""  # noqa: S608  constant

PROGRESS: LiteralString = """
UPDATE procrastinate_jobs SET args = jsonb_set(args, '{progress}', (%(progress)s)::jsonb) WHERE id = %(job_id)s
"""

STATUS: LiteralString = """
SELECT status::text, attempts, args->'progress' AS progress FROM procrastinate_jobs WHERE id = %(job_id)s
"""

# Workers that are busy with a job for so long that their loop cannot do it themselves are kept alive by this.
KEEP_ALIVE: LiteralString = """
UPDATE procrastinate_workers SET last_heartbeat = now()
 WHERE id IN (SELECT worker_id FROM procrastinate_jobs WHERE id = ANY(%(running)s) AND status = 'doing')
"""

# Stalled is what belongs to no worker, or to one that is silent. Also, of the workers of this process that only wait
# for their last tasks, a task that they do not run: the answer that gave it to them was lost with the connection.
#
# One statement, and rows locked by somebody else are left to them: of two reapers, one gets the job. A death is a
# delivery that ended without anybody saying how.
REAP: LiteralString = """
WITH stalled AS (
    SELECT job.id, job.args->>'name' AS name, job.args->>'key' AS key,
           job.attempts + 1 - coalesce((job.args->>'failures')::int, 0) - coalesce((job.args->>'returns')::int, 0)
               AS deaths
      FROM procrastinate_jobs AS job
      LEFT JOIN procrastinate_workers AS worker ON worker.id = job.worker_id
     WHERE job.status = 'doing' AND job.queue_name = %(queue)s
       AND job.id <> ALL(%(running)s)
       AND (worker.id = ANY(%(leaving)s)
            OR (%(silence)s)::float IS NOT NULL
               AND (worker.id IS NULL OR worker.last_heartbeat < now() - make_interval(secs => %(silence)s)))
       FOR UPDATE OF job SKIP LOCKED
)
SELECT id, name, key, deaths, deaths >= %(max_deaths)s AS given_up,
       CASE WHEN deaths >= %(max_deaths)s THEN procrastinate_finish_job_v1(id, 'failed', false)::text
            ELSE procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL)::text END
  FROM stalled
"""

PURGE: LiteralString = """
DELETE FROM procrastinate_jobs
 WHERE queue_name = %(queue)s AND status IN ('succeeded', 'cancelled', 'aborted')
   AND id IN (SELECT job_id FROM procrastinate_events GROUP BY job_id
              HAVING max(at) < now() - make_interval(secs => %(older_than)s))
"""
