"""Configuration: what may be said, and how it is inherited."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import anyio
import pytest
from core_support import EventLog, noop
from hypothesis import given
from hypothesis import strategies as st
from tasks_core import Retry, TaskConfig, TaskPhase, TaskScheduler, TasksError, by_exception, chain, observe, retry
from tasks_core.exceptions import InvalidConfigError


def handle(task: object, error: Exception) -> None: ...


# For arguments that a type checker would refuse.
any_retry: Any = retry
any_chain: Any = chain
any_by_exception: Any = by_exception
any_batch: Any = TaskPhase


limiters = [anyio.CapacityLimiter(1), anyio.CapacityLimiter(2)]
configs = st.builds(
    TaskConfig,
    name=st.none() | st.sampled_from(["a", "b"]),
    shield=st.none() | st.booleans(),
    on_error=st.none() | st.just(handle),
    when=st.none() | st.sampled_from(["success", "error", "always"]),
    timeout=st.none() | st.sampled_from([1, 2.5, math.inf]),
    delay=st.none() | st.sampled_from([0, 1, 2.5]),
    limiter=st.none() | st.sampled_from(limiters),
)


@given(configs)
def test_the_empty_configuration_changes_nothing(config: TaskConfig) -> None:
    assert config.merge(TaskConfig()) == TaskConfig().merge(config) == config.merge(None) == config


@given(configs)
def test_merging_with_itself_changes_nothing(config: TaskConfig) -> None:
    assert config.merge(config) == config


@given(configs, configs, configs)
def test_inheritance_can_be_grouped_in_any_way(a: TaskConfig, b: TaskConfig, c: TaskConfig) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@given(configs, configs)
def test_what_the_other_says_counts(a: TaskConfig, b: TaskConfig) -> None:
    merged = a.merge(b)
    for field in dataclasses.fields(TaskConfig):
        theirs = getattr(b, field.name)
        assert getattr(merged, field.name) == (getattr(a, field.name) if theirs is None else theirs)


def test_false_and_zero_are_said_and_not_inherited() -> None:
    merged = TaskConfig(shield=True, delay=5).merge(TaskConfig(shield=False, delay=0))
    assert (merged.shield, merged.shielded, merged.delay) == (False, False, 0)
    assert TaskConfig(shield=True).shielded
    assert not TaskConfig().shielded


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskConfig().name = "x"  # type: ignore[misc]  # the error is the point


@pytest.mark.anyio
async def test_inheritance_from_scheduler_to_batch_to_task() -> None:
    async with TaskScheduler(config=TaskConfig(shield=True, timeout=60, name="of scheduler")) as scheduler:
        batch = TaskPhase(scheduler, "later", config=TaskConfig(timeout=30, name="of batch"))
        configured = batch.task(name="of task", delay=1).task(delay=0)
        task = configured.schedule(noop)
        assert task.config == TaskConfig(shield=True, timeout=30, name="of task", delay=0)
        assert batch.schedule(noop).config == TaskConfig(shield=True, timeout=30, name="of batch")
        assert scheduler.task(shield=False).schedule(noop).config.shielded is False
        batch.open()


@pytest.mark.anyio
async def test_a_configured_schedule_can_be_kept() -> None:
    async with TaskScheduler() as scheduler:
        kept = scheduler.task(name="kept")
        assert [kept.schedule(noop).name for _ in range(2)] == ["kept", "kept"]


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name='': name must be a text that is not empty, as in name='charge'"),
    ({"name": 5}, "name=5: name must be a text that is not empty, as in name='charge'"),
    ({"shield": "yes"}, "shield='yes': shield must be True or False, as in shield=True"),
    ({"shield": 1}, "shield=1: shield must be True or False, as in shield=True"),
    (
        {"on_error": [1]},
        "on_error=<list>: on_error must be a function of (task, exception), as in on_error=retry(attempts=3)",
    ),
    (
        {"on_error": retry},
        "on_error=<function>: on_error must be a function of (task, exception), as in on_error=retry(attempts=3)",
    ),
    ({"on_end": lambda: None}, "on_end=<function>: on_end must be a function of (task), as in on_end=close_job"),
    ({"when": "sometimes"}, "when='sometimes': when must be 'success', 'error' or 'always', as in when='error'"),
    ({"timeout": -1}, "timeout=-1: timeout must be a number of seconds above 0, as in timeout=30"),
    ({"timeout": 0}, "timeout=0: timeout must be a number of seconds above 0, as in timeout=30"),
    ({"timeout": math.nan}, "timeout=nan: timeout must be a number of seconds above 0, as in timeout=30"),
    ({"timeout": True}, "timeout=True: timeout must be a number of seconds above 0, as in timeout=30"),
    ({"timeout": "5"}, "timeout='5': timeout must be a number of seconds above 0, as in timeout=30"),
    ({"delay": -0.5}, "delay=-0.5: delay must be a finite number of seconds, 0 or more, as in delay=5"),
    ({"delay": math.inf}, "delay=inf: delay must be a finite number of seconds, 0 or more, as in delay=5"),
    ({"limiter": 4}, "limiter=4: limiter must be an anyio.CapacityLimiter, as in limiter=CapacityLimiter(4)"),
]


@pytest.mark.parametrize("options, message", BAD_OPTIONS)
def test_a_bad_option_is_refused_where_it_is_given(options: dict[str, Any], message: str) -> None:
    pattern = f"^{re.escape(message)}$"
    scheduler = TaskScheduler()
    with pytest.raises(InvalidConfigError, match=pattern) as caught:
        TaskConfig(**options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TasksError)
    with pytest.raises(InvalidConfigError, match=pattern):
        scheduler.task(**options)
    with pytest.raises(InvalidConfigError, match=pattern):
        TaskPhase(scheduler, "later").task(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"config": {"shield": True}},
            "config=<dict>: config must be a TaskConfig without a key, which is for one call, "
            "as in config=TaskConfig(on_error=report)",
        ),
        ({"grace_period": -1}, "grace_period=-1: grace_period must be a number of seconds, 0 or more"),
        ({"grace_period": "5"}, "grace_period='5': grace_period must be a number of seconds, 0 or more"),
        ({"grace_period": None}, "grace_period=None: grace_period must be a number of seconds, 0 or more"),
        ({"shield_timeout": -2.5}, "shield_timeout=-2.5: shield_timeout must be a number of seconds, 0 or more"),
        ({"max_concurrency": 0}, "max_concurrency=0: max_concurrency must be a whole number, 1 or more"),
        ({"max_concurrency": 1.5}, "max_concurrency=1.5: max_concurrency must be a whole number, 1 or more"),
        ({"max_pending": 0}, "max_pending=0: max_pending must be a whole number, 1 or more"),
        ({"max_pending": True}, "max_pending=True: max_pending must be a whole number, 1 or more"),
        ({"max_threads": 0}, "max_threads=0: max_threads must be a whole number, 1 or more"),
        ({"max_threads": None}, "max_threads=None: max_threads must be a whole number, 1 or more"),
        (
            {"clock": 5},
            "clock=5: clock must be an object with the methods now() and sleep_until(); see tasks_core.Clock",
        ),
    ],
)
def test_a_bad_argument_of_the_scheduler_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=f"^{re.escape(message)}$"):
        TaskScheduler(**options)


def test_extreme_but_good_arguments() -> None:
    TaskScheduler(grace_period=0, shield_timeout=0, max_concurrency=1, max_pending=1, max_threads=1)
    TaskScheduler(grace_period=math.inf, shield_timeout=None)
    assert TaskConfig(timeout=math.inf, delay=0).timeout == math.inf


HANDLERS = (
    "it takes at least one handler, each a function of (task, exception), as in chain(report, retry(attempts=3)) or "
    "by_exception({OSError: retry(attempts=3)})"
)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Retry(delay=-1), "Retry(delay=-1): delay must be a finite number of seconds, 0 or more"),
        (lambda: Retry(delay=math.inf), "Retry(delay=inf): delay must be a finite number of seconds, 0 or more"),
        (lambda: any_retry(attempts=0), "retry(attempts=0): attempts must be a whole number, 1 or more"),
        (lambda: any_retry(attempts=1.5), "retry(attempts=1.5): attempts must be a whole number, 1 or more"),
        (lambda: any_retry(attempts=True), "retry(attempts=True): attempts must be a whole number, 1 or more"),
        (
            lambda: any_retry(on=()),
            "retry(on=()): on must be a subclass of Exception or a tuple of them, as in on=(OSError, TimeoutError)",
        ),
        (
            lambda: any_retry(on="OSError"),
            "retry(on=('OSError')): on must be a subclass of Exception or a tuple of them, as in "
            "on=(OSError, TimeoutError)",
        ),
        (
            lambda: any_retry(on=(OSError, KeyboardInterrupt)),
            "retry(on=(OSError, KeyboardInterrupt)): on must be a subclass of Exception or a tuple of them, as in "
            "on=(OSError, TimeoutError)",
        ),
        (
            lambda: retry(backoff=-1),
            "retry(backoff=-1): backoff must be a finite number of seconds, 0 or more",
        ),
        (
            lambda: retry(max_delay=math.inf),
            "retry(max_delay=inf): max_delay must be a finite number of seconds, 0 or more",
        ),
        (lambda: retry(jitter=1.5), "retry(jitter=1.5): jitter must be a number from 0 to 1"),
        (lambda: retry(jitter=-0.5), "retry(jitter=-0.5): jitter must be a number from 0 to 1"),
        (chain, f"chain(): {HANDLERS}"),
        (lambda: any_chain(print, 5), f"chain(print, 5): {HANDLERS}"),
        (lambda: by_exception({}), f"by_exception(): {HANDLERS}"),
        (lambda: any_by_exception({OSError: 5}), f"by_exception(5): {HANDLERS}"),
        (
            lambda: any_batch(TaskScheduler(), ""),
            "TaskPhase(scheduler, ''): name must be a text, such as \"after_commit\"",
        ),
        (
            lambda: any_batch(TaskScheduler(), 5),
            'TaskPhase(scheduler, 5): name must be a text, such as "after_commit"',
        ),
        (
            lambda: any_batch(TaskScheduler(), "x").open("maybe"),
            "open('maybe'): outcome must be 'success' or 'error'",
        ),
        (
            lambda: TaskScheduler().task(when="error"),
            "when='error': a task that starts now cannot wait for an outcome. "
            "Schedule it into a phase: tasks.after_response.task(when='error').schedule(...)",
        ),
    ],
)
def test_other_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=f"^{re.escape(message)}$"):
        make()


def test_observe_returns_what_ends_it() -> None:
    subscription = observe(EventLog())
    with subscription as same:
        assert same is subscription
    subscription.close()  # again: nothing happens
