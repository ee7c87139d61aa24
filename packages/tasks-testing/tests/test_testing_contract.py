"""The engine in memory keeps the contract of engines."""

from __future__ import annotations

import pytest
from tasks_testing import InMemoryEngine
from tasks_testing.engine_contract import EngineContract


class TestInMemoryEngine(EngineContract):
    @pytest.fixture
    def engine(self) -> InMemoryEngine:
        return InMemoryEngine()
