"""Gauges of the queues of an engine: what waits, how long, what runs, what failed, which workers live."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from weakref import WeakKeyDictionary

import anyio
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from tasks_core._support.log import logger
from tasks_core.exceptions import EngineError

from .operate import MeteredEngine, QueueStatistics

# The name, the unit, the description, and where the value is.
_GAUGES: tuple[tuple[str, str, str, Callable[[QueueStatistics], float]], ...] = (
    (
        "tasks.queue.oldest_age",
        "s",
        "For how long the task that has waited longest could have been taken; 0 if none waits.",
        lambda queue: queue.oldest_waiting or 0.0,
    ),
    ("tasks.queue.waiting", "{task}", "Tasks that a worker may take now.", lambda queue: queue.waiting),
    ("tasks.queue.delayed", "{task}", "Tasks that are not due yet.", lambda queue: queue.delayed),
    ("tasks.queue.running", "{task}", "Tasks that workers have.", lambda queue: queue.running),
    ("tasks.queue.failed", "{task}", "Tasks that failed, and are kept.", lambda queue: queue.failed),
    ("tasks.queue.workers_alive", "{worker}", "Workers that give signs of life.", lambda queue: queue.workers_alive),
    (
        "tasks.queue.workers_silent",
        "{worker}",
        "Workers that gave no sign of life for so long that their tasks are taken over.",
        lambda queue: queue.workers_silent,
    ),
    ("tasks.queue.paused", "", "1 if the whole queue is paused.", lambda queue: int(queue.paused)),
)


class _Instruments:
    """The gauges of one meter, which show the numbers of all engines of this process."""

    __slots__ = ("sources",)

    def __init__(self, meter: Meter) -> None:
        self.sources: tuple[QueueGauges, ...] = ()
        for name, unit, description, value in _GAUGES:
            meter.create_observable_gauge(name, [self._reader(value)], unit, description)

    def _reader(self, value: Callable[[QueueStatistics], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        # Called in the thread of the exporter, while the event loop replaces `sources` and the numbers.
        def read(_options: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(value(queue), {"task.queue": queue.queue})
                for source in self.sources
                for queue in source.numbers()
            ]

        return read


_instruments: WeakKeyDictionary[Meter, _Instruments] = WeakKeyDictionary()


class QueueGauges:
    """Looks at the queues of an engine in turns with all other processes, and shows what it has seen last."""

    __slots__ = ("_engine", "_instruments", "_interval", "_seen", "_until")

    def __init__(self, engine: MeteredEngine, meter: Meter, interval: float) -> None:
        if meter not in _instruments:  # an instrument that is created twice shows each number twice
            _instruments[meter] = _Instruments(meter)
        self._instruments = _instruments[meter]
        self._engine = engine
        self._interval = interval
        self._seen: tuple[QueueStatistics, ...] = ()
        self._until = 0.0

    def numbers(self) -> tuple[QueueStatistics, ...]:
        """Return the numbers of the last look; none when it is so old that another process may have the turn."""
        return self._seen if monotonic() < self._until else ()

    async def run(self) -> None:
        """Look at the queues until the call is cancelled. An engine that does not answer has no numbers meanwhile."""
        self._instruments.sources += (self,)
        try:
            while True:
                await self._look()
                await anyio.sleep(self._interval)
        finally:
            self._instruments.sources = tuple(one for one in self._instruments.sources if one is not self)

    async def _look(self) -> None:
        turn = 2 * self._interval
        began = monotonic()
        try:
            seen = tuple(await self._engine.statistics_in_turn(turn))
        except EngineError as error:
            logger.debug("The queues cannot be measured (%s)", type(error).__name__)
            seen = ()
        except Exception:
            logger.exception("The queues cannot be measured; the tasks are not affected")
            seen = ()
        self._seen, self._until = seen, began + turn
