"""
All SQL of the engine: one statement, one name, and the reason why it is as it is.

The tables, their triggers and their notifications are those of procrastinate, so that its tools and its history go on.
The statements are our own, because each of them concerns many rows at once.

Two rules keep statements of several processes from waiting for each other in a circle: a statement that waits for locks
of rows takes them in the order of `id`, and all other statements skip rows that are locked.
"""

from __future__ import annotations

# ruff: noqa: S608  all texts are constants: values are parameters
from typing import LiteralString

# All calls are jobs of one task of procrastinate. Workers of other applications know no task of this name.
_TASK: LiteralString = "task_name = 'tasks_core.run'"
_TODO: LiteralString = f"status = 'todo' AND {_TASK}"
# Those that wait for nothing but their moment and a worker, and not behind another task with their key.
_READY: LiteralString = f"{_TODO} AND NOT args ? 'behind'"

_FOLLOWED: LiteralString = f"{_TASK} AND args->'headers' ? 'follow'"

# ---- the tables ----

INDEXES: dict[str, LiteralString] = {
    # The claim reads, for each name that a worker knows, the first rows of these two. So neither delayed rows nor rows
    # with names that the worker does not know are read. The name is that of the call and not `task_name`, which is the
    # same for all calls.
    "tasks_ready_v2": f"""
procrastinate_jobs (queue_name, (args->>'name'), priority DESC, id) WHERE {_READY} AND scheduled_at IS NULL
""",
    "tasks_delayed_v2": f"""
procrastinate_jobs (queue_name, (args->>'name'), scheduled_at) WHERE {_READY} AND scheduled_at IS NOT NULL
""",
    # Calls that wait behind another one with their key, in the order in which they run.
    "tasks_behind_v1": f"""
procrastinate_jobs (lock, id) WHERE {_TODO} AND args ? 'behind'
""",
    # Calls that were running when a worker died: few rows among many.
    "tasks_suspect_v1": f"""
procrastinate_jobs (queue_name, id) WHERE {_TODO} AND args ? 'deaths'
""",
    # What the search for dead workers reads: without it, that would read all rows that are kept.
    "tasks_running_v1": f"""
procrastinate_jobs (queue_name, worker_id) WHERE status = 'doing' AND {_TASK}
""",
    # Calls that clients follow: few rows among many.
    "tasks_followed_v1": f"""
procrastinate_jobs ((args->'headers'->>'follow')) WHERE {_FOLLOWED}
""",
    # What operators look at: those that failed or were cancelled, the last first. The order is `id + 0`, which the
    # primary key does not have: for a queue without such rows, PostgreSQL would read that, with the rows of all others.
    "tasks_ended_v2": f"""
procrastinate_jobs (queue_name, status, (id + 0)) WHERE status IN ('failed', 'cancelled', 'aborted') AND {_TASK}
""",
}
"""Partial indexes by name: what follows `CREATE INDEX name ON`."""

