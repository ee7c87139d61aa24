"""The logger `tasks_core`, which cannot get in the way of what it tells about."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any


class SteadyLogger(logging.LoggerAdapter[logging.Logger]):
    """
    A logger that does not raise: a filter or a handler of the application may, in the middle of ending a task.

    What they raise goes to standard error, as `logging` itself does with errors of its handlers.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, from the line that called one of the methods named after levels."""
        try:
            self.logger.log(level, msg, *args, stacklevel=2, **kwargs)
        except Exception:
            sys.stderr.write(f"Logging raised, and this line is lost: {msg}\n{traceback.format_exc()}")


logger = SteadyLogger(logging.getLogger("tasks_core"))
