"""Queues, priorities and keys: which of them there are, and how many slots a worker has for each queue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from tasks_core._support.rules import Rule, is_count, is_stored_text, show
from tasks_core.exceptions import InvalidConfigError

DEFAULT_QUEUE = "default"
"""The queue of the engine, whatever the engine calls it: that of all calls for which no other was named."""

Slots: TypeAlias = int | Mapping[str, int]
"""
How many calls a worker runs at once: a number for the queues of all functions that it knows together, or a number for
each queue by its name, and then no other queues.
"""

HIGHEST_PRIORITY = 100

# The name is part of the channel of PostgreSQL on which workers are notified, which has at most 63 bytes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")

QUEUE = Rule(
    lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None,
    "a name of at most 40 letters, digits, '.', '_' and '-', as in queue='payments'",
)
PRIORITY = Rule(
    lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) <= HIGHEST_PRIORITY,
    f"a whole number from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}, of which higher ones run first, as in priority=10",
)
KEY = Rule(is_stored_text, "a text of 1 to 500 characters without NUL and surrogates, as in 'welcome-17'")
_COUNT = Rule(is_count, "a whole number, 1 or more")


def check_slots(concurrency: Slots | None, queues: Mapping[str, int] | None) -> Slots:
    """
    Return the slots of a worker that was given these options.

    Raises:
        InvalidConfigError: an option has a value that it cannot have, or both were given.
    """
    if queues is None:
        slots: Slots = 32 if concurrency is None else concurrency
    elif concurrency is not None:
        raise InvalidConfigError(
            "concurrency= is for a worker whose queues share their slots, and queues= has the slots of each queue. "
            "Write one of them: queues={'payments': 4, 'default': 32}"
        )
    else:
        slots = queues
    if not isinstance(slots, Mapping):
        _COUNT.check("concurrency", slots)
        return slots
    if not slots:
        raise InvalidConfigError("queues={}: a worker serves one queue at least, as in queues={'default': 32}")
    for name, count in slots.items():
        QUEUE.check("queue", name)
        if not is_count(count):
            raise InvalidConfigError(
                f"queues={{{name!r}: {show(count)}}}: the slots of a queue must be a whole number, 1 or more, as in "
                f"queues={{{name!r}: 4}}"
            )
    return dict(slots)


def total(slots: Slots) -> int:
    """Return how many calls run at once in all queues."""
    return slots if isinstance(slots, int) else sum(slots.values())
