"""The promises of a durable call rest on each guard in the statements of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import tasks_core.engines.procrastinate
from core_durable_model import (
    COUNTED,
    DEAD_CALLED,
    ENDS,
    GUARDS,
    NOT_AGAIN,
    PROMISES,
    RUNS_ONCE,
    SUCCESS_STAYS,
    explore,
)

# What breaks without a guard.
BREAKS = {
    "deliver: only what waits": RUNS_ONCE,
    "report: only of the current delivery": COUNTED,
    "report: success always counts": SUCCESS_STAYS,
    "reap: only what runs": RUNS_ONCE,
    "reap: only of the silent": DEAD_CALLED,
    "reap: not what runs here": DEAD_CALLED,
    "reap: also of workers that are forgotten": ENDS,
    "reap: also what was lost on its way": ENDS,
    "reap: not right after an outage": DEAD_CALLED,
    "reap: one at a time": RUNS_ONCE,
    "reap: not again and again": NOT_AGAIN,
}

# The text of each guard in the engine on PostgreSQL.
IN_THE_ENGINE = {
    "deliver: only what waits": "LIMIT %(look)s)) AND status = 'todo'",
    "report: only of the current delivery": "job.status = 'doing' AND job.attempts = reported.attempts",
    "report: success always counts": "OR reported.state = 'succeeded' AND NOT reported.strict AND (job.status = 'todo'",
    "reap: only what runs": "WHERE job.status = 'doing' AND job.",
    "reap: only of the silent": "worker.last_heartbeat < now() - make_interval(secs => %(silence)s)",
    "reap: not what runs here": "AND job.id <> ALL(%(held)s)",
    "reap: also of workers that are forgotten": "(worker.id IS NULL OR worker.last_heartbeat",
    "reap: also what was lost on its way": "(job.worker_id = ANY(%(former)s) OR",
    "reap: not right after an outage": "silence if monotonic() >= self._judges_from else None",
    "reap: one at a time": "FOR UPDATE OF job SKIP LOCKED",
    "reap: not again and again": "jsonb_array_length(lost.deaths) >= %(max_deaths)s",
}


def test_no_state_breaks_a_promise() -> None:
    result = explore()
    assert result.broken is None, result.trace
    assert result.states > 10_000, "the model has become so small that it shows nothing"


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_needed(guard: str) -> None:
    result = explore(without=guard)
    assert result.broken == BREAKS[guard], result.trace
    assert result.trace


def test_each_promise_is_one_that_can_be_broken() -> None:
    assert set(BREAKS.values()) == set(PROMISES)


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_in_the_engine(guard: str) -> None:
    engine = Path(tasks_core.engines.procrastinate.__file__).parent
    source = " ".join(module.read_text() for module in engine.glob("*.py"))
    assert IN_THE_ENGINE[guard] in " ".join(source.split())
