"""
Whatever is done to a scheduler, and in whatever order: its promises hold.

`TASKS_CORE_SOAK=300` takes as many examples for each event loop in place of the few of the normal run; see
benchmarks/soak.py.
"""

from __future__ import annotations

import os

import pytest
from core_machine import SchedulerMachine, TrioSchedulerMachine, UvloopSchedulerMachine
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

SOAK = int(os.environ.get("TASKS_CORE_SOAK", "0"))


@pytest.mark.timeout(0 if SOAK else 120)
@pytest.mark.parametrize("machine", [SchedulerMachine, UvloopSchedulerMachine, TrioSchedulerMachine])
def test_the_promises_hold_whatever_happens(machine: type[SchedulerMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=SOAK or 50,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not SOAK,
            database=None,
        ),
    )
