"""The engine in memory keeps the contract of engines."""

from __future__ import annotations

import pytest
from tasks_testing import InMemoryEngine
from tasks_testing.engine_contract import OperableEngineContract

pytest_plugins = ["pytester"]


class TestInMemoryEngine(OperableEngineContract):
    @pytest.fixture
    def engine(self) -> InMemoryEngine:
        return InMemoryEngine()


SUITE = """
import pytest
from tasks_testing import InMemoryEngine
from tasks_testing.engine_contract import EngineContract

class Plain(InMemoryEngine):
    capabilities = frozenset()

class TestWithoutQueues(EngineContract):
    @pytest.fixture
    def engine(self):
        engine = InMemoryEngine()
        engine.capabilities -= {"queues"}
        return engine

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

class TestPlain(EngineContract):
    @pytest.fixture
    def engine(self):
        return Plain()

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"
"""


def test_what_an_engine_is_not_capable_of_is_skipped_with_the_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest(
        "-p", "no:cacheprovider", "-p", "no:asyncio", "-rs", "-k", "TestPlain and (key or delayed or part_of)"
    )
    assert result.parseoutcomes().keys() == {"skipped", "deselected"}
    result.stdout.fnmatch_lines("*tasks-testing has not the capability 'delay'*")


def test_an_engine_with_keys_needs_no_queues(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest("-p", "no:cacheprovider", "-p", "no:asyncio", "-k", "TestWithoutQueues and key")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] > 5
    assert outcomes.keys() <= {"passed", "skipped", "deselected"}
