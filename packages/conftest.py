"""What the tests of all packages share with pytest."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Give tests in a folder `durable` the marker of that name: `pytest -m 'not durable'` needs no PostgreSQL."""
    for item in items:
        if item.path.parent.name == "durable":
            item.add_marker(pytest.mark.durable)
