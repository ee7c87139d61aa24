"""Real time, in a module of its own: the pytest plugin exempts it from freezegun, which freezes the time of a test."""

import time


def monotonic() -> float:
    """Return the real time in seconds; only differences mean something."""
    return time.monotonic()
