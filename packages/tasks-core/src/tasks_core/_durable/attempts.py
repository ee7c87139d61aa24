"""What an engine keeps of an attempt that has failed: when, and why, without any value that the task has seen."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

# Of so many attempts the first and the last ones are kept.
_FIRST, _LAST = 2, 8
# Characters of a traceback that are kept: of its outer end, and of its inner end, where the reason is.
_OUTER, _INNER = 1000, 3000
# Exceptions of a chain or a group that are listed.
_EXCEPTIONS = 20


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An attempt of a durable task that has failed. Messages of exceptions are in the log only: they may have data."""

    attempt: int
    """1 for the first run."""
    began: float
    """Seconds since the epoch, by the clock of the engine."""
    ended: float
    error: str
    """The type of the exception: `"ValueError"`, `"httpx.ConnectTimeout"`."""
    traceback: str = field(default="", repr=False)
    """Files, lines and source, of its causes too: at most 4,000 characters, without messages and local values."""

    @classmethod
    def of(cls, error: BaseException, *, attempt: int, began: float, ended: float) -> AttemptRecord:
        """Make the record of an attempt that raised *error*."""
        return cls(attempt, began, ended, _type_name(error), _shortened("\n".join(_lines(error, set()))))

    def added_to(self, earlier: Sequence[AttemptRecord]) -> tuple[AttemptRecord, ...]:
        """Return the records of a task with this one; of more than ten, the first two and the last eight."""
        records = (*earlier, self)
        return records if len(records) <= _FIRST + _LAST else (*records[:_FIRST], *records[-_LAST:])

    def as_json(self) -> dict[str, Any]:
        """Return the record in a form that JSON can carry."""
        return {name: getattr(self, name) for name in ("attempt", "began", "ended", "error", "traceback")}

    @classmethod
    def from_json(cls, data: object) -> AttemptRecord | None:
        """Restore what `as_json()` returned; `None` if *data* is something else."""
        match data:
            case {
                "attempt": int(attempt),
                "began": int() | float() as began,
                "ended": int() | float() as ended,
                "error": str(error),
                "traceback": str(text),
            }:
                return cls(attempt, began, ended, error, text)
        return None


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    """List what a traceback has, from the cause to the effect, without any message."""
    seen.add(id(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and id(cause) not in seen and len(seen) < _EXCEPTIONS:
        yield from _lines(cause, seen)
        yield ""
    yield "Traceback (most recent call last):"
    yield from _frames(error.__traceback__)
    yield _type_name(error)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if id(inner) not in seen and len(seen) < _EXCEPTIONS:
                yield from (f"  | {line}" for line in _lines(inner, seen))


def _frames(tb: TracebackType | None) -> Iterator[str]:
    for frame, line in traceback.walk_tb(tb):
        code = frame.f_code
        yield f'  File "{code.co_filename}", line {line}, in {code.co_name}'
        source = linecache.getline(code.co_filename, line, frame.f_globals).strip()
        if source:
            yield f"    {source}"


def _shortened(text: str) -> str:
    if len(text) <= _OUTER + _INNER:
        return text
    return f"{text[:_OUTER]}\n  [...]\n{text[-_INNER:]}"