PARTS: dict[str, LiteralString] = {
    # A key belongs to a function and a queue for as long as its row is kept.
    "tasks_keys_v2": """
CREATE TABLE tasks_keys_v2 (
    queue text NOT NULL,
    name text NOT NULL,
    key text NOT NULL,
    job_id bigint REFERENCES procrastinate_jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (queue, name, key)
);
CREATE INDEX tasks_keys_v2_job_id ON tasks_keys_v2 (job_id)
""",
    # Which queues a worker serves, and which functions it knows.
    "tasks_workers_v2": """
CREATE TABLE tasks_workers_v2 (
    id bigint PRIMARY KEY REFERENCES procrastinate_workers (id) ON DELETE CASCADE,
    queues text[] NOT NULL,
    names text[] NOT NULL
)
""",
    # What tasks have emitted. A delivery is known by the number of those before it (`attempt`), and numbers its own
    # events (`position`), so that a batch that comes twice, because its answer was lost, changes nothing.
    "tasks_events_v1": """
CREATE TABLE tasks_events_v1 (
    job_id bigint NOT NULL REFERENCES procrastinate_jobs (id) ON DELETE CASCADE,
    number bigint NOT NULL,
    attempt int NOT NULL,
    position bigint NOT NULL,
    event text NOT NULL,
    PRIMARY KEY (job_id, number)
)
""",
    # Further tokens of calls that clients follow: those of calls that made no row, because there was one. The owner
    # counts if the row has none.
    "tasks_followers_v1": """
CREATE TABLE tasks_followers_v1 (
    token text PRIMARY KEY,
    owner text,
    job_id bigint NOT NULL REFERENCES procrastinate_jobs (id) ON DELETE CASCADE
);
CREATE INDEX tasks_followers_v1_job_id ON tasks_followers_v1 (job_id)
""",
    # What workers must not take: a queue, or a function in a queue. No name: all functions.
    "tasks_pauses_v1": """
CREATE TABLE tasks_pauses_v1 (
    queue text NOT NULL,
    name text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (queue, name)
)
""",
    # Asked by each claim: in plpgsql, whose plans are kept, and with nothing to do while nothing is paused.
    "tasks_awake_v1": """
CREATE FUNCTION tasks_awake_v1(queue text, names text[]) RETURNS text[] LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM tasks_pauses_v1) THEN
        RETURN names;
    END IF;
    RETURN ARRAY(
        SELECT known FROM unnest(names) AS known
         WHERE NOT EXISTS (
            SELECT FROM tasks_pauses_v1 AS pause
             WHERE pause.queue = tasks_awake_v1.queue AND pause.name IN ('', known)));
END;
$$
""",
    # Rows are submitted in the order of `id`, and their times are in the events: a search by halves reads few of them.
    "tasks_first_id_v1": """
CREATE FUNCTION tasks_first_id_v1(since timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE
AS $$
DECLARE
    low bigint := 0;
    high bigint;
    middle bigint;
    found bigint;
    submitted timestamptz;
BEGIN
    SELECT max(id) + 1 INTO high FROM procrastinate_jobs;
    WHILE low < high LOOP
        middle := (low + high) / 2;
        SELECT id INTO found FROM procrastinate_jobs WHERE id >= middle AND id < high ORDER BY id LIMIT 1;
        SELECT min(at) INTO submitted FROM procrastinate_events WHERE job_id = found AND type = 'deferred';
        IF found IS NULL OR submitted > since THEN
            high := middle;
        ELSE
            low := found + 1;
        END IF;
    END LOOP;
    RETURN high;
END;
$$
""",
    # The last occurrence of each periodic function: `engine` is the queue of the engine, so that two applications with
    # functions of the same name do not take each other's occurrences.
    "tasks_occurrences_v1": """
CREATE TABLE tasks_occurrences_v1 (
    engine text NOT NULL,
    name text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (engine, name)
)
""",
    # ---- keys of which one task runs at a time: `lock` of procrastinate, which is unique among rows that run ----
    #
    # Of the unfinished rows with a lock, one is the head: it waits, runs or waits to be retried. The others have
    # `behind` in their arguments, which keeps them out of the indexes of the claim, however many they are. Triggers
    # keep that, so that it does not matter who ends a row: a worker, an operator, the tools of procrastinate.
    "tasks_heads_v1": """
CREATE TABLE tasks_heads_v1 (
    lock text PRIMARY KEY,
    job_id bigint NOT NULL
)
""",
    # The next in line may run; NULL if there is none. Rows that another transaction is about to cancel are passed over,
    # because a worker that reports must not wait for the transaction of a request.
    "tasks_promote_v1": """
CREATE FUNCTION tasks_promote_v1(waiting text, kept jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    following bigint;
    queue text;
BEGIN
    SELECT id INTO following FROM procrastinate_jobs
     WHERE lock = waiting AND status = 'todo' AND task_name = 'tasks_core.run' AND args ? 'behind'
     ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF following IS NOT NULL THEN
        UPDATE procrastinate_jobs SET args = (args - 'behind') || kept
         WHERE id = following RETURNING queue_name INTO queue;
        PERFORM pg_notify('procrastinate_queue_v1#' || queue, '{"type": "job_inserted"}');
    END IF;
    RETURN following;
END;
$$
""",
    # The first in line of a key that no row has.
    "tasks_fill_v1": """
CREATE FUNCTION tasks_fill_v1(waiting text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    following bigint;
BEGIN
    INSERT INTO tasks_heads_v1 (lock, job_id) VALUES (waiting, 0) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    following := tasks_promote_v1(waiting, '{}');
    IF following IS NULL THEN
        DELETE FROM tasks_heads_v1 WHERE lock = waiting;
    ELSE
        UPDATE tasks_heads_v1 SET job_id = following WHERE lock = waiting;
    END IF;
    RETURN true;
END;
$$
""",
    # A row is head if there is none, also one that an operator retries after its end.
    "tasks_place_v1": """
CREATE FUNCTION tasks_place_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tasks_heads_v1 (lock, job_id) VALUES (NEW.lock, NEW.id) ON CONFLICT DO NOTHING;
    IF NOT FOUND AND NOT EXISTS (SELECT FROM tasks_heads_v1 WHERE lock = NEW.lock AND job_id = NEW.id) THEN
        NEW.args := NEW.args || '{"behind": true}';
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER tasks_place_new_v1 BEFORE INSERT ON procrastinate_jobs FOR EACH ROW
    WHEN (NEW.lock IS NOT NULL AND NEW.status = 'todo' AND NEW.task_name = 'tasks_core.run')
    EXECUTE PROCEDURE tasks_place_v1();
CREATE TRIGGER tasks_place_again_v1 BEFORE UPDATE OF status ON procrastinate_jobs FOR EACH ROW
    WHEN (NEW.lock IS NOT NULL AND NEW.status = 'todo' AND NEW.task_name = 'tasks_core.run'
          AND OLD.status NOT IN ('todo', 'doing'))
    EXECUTE PROCEDURE tasks_place_v1()
""",
    # The end of the head. Its place is locked first: a transaction that is about to commit a row behind it has locked
    # it too, and the row is seen then. The time for which a head waited in vain for a worker that knows its function
    # counts for those behind it, so that each of them does not wait for as long again.
    "tasks_advance_v1": """
CREATE FUNCTION tasks_advance_v1() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    following bigint;
    kept jsonb := '{}';
BEGIN
    PERFORM FROM tasks_heads_v1 WHERE lock = OLD.lock AND job_id = OLD.id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.args ? 'misfit_since' AND NEW.status = 'failed' THEN
        kept := jsonb_build_object('misfit_since', OLD.args->'misfit_since');
    END IF;
    following := tasks_promote_v1(OLD.lock, kept);
    IF following IS NULL THEN
        DELETE FROM tasks_heads_v1 WHERE lock = OLD.lock;
    ELSE
        UPDATE tasks_heads_v1 SET job_id = following WHERE lock = OLD.lock;
    END IF;
    RETURN NULL;
END;
$$;
CREATE TRIGGER tasks_advance_v1 AFTER UPDATE OF status ON procrastinate_jobs FOR EACH ROW
    WHEN (OLD.lock IS NOT NULL AND OLD.task_name = 'tasks_core.run'
          AND OLD.status IN ('todo', 'doing') AND NEW.status NOT IN ('todo', 'doing'))
    EXECUTE PROCEDURE tasks_advance_v1();
CREATE TRIGGER tasks_advance_deleted_v1 AFTER DELETE ON procrastinate_jobs FOR EACH ROW
    WHEN (OLD.lock IS NOT NULL AND OLD.task_name = 'tasks_core.run' AND OLD.status IN ('todo', 'doing'))
    EXECUTE PROCEDURE tasks_advance_v1()
""",
    # The head may have ended while the transaction that stored a row behind it was open, so that its end did not see
    # the row. It is looked for at the commit and not earlier: otherwise the lock on its place would keep workers from
    # reporting its end for as long as the transaction of a request takes.
    "tasks_settle_v1": """
CREATE FUNCTION tasks_settle_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        PERFORM FROM tasks_heads_v1 WHERE lock = NEW.lock FOR SHARE;
        EXIT WHEN FOUND;
        EXIT WHEN tasks_fill_v1(NEW.lock);
    END LOOP;
    RETURN NULL;
END;
$$;
CREATE CONSTRAINT TRIGGER tasks_settle_v1 AFTER INSERT OR UPDATE OF status ON procrastinate_jobs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.lock IS NOT NULL AND NEW.status = 'todo' AND NEW.task_name = 'tasks_core.run' AND NEW.args ? 'behind')
    EXECUTE PROCEDURE tasks_settle_v1()
""",
    # Stores a call that has a key, or finds the row that it joins.
    "tasks_take_v1": """
CREATE FUNCTION tasks_take_v1(call jsonb)
    RETURNS TABLE (id bigint, created boolean, replaced bigint[])
    LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    number bigint := nextval(pg_get_serial_sequence('procrastinate_jobs', 'id'));
    wanted text := call->>'lock';
    ended bigint[];
    head bigint;
BEGIN
    id := number;
    created := true;
    replaced := '{}';
    LOOP
        IF call->>'on_conflict' = 'replace' THEN
            -- Those behind first: the end of the head would let one of them run.
            WITH gone AS (
                UPDATE procrastinate_jobs SET status = 'cancelled'
                 WHERE lock = wanted AND status = 'todo' AND task_name = 'tasks_core.run' AND args ? 'behind'
                RETURNING procrastinate_jobs.id
            )
            SELECT array_agg(gone.id ORDER BY gone.id) INTO ended FROM gone;
            SELECT job.id INTO head
              FROM tasks_heads_v1 AS first JOIN procrastinate_jobs AS job ON job.id = first.job_id
             WHERE first.lock = wanted AND job.status = 'todo' AND job.attempts = 0 AND NOT job.args ? 'deaths'
               FOR UPDATE OF job;
            IF FOUND THEN
                UPDATE procrastinate_jobs SET status = 'cancelled' WHERE procrastinate_jobs.id = head;
                ended := head || ended;
            END IF;
            replaced := replaced || coalesce(ended, '{}');
        END IF;
        INSERT INTO tasks_heads_v1 (lock, job_id) VALUES (wanted, number) ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND OR call->>'on_conflict' = 'queue';
        IF call->>'on_conflict' = 'replace' THEN
            EXIT WHEN EXISTS (
                SELECT FROM tasks_heads_v1 AS first JOIN procrastinate_jobs AS job ON job.id = first.job_id
                 WHERE first.lock = wanted AND (job.status <> 'todo' OR job.attempts > 0 OR job.args ? 'deaths')
            );
        ELSE
            SELECT max(job.id) INTO head FROM procrastinate_jobs AS job
             WHERE lock = wanted AND status = 'todo' AND task_name = 'tasks_core.run' AND args ? 'behind';
            IF head IS NULL THEN
                SELECT job_id INTO head FROM tasks_heads_v1 WHERE lock = wanted;
            END IF;
            IF head IS NOT NULL THEN
                id := head;
                created := false;
                RETURN NEXT;
                RETURN;
            END IF;
        END IF;
        -- The head has ended, or was replaced, since it was found.
    END LOOP;
    INSERT INTO procrastinate_jobs (id, queue_name, task_name, priority, lock, args, scheduled_at)
    VALUES (number, call->>'queue', 'tasks_core.run', (call->>'priority')::int, wanted, call->'args',
            clock_timestamp() + make_interval(secs => (call->>'delay')::float));
    RETURN NEXT;
END;
$$
""",
    # A second call with an idempotency key waits for the transaction of the first one, and gets its row; so does one
    # with a key of which one task runs at a time. That is a function and not a statement, because each statement within
    # a function sees what was committed before the statement.
    "tasks_submit_v4": """
CREATE FUNCTION tasks_submit_v4(calls jsonb)
    RETURNS TABLE (id bigint, created boolean, same boolean, key text, replaced bigint[])
    LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    call jsonb;
    position int;
    known boolean[] := array_fill(false, ARRAY[jsonb_array_length(calls)]);
    stored jsonb[] := array_fill(NULL::jsonb, ARRAY[jsonb_array_length(calls)]);
    taken record;
BEGIN
    -- Both kinds of keys in one order, so that two submits with the same keys do not wait for each other in a circle.
    FOR call, position IN
        SELECT value, ordinality::int FROM jsonb_array_elements(calls) WITH ORDINALITY
         WHERE (value->>'dedup')::boolean
         ORDER BY value->>'queue', value->'args'->>'name', value->'args'->>'key', ordinality
    LOOP
        INSERT INTO tasks_keys_v2 (queue, name, key)
        VALUES (call->>'queue', call->'args'->>'name', call->'args'->>'key') ON CONFLICT DO NOTHING;
        known[position] := NOT FOUND;
    END LOOP;
    FOR call, position IN
        SELECT value, ordinality::int FROM jsonb_array_elements(calls) WITH ORDINALITY
         WHERE value->>'lock' IS NOT NULL ORDER BY value->>'lock', ordinality
    LOOP
        IF NOT known[position] THEN
            SELECT * INTO taken FROM tasks_take_v1(call);
            stored[position] := to_jsonb(taken);
        END IF;
    END LOOP;
    FOR call, position IN
        SELECT value, ordinality::int FROM jsonb_array_elements(calls) WITH ORDINALITY ORDER BY ordinality
    LOOP
        created := true;
        same := true;
        key := call->'args'->>'key';
        replaced := '{}';
        IF known[position] THEN
            created := false;
            SELECT job.id, job.args->'args' = call->'args'->'args' INTO id, same
              FROM tasks_keys_v2 JOIN procrastinate_jobs AS job ON job.id = job_id
             WHERE queue = call->>'queue' AND name = call->'args'->>'name' AND key = call->'args'->>'key';
        ELSE
            IF stored[position] IS NOT NULL THEN
                SELECT row.id, row.created, row.replaced INTO id, created, replaced
                  FROM jsonb_to_record(stored[position]) AS row (id bigint, created boolean, replaced bigint[]);
                IF NOT created THEN
                    SELECT job.args->>'key' INTO key FROM procrastinate_jobs AS job WHERE job.id = tasks_submit_v4.id;
                END IF;
            ELSE
                INSERT INTO procrastinate_jobs (queue_name, task_name, priority, args, scheduled_at)
                VALUES (call->>'queue', 'tasks_core.run', (call->>'priority')::int, call->'args',
                        clock_timestamp() + make_interval(secs => (call->>'delay')::float))
                RETURNING procrastinate_jobs.id INTO id;
            END IF;
            IF (call->>'dedup')::boolean THEN
                UPDATE tasks_keys_v2 SET job_id = tasks_submit_v4.id
                 WHERE queue = call->>'queue' AND name = call->'args'->>'name' AND key = call->'args'->>'key';
            END IF;
        END IF;
        IF NOT created AND id IS NOT NULL AND call->'args'->'headers' ? 'follow' THEN
            INSERT INTO tasks_followers_v1 (token, owner, job_id)
            VALUES (call->'args'->'headers'->>'follow', call->'args'->'headers'->>'follow-owner', id)
            ON CONFLICT DO NOTHING;
        END IF;
        RETURN NEXT;
    END LOOP;
END;
$$
""",
    # Which process looks at the numbers of a queue, and until when.
    "tasks_turns_v1": """
CREATE TABLE tasks_turns_v1 (
    queue text PRIMARY KEY,
    holder text NOT NULL,
    until timestamptz NOT NULL
)
""",
}
"""
Our own tables and functions, by name, in the order in which they are created: each is created where it is missing.

A part that has been released is never changed: what replaces it gets another name.
"""

