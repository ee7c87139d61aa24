"""Contexts that go to another thread than the one that they were copied in."""

from __future__ import annotations

import sys
from contextvars import Context


def for_another_thread(context: Context) -> Context:
    """
    Have anyio find out anew, in a copy of a context, which event loop runs.

    It notes the answer in a context variable, and would believe the note in the other thread as well.
    """
    sniffio = sys.modules.get("sniffio")  # where the variable is; anyio does without it if it is not installed
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, None)
    return context
