"""Whether a claim about tasks is true, and whether it is too early to tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks_testing._messages.explanation import DRAIN_FIRST, explain, explain_unwanted, show_unsettled
from tasks_testing._recording.call import Target, check_target, show_target
from tasks_testing._recording.record import RecordedTask, is_meant
from tasks_testing._recording.selection import Part
from tasks_testing._text import number_of
from tasks_testing._time.monitor import Steps, Wait, in_event_loop


@dataclass(frozen=True, slots=True)
class Claim:
    """That a target has come to something, some number of times."""

    target: Target | None
    """`None`: any task."""
    what: str
    """What is claimed, to go on behind "expected ... to have "."""
    holds: Callable[[RecordedTask[Any]], bool]
    """Whether it is true of a task."""
    times: int | None = None
    """How often exactly; `None`: at least once."""

    def found(self, part: Part) -> list[RecordedTask[Any]]:
        return [task for task in part.tasks() if is_meant(task, self.target) and self.holds(task)]

    def __str__(self) -> str:
        subject = "one task" if self.target is None else show_target(self.target)
        if self.times == 0:
            return f"expected {'nothing' if self.target is None else subject + ' not'} to have {self.what}"
        return f"expected {subject} to have {self.what}{'' if self.times is None else ' ' + how_often(self.times)}"

    def instead(self, number: int) -> str:
        """Say what was the case instead, *number* times."""
        did = "was" if self.what.startswith("been ") else "did"
        if self.target is None:
            return f"{number_of(number, 'task')} {did if number == 1 else did.replace('was', 'were')}"
        if self.times == 0:
            return f"it {did}, {how_often(number)}"
        return f"it {did} {'not' if number == 0 else how_often(number)}"


def judge(part: Part, claim: Claim, timeout: float | None) -> list[RecordedTask[Any]]:
    """
    Return the tasks of which the claim is true, when they are as many as claimed.

    Raises:
        AssertionError: they are not, or more may come.
    """
    __tracebackhide__ = True
    if claim.target is not None:
        check_target(claim.target)
    # "At least once" may be judged as soon as it is true, a number and a "not" only when nothing more can come.
    most = 0 if claim.times is None else claim.times
    wait_until(part, lambda: len(claim.found(part)) > most, timeout, about=lambda task: is_meant(task, claim.target))
    found = claim.found(part)
    if (claim.times is None and found) or (claim.times == len(found) and part.settled()):
        for task in found:
            task._asserted = True
        return found
    title = f"{part}: " if str(part) else ""
    raise AssertionError(title + _explain(part, claim, found, timeout))


def wait_until(
    part: Part, decided: Callable[[], bool], timeout: float | None, *, about: Callable[[RecordedTask[Any]], bool]
) -> None:
    """
    Wait until a claim is decided, or nothing can change any more; in an event loop, do not.

    A task that the claim is *about* is waited for even if it is for the test to open its phase: another thread may be
    doing that.
    """
    if not in_event_loop():
        part.recording.monitor.run(_until(lambda: decided() or (part.settled() and not part.hopes_for(about)), timeout))


def too_early(part: Part) -> str:
    """Say what may still change the answer; "" if nothing can."""
    tasks, requests = part.unsettled(), part.unfinished_requests()
    told = [number_of(len(tasks), "task") + " still running"] if tasks else []
    told += [f"request {request} still being served" for request in requests[:3]]
    return ", ".join(told)


def how_often(times: int) -> str:
    return {0: "never", 1: "once"}.get(times, f"{times} times")


def _until(condition: Callable[[], bool], timeout: float | None) -> Steps[bool]:
    return (yield Wait(condition, timeout))


def _explain(part: Part, claim: Claim, found: Sequence[RecordedTask[Any]], timeout: float | None) -> str:
    early = too_early(part)
    if early and claim.times is not None and len(found) <= claim.times:
        waited = "" if in_event_loop() else f" after {timeout:g} s"
        todo = DRAIN_FIRST if in_event_loop() else "end what still runs, or exempt it with allow_running()"
        listed = show_unsettled(part.recording, part.unsettled())
        return "\n".join(filter(None, [f"{claim}: cannot tell{waited}, {early}", listed, f"  hint: {todo}"]))
    if claim.times is not None and len(found) > claim.times:
        return explain_unwanted(f"{claim}, {claim.instead(len(found))}", found)
    return explain(part, f"{claim}, {claim.instead(len(found))}", claim.target)