MISSING_PARTS: LiteralString = """
SELECT name FROM unnest(%s::text[]) AS name
 WHERE to_regclass(name) IS NULL
   AND NOT EXISTS (SELECT FROM pg_proc WHERE proname = name AND pg_function_is_visible(oid))
"""
"""The tables and functions that the search path of this connection does not lead to: another schema may have them."""

MISSING_INDEXES: LiteralString = """
SELECT name, class.oid IS NOT NULL AS invalid, jobs.relpages > 2000 AS large
  FROM unnest(%s::text[]) AS name
  LEFT JOIN pg_class AS class ON class.oid = to_regclass(name)
  LEFT JOIN pg_index AS index ON index.indexrelid = class.oid
  JOIN pg_class AS jobs ON jobs.oid = to_regclass('procrastinate_jobs')
 WHERE NOT coalesce(index.indisvalid, false)
"""
"""The indexes that are missing, or are left from a build that was interrupted, and whether the table is large."""

SETTINGS: LiteralString = """
ALTER TABLE procrastinate_jobs SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
ALTER TABLE procrastinate_events SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE procrastinate_workers SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100)
"""
"""Each row is updated several times, so that a vacuum is due long before a fifth of a large table has changed."""

IS_ANALYZED: LiteralString = "SELECT reltuples >= 0 FROM pg_class WHERE oid = to_regclass('procrastinate_jobs')"
ANALYZE: LiteralString = "ANALYZE procrastinate_jobs, procrastinate_events"
"""In the first minutes of a table, or after a mass insert, autovacuum has not come yet."""

# ---- submits ----

_DUE: LiteralString = "clock_timestamp() + make_interval(secs => (call->>'delay')::float)"
"""By the clock of the database: those of web servers and workers differ. Of no delay, that makes NULL."""

SUBMIT: LiteralString = f"""
INSERT INTO procrastinate_jobs (queue_name, task_name, priority, args, scheduled_at)
SELECT call->>'queue', 'tasks_core.run', (call->>'priority')::int, call->'args', {_DUE}
  FROM jsonb_array_elements((%(calls)s)::jsonb) WITH ORDINALITY AS given (call, ordinality) ORDER BY ordinality
RETURNING id, true AS created, true AS same, args->>'key' AS key, '{{}}'::bigint[] AS replaced
"""
"""All calls of a submit in one statement, so that they are stored together or not at all."""

SUBMIT_KEYS: LiteralString = """
SELECT id, created, same, key, replaced FROM tasks_submit_v4((%(calls)s)::jsonb)
"""
"""The same for calls of which some have an idempotency key that the caller chose, or a key."""

# ---- periodic functions ----

OCCURRENCES: LiteralString = """
WITH given AS (
    SELECT name, number FROM unnest((%(names)s)::text[]) WITH ORDINALITY AS given (name, number)
), added AS (
    INSERT INTO tasks_occurrences_v1 (engine, name, at) SELECT %(engine)s, name, clock_timestamp() FROM given
    ON CONFLICT DO NOTHING RETURNING name, at
)
SELECT clock_timestamp(), coalesce(known.at, added.at, clock_timestamp())
  FROM given LEFT JOIN added USING (name)
  LEFT JOIN tasks_occurrences_v1 AS known ON known.engine = %(engine)s AND known.name = given.name
 ORDER BY number
"""
"""The time, and the last occurrence of each function. One that is new begins now: it has missed nothing."""

_MOVE_ON: LiteralString = """
INSERT INTO tasks_occurrences_v1 AS known (engine, name, at) VALUES (%(engine)s, %(name)s, %(at)s)
ON CONFLICT (engine, name) DO UPDATE SET at = excluded.at WHERE known.at < excluded.at RETURNING true
"""

SUBMIT_OCCURRENCE: LiteralString = f"""
WITH passed AS ({_MOVE_ON})
SELECT stored.id, stored.created, stored.same, stored.key, stored.replaced
  FROM passed CROSS JOIN LATERAL tasks_submit_v4((%(calls)s)::jsonb) AS stored
"""
"""
Of all workers that submit an occurrence, one gets a row. A worker that waited too long for the others has a moment that
is not later than the one that is stored, and gets none, also when the task has been deleted since.
"""

SKIP_OCCURRENCES: LiteralString = _MOVE_ON

# ---- what receipts ask for ----

_STATUS: LiteralString = """
status::text, attempts, args->'progress' AS progress, args->>'reason' AS reason, args->'errors' AS errors,
args->'returns' AS returns, args->>'given_up' AS given_up
"""

# What `ended_attempts()` takes, without the records of the attempts, which are long.
_ENDED: LiteralString = """
job.status::text, job.attempts, job.args->'returns' AS returns, job.args->>'given_up' AS given_up,
job.args#>'{errors,-1,attempt}' AS failed
"""

STATUS: LiteralString = f"SELECT {_STATUS} FROM procrastinate_jobs WHERE id = %(id)s"

