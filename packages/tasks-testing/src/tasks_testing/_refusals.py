"""The texts of exceptions about a wrong call. They need nothing of a recording, so every room may use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tasks_core import Task
from tasks_core.testing import function_name

from tasks_testing._text import show


def not_a_target(value: object) -> str:
    return (
        f"{show(value)} names no task. Pass a function (send_email), a call (call(send_email, 'ann@example.org')), "
        "or the name of a task ('send_email')"
    )


def not_an_exception(value: object) -> str:
    return (
        f"fail(target, {show(value)}): error must be an exception or an exception type, "
        "as in fail(charge, ConnectionError('down'))"
    )


def not_a_replacement(value: object) -> str:
    return (
        f"stub(target, {show(value)}): replacement must be a function with the parameters of the task, "
        "as in stub(charge, lambda order_id: None)"
    )


def no_such_parameter(func: Callable[..., Any], name: str, parameters: Iterable[str]) -> str:
    return f"{function_name(func)}() has no parameter {name!r}; it has {', '.join(parameters) or 'none'}"


def no_such_state(method: str, state: object, states: Iterable[str]) -> str:
    return f"{method}({state!r}): a state is one of {', '.join(states)}"


def wrong_times(times: object) -> str:
    return f"times={times!r}: times must be 1 or more; to assert that there is none, write assert_not_scheduled()"


def not_periodic(func: object) -> str:
    return f"{show(func)} is not periodic. Pass a function with @durable(periodic=cron('0 3 * * *'))"


def no_further_occurrence(func: object) -> str:
    return (
        f"the trigger of {show(func)} has no further occurrence. Call the function itself, or set the clock to a "
        "moment before the last occurrence"
    )


# ---- settings ----


def wrong_setting(name: str, allowed: Iterable[object], value: object) -> str:
    return f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}"


def wrong_timeout(value: object) -> str:
    return f"timeout must be a number of seconds above 0, not {value!r}"


def unknown_settings(unknown: Iterable[str], known: Iterable[str]) -> str:
    return f"@pytest.mark.tasks_recorder has no setting {', '.join(unknown)}; it has {', '.join(known)}"


def wrong_ini_or_marker(error: ValueError) -> str:
    return f"tasks_recorder: {error}"


# ---- calls at the wrong place or time ----


def would_block(method: str, instead: str) -> str:
    return f"{method}() would block the running event loop; use 'await tasks_recorder.{instead}()'"


def time_is_real() -> str:
    return (
        "clock.advance() needs virtual time: mark the test with @pytest.mark.tasks_recorder(virtual_time=True), "
        "or call tasks_recorder.virtual_time() before the first task"
    )


def virtual_time_too_late(task: object) -> str:
    return f"virtual_time() came too late: {task} already waits in real time"


def clock_held_up(tasks: Iterable[Task[Any]], timeout: float) -> str:
    named = ", ".join(f"{task.name!r} (scheduled at {task.where})" for task in tasks)
    return (
        f"aadvance() waited {timeout:g} s of real time, and these tasks still run: {named}. "
        "To let time pass while tasks run, write aadvance(..., while_running=True) or advance(...)"
    )


def cut_needs(name: str) -> str:
    return f'run_durable(cut="everywhere") needs {name}=: a function that {_CUT_NEEDS[name]}'


_CUT_NEEDS = {
    "restore": "brings back the state before the first run",
    "check": "asserts the outcome, or returns it",
}


def only_with_cut(name: str) -> str:
    return f'{name}= has a meaning with cut="everywhere" only: run_durable(cut="everywhere", restore=..., check=...)'


def cut_excludes_times(times: object) -> str:
    return (
        f'run_durable(cut="everywhere", times={times!r}) runs each task again after each cut, so it takes no times=. '
        "Leave it out"
    )


def cut_needs_asyncio() -> str:
    return (
        'arun_durable(cut="everywhere") needs asyncio, and this test runs on trio. A worker that is killed leaves a '
        "nursery open and its tasks unfinished, and trio ends the whole program with a TrioInternalError when that "
        "happens. Write a plain test, `def` in place of `async def`, in which the durable tasks run on asyncio: "
        'tasks_recorder.run_durable(cut="everywhere", restore=restore, check=check)'
    )


def not_a_connection(value: object) -> str:
    return (
        f"restore_savepoint() takes a sqlalchemy.Connection, not {type(value).__name__}. With an asyncio driver, "
        "restore the rows, and close connections with on_cut=cut_connections(engine)"
    )


def awaitable_in_sync(kind: str) -> str:
    return f"{kind}= of run_durable() must be a plain function; for a coroutine function, await arun_durable(...)"


def awaitable_order(what: str) -> str:
    return f"{what} of explore_orders() must be a plain function; for a coroutine function, await aexplore_orders(...)"


def no_result(task: object, state: str, why: str) -> str:
    return f"{task} has no result because it is {state}{f': {why}' if why else ''}"


# ---- why a task was cancelled or discarded: `RecordedTask.reason` ----

HELD_UNTIL_TEST_END = "held until test end"
ASLEEP_AT_TEST_END = "it waited for virtual time when the test ended"
ASLEEP_AT_SHUTDOWN = "its app shut down, and did not wait for that long"


# ---- stored calls ----


def no_calls_to_write() -> str:
    return "write_calls(path, calls): there are no calls. Submit durable tasks, then pass tasks_recorder.durable_calls"


def no_stored_calls(path: object) -> str:
    return (
        f"check_calls({str(path)!r}): there are no stored calls. Write them in a test of the release: "
        "write_calls('stored_calls/1.4.0.json', tasks_recorder.durable_calls)"
    )


def not_stored_calls(path: object, error: Exception) -> str:
    return f"check_calls(): {str(path)!r} is not a file of write_calls() ({type(error).__name__})"


def attempt_is_over() -> str:
    return "complete(): the end of the task is stored already, or this attempt is over"


def commit_is_not_announced(transaction: object) -> str:
    kind = type(transaction)
    return (
        f"complete() was given a {kind.__module__}.{kind.__qualname__}, whose commit an engine in memory does not hear "
        "of. Let the task use a Session or an AsyncSession of SQLAlchemy, or test it with the engine of the application"
    )
