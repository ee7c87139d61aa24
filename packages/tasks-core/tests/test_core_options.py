"""Every option and every hook is declared once; one that is forgotten elsewhere is noticed."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import tasks_core
from tasks_core import SchedulerOptions, ShutdownOptions, TaskConfig, TaskObserver, TaskScheduler, durable
from tasks_core._durable.command import main
from tasks_core._durable.task import OF_THE_ENGINE, OF_THE_RUN, OF_THE_SUBMIT
from tasks_core._observer import Hooks
from tasks_core._options import Option, complete, options_of, text_of
from tasks_core._support.overrides import OverrideStack
from tasks_core._support.rules import Rule, check_fields, is_count, must_be
from tasks_core.exceptions import InvalidConfigError


def test_task_takes_each_field_of_its_configuration() -> None:
    """A field that is added to `TaskConfig` is an option of `.task(...)`, without another line."""
    scheduler: Any = TaskScheduler()
    for option in fields(TaskConfig):
        with pytest.raises(InvalidConfigError, match=f"{option.name}=<list>: {option.name} must be "):
            scheduler.task(**{option.name: []})
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        scheduler.task(nonsense=1)


def test_a_field_without_a_rule_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Forgotten(TaskConfig):
        priority: int | None = None

    with pytest.raises(KeyError, match="rule"):
        Forgotten()


def test_each_field_has_a_meaning_for_a_durable_call() -> None:
    """A field that is added to `TaskConfig` must not be ignored for a durable function in silence."""
    assert not OF_THE_SUBMIT & OF_THE_RUN.keys()
    assert not OF_THE_ENGINE & (OF_THE_SUBMIT | OF_THE_RUN.keys())
    assert OF_THE_SUBMIT | OF_THE_ENGINE | OF_THE_RUN.keys() == {option.name for option in fields(TaskConfig)}
    taken = inspect.signature(durable).parameters
    assert [option for option, of_function in OF_THE_RUN.items() if of_function != (option in taken)] == []


def test_each_field_of_a_policy_is_checked() -> None:
    @dataclass
    class Policy:
        count: int = field(default=1, metadata=must_be(is_count, "1 or more"))

    check_fields(Policy(), "Policy(")
    with pytest.raises(InvalidConfigError, match=r"Policy\(count=None\): count must be 1 or more"):
        check_fields(Policy(None), "Policy(")  # type: ignore[arg-type]


@pytest.mark.parametrize("declaration", [ShutdownOptions, SchedulerOptions])
def test_each_option_says_what_it_is_for(declaration: Any) -> None:
    inherited = options_of(ShutdownOptions) if declaration is SchedulerOptions else {}
    own = [name for name in options_of(declaration) if name not in inherited]
    assert [name for name in own if not text_of(declaration, name)] == []
    assert text_of(ShutdownOptions, "grace_period").startswith("Seconds at shutdown for all tasks to finish")
    assert text_of(declaration, "nonsense") == ""


def test_an_option_that_is_declared_is_taken_checked_and_completed() -> None:
    class More(SchedulerOptions, total=False):
        """
        Options and one that is new.

        Args:
            priority: How soon.
        """

        priority: Annotated[int, Option(1, Rule(is_count, "a whole number, 1 or more"))]

    assert complete(More, {}, "Fake")["priority"] == 1
    assert complete(More, {"priority": 2}, "Fake")["priority"] == 2
    assert text_of(More, "priority") == "How soon."
    with pytest.raises(InvalidConfigError, match="priority=0: priority must be a whole number, 1 or more"):
        complete(More, {"priority": 0}, "Fake")


def test_an_option_that_is_not_declared_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        TypeError, match=r"TaskScheduler\(\) got an unexpected option 'grace'. It takes: grace_period, "
    ):
        TaskScheduler(grace=5)  # type: ignore[call-arg]


def test_options_can_be_checked_without_a_scheduler() -> None:
    TaskScheduler.check_options(grace_period=5)
    with pytest.raises(
        InvalidConfigError, match="grace_period=-1: grace_period must be a number of seconds, 0 or more"
    ):
        TaskScheduler.check_options(grace_period=-1)


def test_the_command_has_the_bounds_of_shutdown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["worker", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name in options_of(ShutdownOptions):
        assert f"--{name.replace('_', '-')} SECONDS {text_of(ShutdownOptions, name).replace('`', '')[:40]}" in told


def test_hooks_are_the_methods_of_an_observer() -> None:
    """A method that is added to `TaskObserver` is a hook, without another line."""
    methods = {name for name, _ in inspect.getmembers(TaskObserver, inspect.isfunction) if not name.startswith("_")}
    assert set(Hooks.__slots__) == methods
    assert all(getattr(Hooks(), name) == () for name in methods)


def test_each_hook_is_called_by_the_machinery() -> None:
    """A hook that is never called has no place where it is read from `hooks`."""
    sources = Path(tasks_core.__file__).parent.rglob("*.py")
    read = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert [name for name in Hooks.__slots__ if f"hooks.{name}" not in read] == []


def test_each_subscription_closes_what_it_has_opened_and_nothing_else() -> None:
    changes: list[tuple[str, ...]] = []
    stack: OverrideStack[str] = OverrideStack(changes.append)
    outer, other, inner = stack.add("a"), stack.add("b"), stack.add("a")
    outer.close()
    outer.close()
    assert stack.items == ("b", "a")
    inner.close()
    other.close()
    assert not stack.items
    assert changes == [("a",), ("a", "b"), ("a", "b", "a"), ("b", "a"), ("b",), ()]


def test_closing_may_happen_in_the_middle_of_opening() -> None:
    """A finalizer may close a subscription on the thread that holds the lock."""
    close: list[Callable[[], None]] = []

    def changed(items: tuple[str, ...]) -> None:
        if close:
            close.pop()()

    stack: OverrideStack[str] = OverrideStack(changed)
    close.append(stack.add("a").close)
    stack.add("b")
    assert stack.items == ("b",)
