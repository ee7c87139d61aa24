"""What happens in the shop, as lines in a file that somebody else evaluates."""

from __future__ import annotations

import json
import time

from .resources import Shop


def track_order_event(shop: Shop, order_id: int, event: str) -> None:
    """Append one event."""
    line = json.dumps({"time": time.time(), "order": order_id, "event": event})
    with shop.analytics.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