WAIT_FOR: LiteralString = f"""
SELECT id, args->>'name' AS name, args->'result' AS result, {_STATUS} FROM procrastinate_jobs WHERE id = ANY(%(ids)s)
"""
"""All tasks that callers wait for; those that are missing are unknown."""

# ---- claims ----

REGISTER: LiteralString = """
WITH worker AS (INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id)
INSERT INTO tasks_workers_v2 (id, queues, names) SELECT id, %(queues)s, %(names)s FROM worker RETURNING id
"""
"""Workers of procrastinate find the dead in its table of workers; our own table has the queues that a worker serves and
the names that it knows."""

UNREGISTER: LiteralString = "DELETE FROM procrastinate_workers WHERE id = ANY(%(ids)s)"

CLAIM: LiteralString = f"""
WITH candidate AS MATERIALIZED (
    SELECT served.room, job.id, job.priority
      FROM unnest((%(queues)s)::text[], (%(rooms)s)::int[]) AS served (queue, room)
     CROSS JOIN unnest(tasks_awake_v1(served.queue, (%(names)s)::text[])) AS known (name)
     CROSS JOIN LATERAL (
        SELECT id, priority FROM procrastinate_jobs
         WHERE {_READY} AND scheduled_at IS NULL
           AND queue_name = served.queue AND args->>'name' = known.name AND NOT args ? 'deaths'
         ORDER BY priority DESC, id LIMIT %(look)s
     ) AS job
    UNION ALL
    SELECT served.room, job.id, job.priority
      FROM unnest((%(queues)s)::text[], (%(rooms)s)::int[]) AS served (queue, room)
     CROSS JOIN unnest(tasks_awake_v1(served.queue, (%(names)s)::text[])) AS known (name)
     CROSS JOIN LATERAL (
        SELECT id, priority FROM procrastinate_jobs
         WHERE {_READY} AND scheduled_at <= now()
           AND queue_name = served.queue AND args->>'name' = known.name AND NOT args ? 'deaths'
         ORDER BY scheduled_at LIMIT %(look)s
     ) AS job
), suspect AS MATERIALIZED (
    SELECT served.room, job.id
      FROM unnest((%(queues)s)::text[], (%(rooms)s)::int[]) AS served (queue, room)
     CROSS JOIN LATERAL (
        SELECT id FROM procrastinate_jobs
         WHERE {_TODO} AND args ? 'deaths' AND (%(suspects)s)::boolean
           AND queue_name = served.queue AND args->>'name' = ANY(tasks_awake_v1(served.queue, (%(names)s)::text[]))
           AND coalesce(scheduled_at, '-infinity') <= now()
         ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
     ) AS job
     LIMIT 1
), claimed AS MATERIALIZED (
    SELECT job.id
      FROM unnest((%(free)s)::int[]) WITH ORDINALITY AS room (free, number)
     CROSS JOIN LATERAL (
        SELECT id FROM procrastinate_jobs
         WHERE id = ANY(ARRAY(SELECT id FROM candidate WHERE candidate.room = room.number
                               ORDER BY priority DESC, id LIMIT %(look)s)) AND status = 'todo'
         ORDER BY priority DESC, id
         LIMIT room.free - (SELECT count(*) FROM suspect WHERE suspect.room = room.number)
           FOR UPDATE SKIP LOCKED
     ) AS job
)
UPDATE procrastinate_jobs SET status = 'doing', worker_id = %(worker)s
 WHERE id = ANY(ARRAY(SELECT id FROM suspect UNION ALL SELECT id FROM claimed))
RETURNING id, attempts, args, extract(epoch FROM now())::float AS now, queue_name, priority
"""
"""
Claim calls of functions that the worker knows, and at most one that was running when a worker died.

A room is so many free slots (*free*), which the calls of one queue or of several share; there is one statement for all
of them, so that an idle worker with many queues asks as rarely as one with a single queue.

Candidates are read without locks, and more of them than are wanted (*look*), because another worker may be claiming
the first ones at this moment. Rows are looked up by arrays of ids, which leaves the planner no choice: a join would
become a scan of the table as soon as statistics are missing.
"""

NEXT_DUE: LiteralString = f"""
SELECT extract(epoch FROM min(job.scheduled_at) - clock_timestamp())::float
  FROM unnest((%(queues)s)::text[]) AS served (queue)
 CROSS JOIN unnest(tasks_awake_v1(served.queue, (%(names)s)::text[])) AS known (name)
 CROSS JOIN LATERAL (
    SELECT scheduled_at FROM procrastinate_jobs
     WHERE {_READY} AND scheduled_at IS NOT NULL AND queue_name = served.queue AND args->>'name' = known.name
     ORDER BY scheduled_at LIMIT 1
 ) AS job
"""
"""Seconds until the next delayed call is due: there is no notification of that."""

# ---- reports ----

REPORT: LiteralString = """
WITH reported AS (
    SELECT * FROM unnest(
        (%(ids)s)::bigint[], (%(attempts)s)::int[], (%(states)s)::text[],
        (%(delays)s)::float[], (%(priorities)s)::int[], (%(notes)s)::jsonb[], (%(strict)s)::bool[]
    ) AS report (id, attempts, state, delay, priority, note, strict)
), accepted AS MATERIALIZED (
    SELECT job.id, reported.state, reported.delay, reported.priority, reported.note
      FROM reported JOIN procrastinate_jobs AS job ON job.id = reported.id
     WHERE job.status = 'doing' AND job.attempts = reported.attempts
        OR reported.state = 'succeeded' AND NOT reported.strict AND (job.status = 'todo' OR job.status = 'doing'
            OR job.status = 'failed' AND job.args ? 'given_up')
     ORDER BY job.id FOR UPDATE OF job
), stored AS (
    UPDATE procrastinate_jobs AS job
       SET status = CASE WHEN accepted.state = 'todo' AND job.abort_requested THEN 'aborted'
                         ELSE accepted.state END::procrastinate_job_status,
           attempts = job.attempts + CASE job.status WHEN 'doing' THEN 1 ELSE 0 END,
           worker_id = NULL,
           abort_requested = false,
           scheduled_at = CASE accepted.state
               WHEN 'todo' THEN clock_timestamp() + make_interval(secs => accepted.delay) ELSE job.scheduled_at END,
           priority = job.priority + accepted.priority,
           args = CASE WHEN accepted.note IS NULL THEN job.args ELSE accepted.note || (job.args
               - '{failures,returns,deaths,misfit_since,misfits,given_up,result,errors,reason}'::text[]) END
      FROM accepted WHERE job.id = accepted.id
    RETURNING job.id, job.status::text, job.queue_name
), woken AS (
    SELECT pg_notify('procrastinate_queue_v1#' || queue_name, '{"type": "job_inserted"}')
      FROM stored WHERE status = 'todo' GROUP BY queue_name
)
SELECT id, status, (SELECT count(*) FROM woken) FROM stored
"""
"""
Store how deliveries ended.

The answer may be lost with the connection, so that each report may come twice; and the call may have been taken from a
worker that seemed dead. A delivery is identified by the number of those before it: once the row has another number, its
report changes nothing. The exception is a success, which spares the other workers the call, and wins over the
presumption that workers died of it; unless it is *strict*, because the task has called complete(): then its rows were
rolled back, and those of another worker have to be written.

Workers are notified of what is put back, also with a delay: those that sleep until the next call is due look again.

The row belongs to no worker then: else a worker that leaves would lock it, and an operator who retries the call at that
moment would wait for the worker's row, in a circle.

What the row remembers about earlier deliveries is replaced by *note*, if there is one.
"""

# ---- complete() ----

BEGIN_COMPLETE: LiteralString = """
SELECT set_config('tasks_core.completes', ((%(id)s)::bigint)::text, true)
"""
"""
Set what the next statement looks for. It is gone with the transaction: in autocommit mode, before the next statement.
"""

