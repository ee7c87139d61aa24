"""What the tests of tasks-core share with pytest. What they import is in `core_support.py`."""

from __future__ import annotations

import pytest


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run each test on every event loop. A module that needs another choice has a fixture of this name."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend
