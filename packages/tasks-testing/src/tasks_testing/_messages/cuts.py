"""What goes wrong when the worker of a durable task dies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks_testing._recording.cut import Cut, Place
from tasks_testing._text import show


@dataclass(frozen=True)
class Outcome:
    """What a run has led to."""

    result: object
    """What `check()` returned."""
    states: tuple[tuple[str, str], ...]
    """The names and the states of the durable tasks."""


def place_of(name: str, cut: Cut, last: int) -> str:
    """Return where the worker of a task was cut off."""
    if not cut.made:
        return f"a worker was to be cut off while it ran {name}, at place {cut.at} of {last}"
    lines = [f"the worker was cut off while it ran {name}, at place {cut.at} of {last}:"]
    lines += [f"  {place.where}, in {place.function}: {place.source}" for place in _own(cut.places)]
    return "\n".join(lines)


def different(name: str, cut: Cut, last: int, reference: Outcome, outcome: Outcome) -> str:
    """Return the message that a cut changes the outcome."""
    lines = [f"{name} has another outcome when its worker dies", place_of(name, cut, last)]
    if outcome.result != reference.result:
        lines += [f"then it ran again, and check() returned {show(outcome.result, 200)},"]
        lines += [f"without a cut {show(reference.result, 200)}"]
    if outcome.states != reference.states:
        lines += [f"then the durable tasks ended: {_states(outcome)},", f"without a cut: {_states(reference)}"]
    return "\n".join([*lines, "  hint: a task runs again from its first line; each step must find out if it was done"])


def _states(outcome: Outcome) -> str:
    return ", ".join(f"{name} {state}" for name, state in outcome.states)


def may_block() -> str:
    """Return the hint for a second attempt that does not end."""
    return "  hint: what the attempt had open at the cut may block the next one; on_cut= can close it"


def nothing_to_cut() -> str:
    return 'run_durable(cut="everywhere"): no durable task waits to be run'


def too_many_places(name: str, number: int, limit: int) -> str:
    return (
        f"{name} is suspended {number} times, and limit={limit}: pass a higher limit, "
        "or stub what it waits for so often"
    )


def _own(places: Sequence[Place]) -> Sequence[Place]:
    """Return the line of the function itself, and the innermost line below the current directory if it is another."""
    inner = [place for place in places[1:] if not Path(place.where.rpartition(":")[0]).is_absolute()]
    return [*places[:1], *inner[-1:]]
