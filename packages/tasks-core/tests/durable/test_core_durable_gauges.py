"""Gauges of queues: what a process shows of an engine that all processes measure in turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from core_engine import ListEngine, until
from core_telemetry import Exported
from tasks_core import Worker
from tasks_core.engines import EngineUnavailableError, MeteredEngine, QueueStatistics
from tasks_core.frameworks import Telemetry

pytestmark = pytest.mark.anyio

MAIL = QueueStatistics("mail", 3, 2, 100_000, 7, 12.5, 4.0, 2, 1, True)
IDLE = QueueStatistics("idle", 0, 0, 0, 0, None, 0.0, 0, 0)


@pytest.fixture
def exported() -> Exported:
    return Exported()


class MeteredList(ListEngine):
    """Returns the same numbers at each look, or raises, or does not answer."""

    def __init__(self, *numbers: QueueStatistics) -> None:
        super().__init__()
        self.numbers = numbers
        self.error: Exception | None = None
        self.answers = True
        self.turns: list[float] = []

    async def statistics_in_turn(self, seconds: float, /) -> Sequence[QueueStatistics]:
        self.turns.append(seconds)
        if not self.answers:
            await anyio.sleep_forever()
        if self.error is not None:
            raise self.error
        return self.numbers


@asynccontextmanager
async def working(engine: ListEngine, exported: Exported, **settings: Any) -> AsyncIterator[None]:
    config: Any = {**exported.config, **settings}
    stop = anyio.Event()
    async with engine, anyio.create_task_group() as group:
        group.start_soon(Worker(engine, telemetry=config).run, stop)
        yield
        stop.set()


def shown(exported: Exported) -> dict[str, dict[str, float]]:
    """The values by queue, by the name of the metric."""
    return {
        name: {labels["task.queue"]: value for labels, value in points}
        for name, points in exported.metrics().items()
        if points
    }


def test_an_engine_says_that_it_can_be_measured() -> None:
    assert isinstance(MeteredList(), MeteredEngine)
    assert not isinstance(ListEngine(), MeteredEngine)


async def test_worker_shows_the_numbers_of_each_queue(exported: Exported) -> None:
    engine = MeteredList(MAIL, IDLE)
    async with working(engine, exported):
        await until(lambda: bool(engine.turns))
        await until(lambda: bool(shown(exported)))
        assert shown(exported) == {
            "tasks.queue.oldest_age": {"mail": 12.5, "idle": 0.0},
            "tasks.queue.waiting": {"mail": 3, "idle": 0},
            "tasks.queue.delayed": {"mail": 7, "idle": 0},
            "tasks.queue.running": {"mail": 2, "idle": 0},
            "tasks.queue.failed": {"mail": 100_000, "idle": 0},
            "tasks.queue.workers_alive": {"mail": 2, "idle": 0},
            "tasks.queue.workers_silent": {"mail": 1, "idle": 0},
            "tasks.queue.paused": {"mail": 1, "idle": 0},
        }
        assert engine.turns == [30.0], "the default is a look each 15 seconds, for a turn of two of them"
    assert shown(exported) == {}, "the worker has ended"


async def test_numbers_are_gone_while_the_engine_is_away(exported: Exported, caplog: pytest.LogCaptureFixture) -> None:
    engine = MeteredList(MAIL)
    engine.error = EngineUnavailableError("away")
    async with working(engine, exported, queue_interval=0.01):
        await until(lambda: len(engine.turns) > 2)
        assert shown(exported) == {}
        engine.error = None
        await until(lambda: bool(shown(exported)))
    assert caplog.text == ""


async def test_look_that_fails_harms_no_worker(exported: Exported, caplog: pytest.LogCaptureFixture) -> None:
    engine = MeteredList(MAIL)
    engine.error = ZeroDivisionError()
    async with working(engine, exported, queue_interval=0.01):
        await until(lambda: len(engine.turns) > 1)
        engine.error = None
        await until(lambda: bool(shown(exported)))
    assert "The queues cannot be measured; the tasks are not affected" in caplog.text


async def test_numbers_are_gone_when_another_process_may_have_the_turn(exported: Exported) -> None:
    engine = MeteredList(MAIL)
    async with working(engine, exported, queue_interval=0.05):
        await until(lambda: bool(shown(exported)))
        engine.answers = False
        await until(lambda: not shown(exported))


async def test_engine_without_turns_is_not_measured(exported: Exported) -> None:
    engine = ListEngine()
    async with working(engine, exported):
        await until(lambda: "entered" in engine.log)
    assert shown(exported) == {}


@pytest.mark.parametrize("settings", [{"queues": False}, {"metrics": False}])
async def test_can_be_switched_off(exported: Exported, settings: Any) -> None:
    assert Telemetry({**exported.config, **settings}).queue_gauges(MeteredList(MAIL)) is None


async def test_nothing_is_measured_without_a_provider() -> None:
    assert Telemetry(None).queue_gauges(MeteredList(MAIL)) is None


async def test_two_engines_share_the_gauges_of_a_meter(exported: Exported) -> None:
    one, other = MeteredList(MAIL), MeteredList(IDLE)
    async with working(one, exported), working(other, exported):
        await until(lambda: bool(one.turns and other.turns))
        await until(lambda: len(shown(exported).get("tasks.queue.waiting", {})) == 2)
        points = exported.metrics()["tasks.queue.waiting"]
        assert sorted(labels["task.queue"] for labels, _ in points) == ["idle", "mail"], "each of them once"
