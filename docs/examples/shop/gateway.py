"""The client of the payment gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from ssl import SSLContext

import httpx


class CardDeclinedError(Exception):
    """Raised when the gateway does not accept the card."""


class PaymentGateway:
    """A client for the gateway. Made by `open_gateway()`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def authorise(self, card: str, amount: int) -> str:
        """
        Have the amount (in cents) reserved on the card, and return the number of the authorisation.

        Raises:
            CardDeclinedError: the gateway does not accept the card.
            ConnectionError: the gateway could not be reached.
        """
        return await self._post("/authorisations", {"card": card, "amount": amount})

    async def capture(self, authorisation: str) -> str:
        """
        Take the reserved money, and return the number of the receipt.

        A second call with the same authorisation is safe, because the gateway takes the money once.

        Raises:
            ConnectionError: the gateway could not be reached, or hung up. It may have taken the money before.
        """
        return await self._post("/captures", {"authorisation": authorisation})

    async def _post(self, path: str, body: dict[str, object]) -> str:
        try:
            response = await self._client.post(path, json=body)
        except httpx.TransportError as error:
            raise ConnectionError("The payment gateway could not be reached, or hung up") from error
        if response.status_code == httpx.codes.PAYMENT_REQUIRED:
            raise CardDeclinedError
        response.raise_for_status()
        return str(response.json()["id"])


@cache
def certificates() -> SSLContext:
    """Read the certificates once, because that is slow and the tests start many shops."""
    return httpx.create_ssl_context()


@asynccontextmanager
async def open_gateway(url: str) -> AsyncIterator[PaymentGateway]:
    """Open a client for the gateway at *url*; close it when the block ends."""
    # The time limit of a payment is that of its task.
    timeout = httpx.Timeout(None, connect=5)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, verify=certificates()) as client:
        yield PaymentGateway(client)
