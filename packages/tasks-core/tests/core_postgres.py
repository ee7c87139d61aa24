"""A real PostgreSQL, from a wheel, for the tests of one process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import anyio
import pytest
from tasks_core.engines._embedded import EmbeddedPostgres


@cache
def folder() -> TemporaryDirectory[str]:
    """The same for all modules of tests in this process, so that they share a server; removed at its exit."""
    # Not in tmp_path: run as root, the server has another user, to whom all folders above are made readable.
    return TemporaryDirectory(prefix="tasks-")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server that is there until the last test."""
    server = EmbeddedPostgres(Path(folder().name, "data"))
    yield anyio.run(server.start)
    anyio.run(server.stop)


@pytest.fixture
def queue() -> str:
    """A queue for one test: its tasks are seen by its workers only."""
    return f"test-{uuid4().hex[:12]}"