COMPLETE: LiteralString = """
WITH ended AS (
    UPDATE procrastinate_jobs
       SET status = 'succeeded', attempts = attempts + 1, worker_id = NULL, abort_requested = false,
           args = CASE WHEN (%(note)s)::jsonb IS NULL THEN args ELSE (%(note)s)::jsonb || (args
               - '{failures,returns,deaths,misfit_since,misfits,given_up,result,errors,reason}'::text[]) END
     WHERE id = (%(id)s)::bigint AND status = 'doing' AND attempts = (%(attempts)s)::int
       AND args->>'key' = (%(key)s)::text
       AND current_setting('tasks_core.completes', true) = ((%(id)s)::bigint)::text
    RETURNING id
)
SELECT EXISTS (SELECT FROM ended),
       coalesce(current_setting('tasks_core.completes', true) = ((%(id)s)::bigint)::text, false)
"""
"""
Do what REPORT does for a success, in a transaction of the task, and say whether there is such a transaction.

The row stays locked until the transaction ends, so no statement of a worker may wait for the row: all that are not
about the delivery itself skip it, and those about the delivery wait until SETTLED has answered. The key is compared as
well, because the connection may lead to another database, where the row with this id is another task.
"""

SETTLED: LiteralString = """
WITH unlocked AS (
    SELECT status::text, attempts FROM procrastinate_jobs WHERE id = %(id)s FOR SHARE SKIP LOCKED
)
SELECT status, attempts FROM unlocked
 UNION ALL
SELECT 'gone', 0 WHERE NOT EXISTS (SELECT FROM procrastinate_jobs WHERE id = %(id)s)
"""
"""What became of a row that a transaction of the task may have locked; no row while it is locked."""

PROGRESS: LiteralString = """
UPDATE procrastinate_jobs SET args = jsonb_set(args, '{progress}', (%(progress)s)::jsonb)
 WHERE id = %(id)s AND status = 'doing' AND attempts = %(attempts)s
"""
"""A worker that has lost the call changes nothing: the next attempt goes on from the progress of its own."""

# ---- events ----

ADD_EVENTS: LiteralString = """
WITH given AS MATERIALIZED (
    SELECT * FROM unnest((%(ids)s)::bigint[], (%(attempts)s)::int[], (%(positions)s)::bigint[], (%(texts)s)::text[])
        AS event (job_id, attempt, position, event)
), running AS MATERIALIZED (
    SELECT id, attempts FROM procrastinate_jobs
     WHERE id = ANY(ARRAY(SELECT DISTINCT job_id FROM given)) AND status = 'doing'
     ORDER BY id FOR SHARE
), known AS MATERIALIZED (
    SELECT running.id, running.attempts,
           coalesce((SELECT number FROM tasks_events_v1
                      WHERE job_id = running.id ORDER BY number DESC LIMIT 1), 0) AS number,
           coalesce((SELECT position FROM tasks_events_v1
                      WHERE job_id = running.id AND attempt = running.attempts ORDER BY number DESC LIMIT 1), 0
           ) AS position
      FROM running
)
INSERT INTO tasks_events_v1 (job_id, number, attempt, position, event)
SELECT given.job_id, known.number + given.position - known.position, given.attempt, given.position, given.event
  FROM given JOIN known ON known.id = given.job_id AND known.attempts = given.attempt
 WHERE given.position > known.position
"""
"""
Store events of calls that this worker still runs, after those that are there.

The numbers of a delivery follow those of the one before it. Events that were dropped while the database was away leave
a gap, by which followers know of them.
"""

ADD_PROGRESS: LiteralString = """
WITH given AS MATERIALIZED (
    SELECT * FROM unnest((%(ids)s)::bigint[], (%(attempts)s)::int[], (%(texts)s)::jsonb[])
        AS progress (job_id, attempt, value)
), running AS MATERIALIZED (
    SELECT id, attempts FROM procrastinate_jobs
     WHERE id = ANY(ARRAY(SELECT job_id FROM given)) AND status = 'doing'
     ORDER BY id FOR UPDATE
)
UPDATE procrastinate_jobs AS job SET args = jsonb_set(job.args, '{progress}', given.value)
  FROM given JOIN running ON running.id = given.job_id AND running.attempts = given.attempt
 WHERE job.id = given.job_id
"""

TRIM_EVENTS: LiteralString = """
DELETE FROM tasks_events_v1 AS event USING (
    SELECT job_id, max(number) AS number FROM (
        SELECT job_id, number, row_number() OVER newest AS events, sum(octet_length(event)) OVER newest AS bytes
          FROM tasks_events_v1 WHERE job_id = ANY(%(ids)s)
        WINDOW newest AS (PARTITION BY job_id ORDER BY number DESC)
    ) AS counted
     WHERE events > %(most)s OR bytes > %(most_bytes)s GROUP BY job_id
) AS last
 WHERE event.job_id = last.job_id AND event.number <= last.number
"""
"""Delete the oldest events of calls that have more than is kept."""

FIND_FOLLOWED: LiteralString = f"""
SELECT id, args->>'key', args->'headers'->>'follow-owner' FROM procrastinate_jobs
 WHERE {_FOLLOWED} AND args->'headers'->>'follow' = %(token)s
UNION ALL
SELECT job.id, job.args->>'key',
       CASE WHEN job.args->'headers' ? 'follow' THEN job.args->'headers'->>'follow-owner' ELSE follower.owner END
  FROM tasks_followers_v1 AS follower JOIN procrastinate_jobs AS job ON job.id = follower.job_id
 WHERE follower.token = %(token)s
"""

READ_EVENTS: LiteralString = f"""
SELECT wanted.job_id, wanted.after, {_ENDED}, job.args->'progress' AS progress, event.number, event.event
  FROM unnest((%(ids)s)::bigint[], (%(afters)s)::bigint[]) AS wanted (job_id, after)
  JOIN procrastinate_jobs AS job ON job.id = wanted.job_id
  LEFT JOIN LATERAL (
    SELECT number, event FROM tasks_events_v1
     WHERE job_id = wanted.job_id AND number > wanted.after ORDER BY number LIMIT %(limit)s
 ) AS event ON true
 ORDER BY wanted.job_id, wanted.after, event.number
"""
"""One statement for all followers of a process, and one snapshot: a task that has ended has no later event."""

# ---- liveness ----

BEAT: LiteralString = "UPDATE procrastinate_workers SET last_heartbeat = now() WHERE id = ANY(%(ids)s) RETURNING id"

ABORTED: LiteralString = "SELECT id FROM procrastinate_jobs WHERE id = ANY(%(held)s) AND abort_requested"
"""The cancellations of which the notification did not arrive."""

RECOVER: LiteralString = f"""
WITH lost AS MATERIALIZED (
    SELECT job.id, coalesce(job.worker_id = ANY(%(former)s), false) AS unheard, coalesce(jsonb_path_query_array(
               job.args, '$.deaths[*] ? (@ > $since)',
               jsonb_build_object('since', extract(epoch FROM now()) - %(forget_after)s)
           ), '[]') || to_jsonb(extract(epoch FROM now())::float) AS deaths
      FROM procrastinate_jobs AS job
      LEFT JOIN procrastinate_workers AS worker ON worker.id = job.worker_id
     WHERE job.status = 'doing' AND job.{_TASK} AND job.queue_name = ANY(%(queues)s)
       AND job.id <> ALL(%(held)s)
       AND (job.worker_id = ANY(%(former)s)
            OR (%(silence)s)::float IS NOT NULL
               AND (worker.id IS NULL OR worker.last_heartbeat < now() - make_interval(secs => %(silence)s)))
     ORDER BY job.id LIMIT 1000 FOR UPDATE OF job SKIP LOCKED
)
UPDATE procrastinate_jobs AS job
   SET status = CASE WHEN job.abort_requested THEN 'aborted' ELSE 'todo' END::procrastinate_job_status,
       attempts = job.attempts + 1,
       abort_requested = false,
       scheduled_at = CASE WHEN lost.unheard OR jsonb_array_length(lost.deaths) >= %(max_deaths)s THEN now()
           ELSE now() + make_interval(secs => %(pause)s * power(4, jsonb_array_length(lost.deaths) - 1)) END,
       args = CASE WHEN lost.unheard THEN job.args || jsonb_build_object('returns', 1 + coalesce(
               jsonb_path_query_first(job.args, '$.returns ? (@ > 0 && @ < 1000000)'), '0')::int)
           WHEN jsonb_array_length(lost.deaths) >= %(max_deaths)s THEN job.args || jsonb_build_object(
               'deaths', lost.deaths,
               'given_up', jsonb_array_length(lost.deaths) || ' workers died while they ran it')
           ELSE job.args || jsonb_build_object('deaths', lost.deaths) END
  FROM lost WHERE job.id = lost.id
RETURNING job.id, job.args->>'name', job.args->>'key', job.queue_name, job.attempts, job.args->'returns',
          job.status::text, lost.unheard,
          jsonb_array_length(lost.deaths), job.args ? 'given_up'
"""
"""
Put back what no worker runs: what belongs to none, or to one that is silent.

Also what this process was given under a registration that it has left (*former*) and does not run: the answer to a
claim was lost with its connection. That is no death.

A death is stored with its time, and delays the call: with the other calls of the dead worker it must not be claimed
together again. A call with as many deaths as are allowed is given up by the next worker that claims it, which calls the
error handler of its function.

Nothing in a row can make the statement fail: what is read from `args` is read by a path that ignores other types.
"""

