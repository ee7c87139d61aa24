"""What the tests of all packages share with pytest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

import pytest


def pytest_configure() -> None:
    """Undo what a shell does to a job in the background: Ctrl-C would be ignored, also by the servers of the tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Give tests in a folder `durable` the marker of that name: `pytest -m 'not durable'` needs no PostgreSQL."""
    for item in items:
        if item.path.parent.name == "durable":
            item.add_marker(pytest.mark.durable)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Save what coverage has seen: xdist kills a process that has not ended ten seconds after its last test."""
    if "PYTEST_XDIST_WORKER" in os.environ and (coverage := sys.modules.get("coverage")) is not None:
        coverage.Coverage.current().save()
