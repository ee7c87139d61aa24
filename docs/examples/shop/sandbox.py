"""A mail server and a payment gateway on ports of this machine: no mail is sent, and no money moves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Event, Thread
from typing import cast

from aiosmtpd.smtp import SMTP, Envelope, Session

DECLINED_CARD = "4000 0000 0000 0002"


class Inbox:
    """A mail server that stores every message. `async with inbox.serve() as address` runs it on the event loop."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listen on a free port until the block ends."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(self, enable_SMTPUTF8=True, hostname="localhost", loop=loop), "127.0.0.1", 0
        )
        async with server:
            host, port = server.sockets[0].getsockname()
            yield f"{host}:{port}"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd's name
        """Store a message; called by aiosmtpd."""
        self.messages.append(message_from_bytes(cast(bytes, envelope.content), policy=policy.default))
        return "250 Message accepted"

    def of(self, address: str) -> list[EmailMessage]:
        """Return the messages to an address, oldest first."""
        return [message for message in self.messages if message["To"] == address]


class SandboxGateway:
    """
    A payment gateway that hangs up on the first try to capture a payment.

    `with gateway.serve() as url` runs it, in threads. After `hold()`, captures wait until `release()`.
    """

    def __init__(self) -> None:
        self.captured: dict[str, str] = {}
        """The receipts of the captured payments, by authorisation."""
        self.tries: Counter[str] = Counter()
        """How often the capture of each authorisation was tried."""
        self.holding = Event()
        """Set as soon as a capture waits for `release()`."""
        self._released = Event()
        self._released.set()
        self._numbers = count(1)

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Listen on a free port until the block ends."""
        with _GatewayServer(self) as server:
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="payment gateway")
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                self.release()
                server.shutdown()
                thread.join()

    def hold(self) -> None:
        """Let captures wait from now on."""
        self._released.clear()

    def release(self) -> None:
        """Let captures that wait go on."""
        self._released.set()

    def authorise(self, card: str) -> str | None:
        """Return the number of an authorisation, or nothing if the card is declined."""
        return None if card == DECLINED_CARD else f"A-{next(self._numbers)}"

    def capture(self, authorisation: str) -> str | None:
        """Return the number of the receipt, always the same for an authorisation; or nothing, to hang up."""
        self.tries[authorisation] += 1
        if self.tries[authorisation] == 1:
            return None
        if not self._released.is_set():
            self.holding.set()
            self._released.wait()
        return self.captured.setdefault(authorisation, f"R-{authorisation}")


class _GatewayServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, gateway: SandboxGateway) -> None:
        super().__init__(("127.0.0.1", 0), _GatewayRequest)
        self.gateway = gateway


class _GatewayRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        gateway = cast(_GatewayServer, self.server).gateway
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/authorisations":
            authorisation = gateway.authorise(body["card"])
            self._answer(402 if authorisation is None else 201, authorisation)
            return
        receipt = gateway.capture(body["authorisation"])
        if receipt is None:
            self.close_connection = True  # without an answer
            return
        self._answer(201, receipt)

    def _answer(self, status: int, number: str | None) -> None:
        body = json.dumps({"id": number}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # the shop has closed the connection
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        """Log nothing, because the shop has a log of its own."""