# ---- operators ----

OPERATOR_SETTINGS: LiteralString = """
SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off; SET LOCAL statement_timeout = '60s'
"""
"""
The statements of this section find rows by indexes as well, also in tables without statistics.

They read an index in its order, and stop. A bitmap has no order, so that all of its rows would be read.
"""

_WAITING_GROUPS: LiteralString = f"""
WITH RECURSIVE groups (name, priority) AS (
    (SELECT args->>'name', priority FROM procrastinate_jobs
      WHERE {_TODO} AND scheduled_at IS NULL AND queue_name = queue.name
      ORDER BY args->>'name', priority DESC LIMIT 1)
    UNION ALL
    SELECT next.name, next.priority FROM groups CROSS JOIN LATERAL (
        SELECT * FROM (
            (SELECT args->>'name' AS name, priority FROM procrastinate_jobs
              WHERE {_TODO} AND scheduled_at IS NULL AND queue_name = queue.name
                AND args->>'name' = groups.name AND priority < groups.priority
              ORDER BY priority DESC LIMIT 1)
            UNION ALL
            (SELECT args->>'name', priority FROM procrastinate_jobs
              WHERE {_TODO} AND scheduled_at IS NULL AND queue_name = queue.name AND args->>'name' > groups.name
              ORDER BY args->>'name', priority DESC LIMIT 1)
        ) AS both_kinds ORDER BY name LIMIT 1
    ) AS next
)
SELECT max(extract(epoch FROM now() - (
    SELECT max(at) FROM procrastinate_events WHERE job_id = oldest.id AND type <> 'scheduled'
)))::float AS age
  FROM groups CROSS JOIN LATERAL (
    SELECT id FROM procrastinate_jobs
     WHERE {_TODO} AND scheduled_at IS NULL AND queue_name = queue.name
       AND args->>'name' = groups.name AND priority = groups.priority
     ORDER BY id LIMIT 1
) AS oldest
"""
"""
For how long the oldest of the calls has waited that have no time of their own, read by jumping from name to name.

The age counts from its last event, because a call that was put back has waited since then.
"""

_DELAYED_GROUPS: LiteralString = f"""
WITH RECURSIVE groups (name) AS (
    (SELECT args->>'name' FROM procrastinate_jobs
      WHERE {_TODO} AND scheduled_at IS NOT NULL AND queue_name = queue.name ORDER BY args->>'name' LIMIT 1)
    UNION ALL
    SELECT (SELECT args->>'name' FROM procrastinate_jobs
             WHERE {_TODO} AND scheduled_at IS NOT NULL AND queue_name = queue.name AND args->>'name' > groups.name
             ORDER BY args->>'name' LIMIT 1)
      FROM groups WHERE groups.name IS NOT NULL
)
SELECT coalesce(sum(due.count), 0)::bigint AS due, max(due.age) AS age
  FROM groups CROSS JOIN LATERAL (
    SELECT count(*), extract(epoch FROM now() - min(scheduled_at))::float AS age FROM (
        SELECT scheduled_at FROM procrastinate_jobs
         WHERE {_TODO} AND scheduled_at <= now() AND queue_name = queue.name AND args->>'name' = groups.name
         ORDER BY scheduled_at LIMIT %(count_to)s
    ) AS rows
) AS due
"""
"""The delayed calls that are due: they wait as well."""

STATISTICS: LiteralString = f"""
WITH lately AS MATERIALIZED (
    SELECT job_id, type, at FROM (SELECT * FROM procrastinate_events ORDER BY id DESC LIMIT 2000) AS last_events
     WHERE type <> 'scheduled' AND at > now() - interval '1 minute'
), span AS (
    SELECT CASE count(*) WHEN 2000 THEN greatest(extract(epoch FROM now() - min(at))::float, 1) ELSE 60 END AS seconds
      FROM lately
), ends AS MATERIALIZED (
    SELECT job.queue_name, count(*) AS count FROM lately JOIN procrastinate_jobs AS job ON job.id = lately.job_id
     WHERE lately.type IN ('succeeded', 'failed', 'cancelled', 'aborted') GROUP BY job.queue_name
)
SELECT queue.name,
       least(ready.count + delayed.due, %(count_to)s), running.count, failed.count,
       greatest(late.count - delayed.due, 0), greatest(waiting.age, delayed.age, 0),
       coalesce((SELECT ends.count / span.seconds FROM ends, span WHERE ends.queue_name = queue.name), 0)::float,
       workers.alive, workers.silent,
       EXISTS (SELECT FROM tasks_pauses_v1 AS pause WHERE pause.queue = queue.name AND pause.name = ''),
       ARRAY(SELECT pause.name FROM tasks_pauses_v1 AS pause
              WHERE pause.queue = queue.name AND pause.name <> '' ORDER BY pause.name),
       ready.count + late.count > 0 AND greatest(waiting.age, delayed.age) IS NOT NULL
  FROM unnest((%(queues)s)::text[]) AS queue (name)
 CROSS JOIN LATERAL (SELECT count(*) FROM (
    SELECT FROM procrastinate_jobs
     WHERE {_TODO} AND scheduled_at IS NULL AND queue_name = queue.name LIMIT %(count_to)s) AS rows) AS ready
 CROSS JOIN LATERAL (SELECT count(*) FROM (
    SELECT FROM procrastinate_jobs
     WHERE {_TODO} AND scheduled_at IS NOT NULL AND queue_name = queue.name LIMIT %(count_to)s) AS rows) AS late
 CROSS JOIN LATERAL (SELECT count(*) FROM (
    SELECT FROM procrastinate_jobs
     WHERE status = 'doing' AND {_TASK} AND queue_name = queue.name LIMIT %(count_to)s) AS rows) AS running
 CROSS JOIN LATERAL (SELECT count(*) FROM (
    SELECT FROM procrastinate_jobs
     WHERE status = 'failed' AND {_TASK} AND queue_name = queue.name LIMIT %(count_to)s) AS rows) AS failed
 CROSS JOIN LATERAL ({_WAITING_GROUPS}) AS waiting
 CROSS JOIN LATERAL ({_DELAYED_GROUPS}) AS delayed
 CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE last_heartbeat >= now() - make_interval(secs => %(silence)s)) AS alive,
           count(*) FILTER (WHERE last_heartbeat < now() - make_interval(secs => %(silence)s)) AS silent
      FROM tasks_workers_v2 AS known JOIN procrastinate_workers AS worker USING (id)
     WHERE queue.name = ANY(known.queues)) AS workers
 ORDER BY queue.name
"""
"""All numbers of all queues in one statement. No part of it reads more than *count_to* rows, by indexes only."""

TAKE_TURNS: LiteralString = """
INSERT INTO tasks_turns_v1 AS turn (queue, holder, until)
SELECT queue, %(holder)s, now() + make_interval(secs => %(seconds)s)
  FROM unnest((%(queues)s)::text[]) AS queue ORDER BY queue
ON CONFLICT (queue) DO UPDATE SET holder = excluded.holder, until = excluded.until
 WHERE turn.holder = excluded.holder OR turn.until < now()
RETURNING queue
"""
"""The queues whose turn this process has now: those that no other process has looked at for a while."""

_ERROR: LiteralString = "job.args->'errors'->-1->>'error'"

