import logging
import signal

import anyio
from tasks_core import TaskScheduler

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
logger = logging.getLogger("orders")


async def handle_order(number: int) -> None:
    await anyio.sleep(0.2)
    logger.info("order %d is done", number)


async def receive_orders(scheduler: TaskScheduler) -> None:
    number = 0
    while True:
        number += 1
        scheduler.task(shield=True).schedule(handle_order, number)
        await anyio.sleep(0.05)


async def main() -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with TaskScheduler(grace_period=5, shield_timeout=10) as scheduler:
            scheduler.service(receive_orders, scheduler)
            logger.info("ready")
            async for _ in signals:
                break


if __name__ == "__main__":
    anyio.run(main)
