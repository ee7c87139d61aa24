"""A real PostgreSQL, from a wheel, for the tests of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import anyio
import pytest
from tasks_core.engines._embedded import EmbeddedPostgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server that is there until the last test."""
    # Not in tmp_path: run as root, the server has another user, to whom all folders above are made readable.
    with TemporaryDirectory(prefix="tasks-") as folder:
        server = EmbeddedPostgres(Path(folder, "data"))
        yield anyio.run(server.start)
        anyio.run(server.stop)


@pytest.fixture
def queue() -> str:
    """A queue for one test: its tasks are seen by its workers only."""
    return f"test-{uuid4().hex[:12]}"
