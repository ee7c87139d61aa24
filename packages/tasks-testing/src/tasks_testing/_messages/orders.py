"""What goes wrong when tasks start in another order."""

from __future__ import annotations

from collections.abc import Sequence


def failing_order(
    *,
    order: Sequence[int],
    started: Sequence[str],
    usual: Sequence[str],
    run: int,
    total: int,
    seed: int,
    timeline: str,
) -> str:
    """Return the note about the order in which a body has failed."""
    return "\n".join(
        [
            f"it fails when the tasks start in another order; {run} of {total} orders were run, with seed {seed}",
            "  started in this order:",
            *(f"    {task}" for task in started),
            "  in place of:",
            *(f"    {task}" for task in usual),
            f"  to run this order alone, write explore_orders(..., order={list(order)})",
            timeline,
        ]
    )


def usual_order() -> str:
    return "it fails in the usual order: the tasks start as they were scheduled"


def one_order(number: int) -> str:
    return (
        f"explore_orders(): there is only one order, since no two of the {number} tasks could start at the same time. "
        "Tasks start when the body waits for them: schedule them all, then drain()"
    )


def not_started() -> str:
    return (
        "explore_orders(): a task had not started when its app shut down. In the body, drain() before that, "
        "or start the app outside of the body"
    )


def no_such_choice(order: Sequence[int], position: int, among: int) -> str:
    return f"order={list(order)}: at position {position} there were {among} tasks to choose from"
