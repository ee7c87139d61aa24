"""Events of the shop, as lines of a file."""

from __future__ import annotations

import json
import time

from .resources import Shop


def track_order_event(shop: Shop, order_id: int, event: str) -> None:
    """Append one event."""
    line = json.dumps({"time": time.time(), "order": order_id, "event": event})
    with shop.analytics.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
