"""The options of a scheduler, each declared once: its name, type, default and rule here, its text in the docstring."""

# Without `from __future__ import annotations`: the metadata of the annotations is read when this module is imported.
import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from ._clock import Clock
from ._config import TaskConfig
from ._support.provider import Provider
from ._support.rules import Rule, is_count, is_seconds, is_text

if TYPE_CHECKING:
    from ._durable.engine import Engine, EngineFallback
    from ._periodic import TaskRegistry


@dataclass(frozen=True, slots=True)
class Option:
    """The default of an option and the rule for its value. A value that is the default needs no rule."""

    default: Any
    rule: Rule

    def check(self, name: str, value: object) -> None:
        """Raise `InvalidConfigError` if *value* is not allowed."""
        if value is not self.default:
            self.rule.check(name, value)


_SECONDS = Rule(lambda value: is_seconds(value, zero=True), "a number of seconds, 0 or more")
_DURATION = Rule(
    lambda value: value is None or is_seconds(value, zero=False),
    "a number of seconds above 0, or None, as in slow_callback_duration=0.5",
)
_COUNT = Rule(is_count, "a whole number, 1 or more")
_CONFIG = Rule(
    lambda value: isinstance(value, TaskConfig) and value.key is None,
    "a TaskConfig without a key, which is for one call, as in config=TaskConfig(on_error=report)",
)
_CLOCK = Rule(
    lambda value: isinstance(value, Clock), "an object with the methods now() and sleep_until(); see tasks_core.Clock"
)
_PROVIDER = Rule(
    lambda value: isinstance(value, Provider),
    "an object with the methods parameters(), check() and call(); see tasks_core.Provider",
)
_REGISTRY = Rule(
    lambda value: hasattr(value, "add_to"), "a TaskRegistry, as in registry=registry with registry = TaskRegistry()"
)
_MODULES = Rule(
    lambda value: isinstance(value, (tuple, list, set, frozenset)) and all(map(is_text, value)),
    "a tuple of names of modules, as in transparent_modules=('app.background',)",
)
_ENGINE = Rule(
    lambda value: hasattr(value, "submit") and hasattr(value, "work"),
    "an object with the methods of tasks_core.engines.Engine, as in engine=ProcrastinateEngine('postgresql://...')",
)
_FALLBACK = Rule(lambda value: value in ("error", "memory"), "'error' or 'memory'")


class ShutdownOptions(TypedDict, total=False):
    """
    How long shutdown may take.

    Args:
        grace_period: Seconds at shutdown for all tasks to finish (`math.inf`: as long as they need). Default: 5.

        shield_timeout: Seconds for shielded tasks after that (`None`, the default: as long as they need).
    """

    grace_period: Annotated[float, Option(5.0, _SECONDS)]
    shield_timeout: Annotated[float | None, Option(None, _SECONDS)]


class SchedulerOptions(ShutdownOptions, total=False):
    """
    What `TaskScheduler(...)` and `add_tasks(app, ...)` take, besides `ShutdownOptions`.

    Args:
        config: The options that tasks inherit unless `.task(...)` replaces them.

        provider: Supplies arguments that the caller of `schedule()` does not pass, such as a database session; see
            `tasks_core.Provider`. Default: none; in an application of FastAPI, its dependencies.

        max_concurrency: How many tasks run at once; the rest wait, in the order of scheduling (`None`, the default: no
            limit).

        max_pending: How many tasks may wait to start; beyond that, `schedule()` raises `TaskQueueFullError` (`None`,
            the default: no limit).

        max_threads: How many plain functions run at once, each in a thread. Default: 40.

        registry: Periodic tasks and services that were registered at import; the scheduler runs all of them. Default:
            none.

        transparent_modules: Names of modules whose functions schedule for their callers, so that `task.where`, log
            lines and spans name the line of the caller. It holds for the whole process; `@transparent` marks a single
            function. Default: none.

        follow_for: Seconds after the end of a task for which `keep()` keeps it for its followers. Default: 300.

        clock: Where delays, retry pauses, timeouts and the bounds of shutdown come from. Default: `MonotonicClock()`.

        slow_callback_duration: Seconds. What keeps the event loop from turning for longer, a task or other code, is
            logged as a WARNING with the line that it is at (`None`: nothing is watched). Default: 1.

        engine: The engine that stores durable tasks. It is entered and left with the scheduler. Default: none, so that
            durable tasks are refused, unless *without_engine* allows them.

        engine_fallback: What happens to a durable task that the engine does not acknowledge within 5 seconds. With
            `"error"`, the default, its task fails with `EngineUnavailableError`. With `"memory"` it runs in this
            process like any other task, with a WARNING; its `idempotency_key` is then **not** checked for duplicates.

        without_engine: What happens to durable tasks when there is no *engine*. With `"error"`, the default,
            `schedule()` raises `EngineNotConfiguredError`. With `"memory"` they run in this process and are lost if it
            ends, which a WARNING says at startup: for an application that has PostgreSQL in one place and another
            database elsewhere. Retries, keys and transactions of SQLAlchemy have the same meaning, within the process.
    """

    config: Annotated[TaskConfig | None, Option(None, _CONFIG)]
    provider: Annotated[Provider | None, Option(None, _PROVIDER)]
    max_concurrency: Annotated[int | None, Option(None, _COUNT)]
    max_pending: Annotated[int | None, Option(None, _COUNT)]
    max_threads: Annotated[int, Option(40, _COUNT)]
    registry: Annotated["TaskRegistry | None", Option(None, _REGISTRY)]
    transparent_modules: Annotated[Collection[str], Option((), _MODULES)]
    follow_for: Annotated[float, Option(300.0, _SECONDS)]
    clock: Annotated[Clock | None, Option(None, _CLOCK)]
    slow_callback_duration: Annotated[float | None, Option(1.0, _DURATION)]
    engine: Annotated["Engine | None", Option(None, _ENGINE)]
    engine_fallback: Annotated["EngineFallback", Option("error", _FALLBACK)]
    without_engine: Annotated["EngineFallback", Option("error", _FALLBACK)]


def options_of(declaration: Any) -> dict[str, Option]:
    """Return what a class such as `SchedulerOptions` declares, by the name of the option, inherited ones included."""
    return {name: annotation.__metadata__[0] for name, annotation in declaration.__annotations__.items()}


def complete(declaration: Any, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    Return *options* with the defaults of those that are missing; *where* is the name of the call, for errors.

    Raises:
        TypeError: an option is not declared.
        InvalidConfigError: an option has a value that its rule does not allow.
    """
    declared = options_of(declaration)
    for name, value in options.items():
        if name not in declared:
            raise TypeError(f"{where}() got an unexpected option {name!r}. It takes: {', '.join(declared)}")
        declared[name].check(name, value)
    return {name: options.get(name, option.default) for name, option in declared.items()}


def text_of(declaration: Any, name: str) -> str:
    """Return the text that the docstring of a declaration has for an option; empty where docstrings are stripped."""
    found = re.search(rf"^ {{4}}{name}: (.*?)(?=\n\n|\Z)", inspect.getdoc(declaration) or "", re.DOTALL | re.MULTILINE)
    return "" if found is None else " ".join(found[1].split())