_LOOKED: LiteralString = f"""
SELECT job.id, job.queue_name = ANY(%(queues)s) AND job.{_TASK}
       AND (%(name)s::text IS NULL OR job.args->>'name' = %(name)s)
       AND (%(error)s::text IS NULL OR coalesce(strpos(lower({_ERROR}), lower(%(error)s)) > 0, false))
"""

_BEFORE: LiteralString = (
    "(SELECT least(%(after)s, (SELECT tasks_first_id_v1(now() - make_interval(secs => %(older_than)s)) "
    "WHERE %(older_than)s::float IS NOT NULL)))"
)


def _in_order_of_id(state: LiteralString, where: LiteralString = "true") -> LiteralString:
    """Look at rows by an index whose order is that of `id`."""
    return (
        f"{_LOOKED} AND {state} AS fits FROM procrastinate_jobs AS job"
        f" WHERE {where} AND job.id < {_BEFORE} ORDER BY job.id DESC LIMIT %(look)s"
    )


def _by_queue(status: LiteralString) -> LiteralString:
    """Look at the last rows of each queue, in an index that has the rows of this status only."""
    return (
        f"SELECT last.* FROM unnest((%(queues)s)::text[]) AS queue (name) CROSS JOIN LATERAL ({_LOOKED} AS fits"
        f" FROM procrastinate_jobs AS job WHERE job.status = '{status}' AND job.{_TASK}"
        f" AND job.queue_name = queue.name AND job.id + 0 < {_BEFORE} ORDER BY job.id + 0 DESC LIMIT %(look)s) AS last"
        f" ORDER BY last.id DESC LIMIT %(look)s"
    )


_LOOKS: dict[str, LiteralString] = {
    "any": _in_order_of_id("true"),
    "succeeded": _in_order_of_id("job.status = 'succeeded'"),
    "pending": _in_order_of_id("job.status = 'todo'", "job.status IN ('todo', 'doing')"),
    "running": _by_queue("doing"),
    "unfinished": _in_order_of_id("true", "job.status IN ('todo', 'doing')"),
    "failed": _by_queue("failed"),
    "cancelled": (
        f"SELECT * FROM ((SELECT * FROM ({_by_queue('cancelled')}) AS one)"
        f" UNION ALL (SELECT * FROM ({_by_queue('aborted')}) AS two)) AS both_kinds ORDER BY id DESC LIMIT %(look)s"
    ),
}

FIND_IDS: dict[str, LiteralString] = {
    state: f"""
WITH looked AS MATERIALIZED ({look})
SELECT count(*), min(id), ARRAY(SELECT id FROM looked WHERE fits ORDER BY id DESC LIMIT %(limit)s) FROM looked
"""
    for state, look in _LOOKS.items()
}
"""
Look at the next *look* rows before *after*, the last first, and return the ids of those that fit.

How much is read is bounded by *look*, whatever the filter; the caller goes on with another look.
"""

_DETAILS: LiteralString = f"""
SELECT job.id, job.args->>'key', job.args->>'name', job.queue_name, {_ENDED},
       events.submitted_at, events.changed_at,
       CASE WHEN job.status = 'todo' AND job.scheduled_at > now() THEN job.scheduled_at END, {_ERROR}
"""

_EVENTS: LiteralString = """
CROSS JOIN LATERAL (
    SELECT min(at) AS submitted_at, max(at) AS changed_at FROM procrastinate_events
     WHERE job_id = job.id AND type <> 'scheduled'
) AS events
"""

FIND: LiteralString = (
    f"{_DETAILS} FROM procrastinate_jobs AS job {_EVENTS} WHERE job.id = ANY(%(ids)s) ORDER BY job.id DESC"
)

SHOW: LiteralString = f"""
{_DETAILS}, job.args - CASE WHEN (%(arguments)s)::boolean THEN '' ELSE 'args' END,
       (SELECT jsonb_agg(jsonb_build_array(type, extract(epoch FROM at)) ORDER BY event.id)
          FROM procrastinate_events AS event WHERE event.job_id = job.id AND type <> 'scheduled')
  FROM procrastinate_jobs AS job {_EVENTS}
 WHERE job.id = %(id)s AND job.{_TASK} AND job.queue_name = ANY(%(queues)s)
"""
"""Arguments do not leave the database unless they were asked for."""

_CHOSEN: LiteralString = f"""
SELECT id, status, scheduled_at FROM procrastinate_jobs
 WHERE id = ANY(%(ids)s) AND {_TASK} AND queue_name = ANY(%(queues)s)
"""

RETRY: LiteralString = f"""
WITH chosen AS MATERIALIZED (
    {_CHOSEN} AND (status IN ('failed', 'cancelled', 'aborted') OR status = 'todo' AND scheduled_at > now())
     ORDER BY id FOR UPDATE
), changed AS (
    UPDATE procrastinate_jobs AS job
       SET status = 'todo', scheduled_at = now(), abort_requested = false, worker_id = NULL,
           args = CASE chosen.status WHEN 'todo' THEN job.args
               ELSE job.args - '{{failures,deaths,misfits,misfit_since,given_up,returns,reason}}'::text[]
                   || jsonb_build_object('returns', greatest(0, coalesce(jsonb_path_query_first(
                       job.args, '$.returns ? (@ > 0 && @ < 1000000)'), '0')::int
                       - CASE chosen.status WHEN 'failed' THEN 1 ELSE 0 END)) END
      FROM chosen WHERE job.id = chosen.id
    RETURNING job.id, job.args->>'name' AS name, job.args->>'key' AS key, job.queue_name, chosen.status
), noted AS (
    INSERT INTO procrastinate_events (job_id, type)
    SELECT id, 'retried' FROM changed WHERE status IN ('cancelled', 'aborted')
), woken AS (
    SELECT pg_notify('procrastinate_queue_v1#' || queue_name, '{{"type": "job_inserted"}}')
      FROM changed GROUP BY queue_name
)
SELECT id, name, key, queue_name, (SELECT count(*) FROM woken) FROM changed ORDER BY id
"""
"""
Have calls that failed or were cancelled begin again, and delayed ones be due.

The row forgets the failures, so that the call has all attempts of its policy again. The last failure counted one
delivery that was none, for the retry of procrastinate, which adds one.
"""

CANCEL: LiteralString = f"""
WITH chosen AS MATERIALIZED (
    {_CHOSEN} AND status IN ('todo', 'doing') AND NOT abort_requested ORDER BY id FOR UPDATE
)
UPDATE procrastinate_jobs AS job
   SET status = CASE job.status WHEN 'todo' THEN 'cancelled' ELSE job.status END,
       abort_requested = job.status = 'doing'
  FROM chosen WHERE job.id = chosen.id
RETURNING job.id, job.args->>'name', job.args->>'key', job.queue_name
"""
"""A trigger of procrastinate notifies the worker of a call that is running."""

DISCARD: LiteralString = f"""
DELETE FROM procrastinate_jobs WHERE id = ANY(ARRAY(
    SELECT id FROM ({_CHOSEN} AND status IN ('failed', 'cancelled', 'aborted') ORDER BY id FOR UPDATE) AS chosen
)) RETURNING id, args->>'name', args->>'key', queue_name
"""

COUNT_RETRY: LiteralString = f"""
SELECT count(*) FROM ({_CHOSEN}
   AND (status IN ('failed', 'cancelled', 'aborted') OR status = 'todo' AND scheduled_at > now())) AS chosen
"""
COUNT_CANCEL: LiteralString = f"""
SELECT count(*) FROM ({_CHOSEN} AND status IN ('todo', 'doing') AND NOT abort_requested) AS chosen
"""
COUNT_DISCARD: LiteralString = f"""
SELECT count(*) FROM ({_CHOSEN} AND status IN ('failed', 'cancelled', 'aborted')) AS chosen
"""

PAUSE: LiteralString = """
INSERT INTO tasks_pauses_v1 (queue, name) SELECT queue, %(name)s FROM unnest((%(queues)s)::text[]) AS queue
ON CONFLICT DO NOTHING RETURNING queue
"""

