"""What tests do at each line of code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

import tasks_core

SOURCES = str(Path(tasks_core.__file__).parent)


class HeldAtLine:
    """
    Traces code in a thread, and calls *then* at one of its lines: the *number*-th.

    The tracer that was there before, such as that of coverage, is told everything as well.

    Args:
        at: "call": where functions begin instead, which is where CPython runs finalizers.

        of: How the paths of the files begin whose code is traced.
    """

    def __init__(
        self,
        number: int,
        then: Callable[[], object],
        *,
        at: Literal["line", "call"] = "line",
        of: str = SOURCES,
    ) -> None:
        self.number = number
        self.lines = 0
        self.then = then
        self._at = at
        self._of = of

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: Any, arg: object) -> Any:
        before = self._before
        if before is not None:
            before = before(frame, event, arg)
            sys.settrace(self._call)  # that of coverage takes its place back
        ours = frame.f_code.co_filename.startswith(self._of)

        def trace(frame: FrameType, event: Any, arg: object) -> Any:
            nonlocal before
            if before is not None:
                before = before(frame, event, arg)
            if ours:
                self._note(event)
            return trace

        if ours:
            self._note(event)
        return trace if ours or before is not None else None

    def _note(self, event: str) -> None:
        if event == self._at:
            self.lines += 1
            if self.lines == self.number + 1:
                self.then()
