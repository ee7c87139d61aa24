"""The resources of endpoints and tasks; opened once in the lifespan, the same for all requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from .database import Database
from .gateway import PaymentGateway
from .mail import Mailer
from .search import SearchIndex

if TYPE_CHECKING:
    from .products import Product
    from .sandbox import Inbox


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The resources of the shop. A task takes it as its first argument, or as a dependency."""

    data: Path
    database: Database
    mailer: Mailer
    gateway: PaymentGateway
    search_index: SearchIndex
    product_cache: dict[int, Product]
    picture_limiter: anyio.CapacityLimiter
    durable: bool
    """Whether PostgreSQL stores payments, and a worker runs them."""
    inbox: Inbox | None
    """The e-mails that were sent, when there is no real mail server."""

    @property
    def images(self) -> Path:
        """The folder of the pictures, as uploaded."""
        return self.data / "images"

    @property
    def thumbnails(self) -> Path:
        """The folder of the thumbnails."""
        return self.data / "thumbnails"

    @property
    def analytics(self) -> Path:
        """The file that analytics are appended to, one JSON object a line."""
        return self.data / "analytics.jsonl"

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let tasks that belong to no request find these resources while the block runs."""
        _shared.append(self)
        try:
            yield
        finally:
            _shared.remove(self)


_shared: list[Shop] = []


def shared_shop() -> Shop:
    """Return the resources that the lifespan has opened."""
    return _shared[-1]