RESUME: LiteralString = """
WITH ended AS (
    DELETE FROM tasks_pauses_v1 WHERE queue = ANY(%(queues)s) AND name = %(name)s RETURNING queue
)
SELECT queue, pg_notify('procrastinate_queue_v1#' || queue, '{"type": "job_inserted"}') FROM ended
"""

PAUSES: LiteralString = """
SELECT queue, nullif(name, ''), since FROM tasks_pauses_v1 WHERE queue = ANY(%(queues)s) ORDER BY queue, name
"""

# ---- housekeeping ----

HOUSEKEEPING_LOCK: LiteralString = "SELECT pg_try_advisory_xact_lock(7459620184)"
"""One worker at a time does it; it does one batch in each transaction."""

PURGE: LiteralString = """
WITH seen AS MATERIALIZED (
    SELECT id, job_id, type, at FROM procrastinate_events WHERE id > %(after)s ORDER BY id LIMIT 2000
), old AS MATERIALIZED (
    SELECT DISTINCT job.id FROM seen JOIN procrastinate_jobs AS job ON job.id = seen.job_id
     WHERE seen.type IN ('succeeded', 'failed', 'cancelled', 'aborted')
       AND job.queue_name = ANY(%(queues)s) AND job.task_name = 'tasks_core.run'
       AND job.status IN ('succeeded', 'failed', 'cancelled', 'aborted')
       AND NOT EXISTS (
            SELECT FROM procrastinate_events AS event
             WHERE event.job_id = job.id AND event.type <> 'scheduled' AND event.at > now() - make_interval(
                secs => CASE job.status
                    WHEN 'succeeded' THEN %(succeeded)s WHEN 'failed' THEN %(failed)s ELSE %(cancelled)s END))
), gone AS (
    DELETE FROM procrastinate_jobs WHERE id = ANY(ARRAY(
        SELECT id FROM procrastinate_jobs WHERE id = ANY(ARRAY(SELECT id FROM old)) FOR UPDATE SKIP LOCKED
    )) RETURNING id
)
SELECT max(id), (SELECT count(*) FROM gone),
       coalesce(max(at) FILTER (WHERE type <> 'scheduled') < now() - make_interval(secs => %(least)s), false)
  FROM seen
"""
"""
Delete up to 2,000 rows that have been kept for their time, and say where to go on, and whether older ones may follow.

The time of the end of a task is in the events only. They are read in the order in which they were written, from the
oldest: those of rows that were deleted are gone, so that a run reads little more than it deletes.
"""

FILL_KEYS: LiteralString = f"""
WITH RECURSIVE waiting (lock) AS (
    (SELECT lock FROM procrastinate_jobs WHERE {_TODO} AND args ? 'behind' ORDER BY lock LIMIT 1)
    UNION ALL
    SELECT (SELECT lock FROM procrastinate_jobs
             WHERE {_TODO} AND args ? 'behind' AND lock > waiting.lock ORDER BY lock LIMIT 1)
      FROM waiting WHERE waiting.lock IS NOT NULL
)
SELECT tasks_fill_v1(lock) FROM waiting
 WHERE lock IS NOT NULL AND NOT EXISTS (SELECT FROM tasks_heads_v1 AS first WHERE first.lock = waiting.lock)
"""
"""
Let run what waits behind nothing.

That is left if a transaction that was about to replace a waiting call is rolled back, and the task before it ended
meanwhile; or by an operator who switched triggers off.
"""

FORGET_WORKERS: LiteralString = """
DELETE FROM procrastinate_workers AS worker WHERE last_heartbeat < now() - interval '1 day'
   AND id IN (SELECT id FROM tasks_workers_v2)
   AND NOT EXISTS (SELECT FROM procrastinate_jobs WHERE worker_id = worker.id AND status = 'doing')
"""
"""One that has a call is kept: to forget it would change the row of the call, which an open transaction may lock."""

UNKNOWN: LiteralString = f"""
WITH RECURSIVE ready (name) AS (
    (SELECT args->>'name' FROM procrastinate_jobs
      WHERE {_READY} AND scheduled_at IS NULL AND queue_name = %(queue)s ORDER BY args->>'name' LIMIT 1)
    UNION ALL
    SELECT (SELECT args->>'name' FROM procrastinate_jobs
             WHERE {_READY} AND scheduled_at IS NULL AND queue_name = %(queue)s AND args->>'name' > ready.name
             ORDER BY args->>'name' LIMIT 1)
      FROM ready WHERE ready.name IS NOT NULL
), delayed (name) AS (
    (SELECT args->>'name' FROM procrastinate_jobs
      WHERE {_READY} AND scheduled_at IS NOT NULL AND queue_name = %(queue)s ORDER BY args->>'name' LIMIT 1)
    UNION ALL
    SELECT (SELECT args->>'name' FROM procrastinate_jobs
             WHERE {_READY} AND scheduled_at IS NOT NULL AND queue_name = %(queue)s AND args->>'name' > delayed.name
             ORDER BY args->>'name' LIMIT 1)
      FROM delayed WHERE delayed.name IS NOT NULL
)
SELECT name FROM (SELECT name FROM ready UNION SELECT name FROM delayed) AS waiting
 WHERE name IS NOT NULL AND NOT EXISTS (
    SELECT FROM tasks_workers_v2 AS known JOIN procrastinate_workers AS worker USING (id)
     WHERE %(queue)s = ANY(known.queues) AND waiting.name = ANY(known.names)
       AND worker.last_heartbeat > now() - make_interval(secs => %(silence)s)
)
"""
"""The names of waiting calls that no living worker of the queue knows, read by jumping from name to name."""

UNSERVED: LiteralString = f"""
WITH RECURSIVE ready (queue) AS (
    (SELECT queue_name::text FROM procrastinate_jobs
      WHERE {_READY} AND scheduled_at IS NULL ORDER BY queue_name LIMIT 1)
    UNION ALL
    SELECT (SELECT queue_name::text FROM procrastinate_jobs
             WHERE {_READY} AND scheduled_at IS NULL AND queue_name > ready.queue ORDER BY queue_name LIMIT 1)
      FROM ready WHERE ready.queue IS NOT NULL
), found AS (
    SELECT queue, name FROM ready CROSS JOIN unnest((%(names)s)::text[]) AS known (name)
     WHERE queue IS NOT NULL AND NOT EXISTS (
        SELECT FROM tasks_workers_v2 AS known JOIN procrastinate_workers AS worker USING (id)
         WHERE ready.queue = ANY(known.queues) AND worker.last_heartbeat > now() - make_interval(secs => %(silence)s)
     )
)
SELECT queue, name FROM found
 WHERE EXISTS (
    SELECT FROM procrastinate_jobs
     WHERE {_READY} AND scheduled_at IS NULL AND queue_name = found.queue AND args->>'name' = found.name
 )
"""
"""
The queues that no living worker serves, with each function of this worker of which calls wait there.

That is read by jumping from queue to queue. Calls of other functions are not looked for, because they may be those of
another application, whose workers are another's concern.
"""

_OF_NAME: LiteralString = f"""
{_READY} AND queue_name = %(queue)s AND args->>'name' = %(name)s AND (scheduled_at IS NULL OR scheduled_at <= now())
"""

MARK_UNKNOWN: LiteralString = f"""
UPDATE procrastinate_jobs
   SET args = args || jsonb_build_object('misfit_since', extract(epoch FROM now())::float)
 WHERE id = ANY(ARRAY(
    SELECT id FROM procrastinate_jobs WHERE {_OF_NAME} AND NOT args ? 'misfit_since' LIMIT 1000 FOR UPDATE SKIP LOCKED
 ))
RETURNING id
"""
"""The time for which a call may wait for a worker that knows its function begins when a worker notices it."""

GIVE_UP_UNKNOWN: LiteralString = f"""
UPDATE procrastinate_jobs
   SET status = 'failed', args = args || '{{"given_up": "no worker knew its function"}}'
 WHERE id = ANY(ARRAY(
    SELECT id FROM procrastinate_jobs
     WHERE {_OF_NAME} AND jsonb_path_exists(args, '$.misfit_since ? (@ <= $before)',
               jsonb_build_object('before', extract(epoch FROM now()) - %(unknown_for)s))
     LIMIT 1000 FOR UPDATE SKIP LOCKED
 ))
RETURNING id, args->>'key'
"""
