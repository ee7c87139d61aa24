"""Real servers in processes of their own, and a client that sees every byte."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from .event_log import EventLog

TESTS = Path(__file__).parents[1]

SERVERS: dict[str, str] = {
    "uvicorn": "uvicorn --loop asyncio --port {port}",
    "uvicorn-uvloop": "uvicorn --loop uvloop --port {port}",
    "uvicorn-workers": "uvicorn --loop asyncio --workers 2 --port {port}",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port}",
    "hypercorn-trio": "hypercorn --worker-class trio --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi --port {port}",
    "gunicorn": "gunicorn --worker-class uvicorn_worker.UvicornWorker --bind 127.0.0.1:{port}",
}
"""The command of each, after `python -m`; the application comes behind."""

ONE_WORKER = [name for name in SERVERS if name != "uvicorn-workers"]


class Process(Protocol):
    """As much of `subprocess.Popen` as is needed here."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class ServerProcess:
    """A server that runs as long as the block does; whatever is left of it then is killed."""

    def __init__(
        self, server: str, directory: Path, *options: str, app: str = "servers.app:app", path: Path = TESTS, **env: str
    ) -> None:
        self.port = free_port()
        self.log = EventLog(directory / "events")
        self._output = directory / "output"
        python_path = os.pathsep.join([str(path), str(TESTS), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"TASKS_EVENTS": str(directory / "events"), "PYTHONPATH": python_path} | env
        command = SERVERS[server].format(port=self.port).split()
        self._process = self.start([*command, *options, app], environment, self._output)

    def start(self, command: list[str], environment: dict[str, str], output: Path) -> Process:
        """Run `python -m` with this command, in a process group of its own."""
        with output.open("w") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            )

    def wait_ready(self, workers: int = 1) -> None:
        """Return when the application has started in each worker, and the port is open."""

        def ready() -> bool:
            if self._process.poll() is not None:
                raise AssertionError(f"The server ended before it was ready. {self.log}\n{self.output}")
            return self.log.names().count("lifespan opened") == workers and self.accepts()

        self.log.wait_until(ready, "the server", 30)

    def accepts(self) -> bool:
        """Return whether a process listens on the port."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, as an orchestrator does."""
        os.kill(self._process.pid, number)

    def press_ctrl_c(self) -> None:
        """Send SIGINT to all processes of the server, as a terminal does."""
        os.killpg(self._process.pid, signal.SIGINT)

    def wait(self, timeout: float = 20.0) -> int:
        """Return the exit code when the process has ended."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"The server did not end within {timeout:g} s. {self.log}\n{self.output}") from None

    @property
    def output(self) -> str:
        return self._output.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.log.close()
        if exc is not None:
            exc.add_note(f"{self.log}\nOutput of the server:\n{self.output}")


class Client:
    """One connection, one request, and the bytes as they come."""

    def __init__(self, port: int, method: str, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self.received = b""
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self._socket.sendall(head.encode())

    def read_until(self, text: bytes) -> None:
        self._read(lambda: text in self.received)
        if text not in self.received:
            raise AssertionError(f"The connection ended before {text!r} came: {self.received!r}")

    def read_response(self) -> bytes:
        """Read to the last byte; to the end of the connection if there is no response."""
        self._read(self._is_complete)
        return self.received

    def _read(self, enough: Callable[[], bool]) -> None:
        with suppress(ConnectionResetError):
            while not enough() and (received := self._socket.recv(65536)):
                self.received += received

    def _is_complete(self) -> bool:
        # The end of the connection is not what to wait for: after a stream hypercorn leaves it open on trio.
        head, _, body = self.received.partition(b"\r\n\r\n")
        if b"chunked" in head:
            return body.endswith(b"0\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        return length is not None and len(body) >= int(length[1])

    def reset(self) -> None:
        """Go away in the middle, as a killed client does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def request(port: int, method: str, path: str) -> bytes:
    """Send a request and return all of the response."""
    with Client(port, method, path) as client:
        return client.read_response()


def free_port() -> int:
    """Find a port below those that the kernel gives to clients, so that no client takes it before the server."""
    while True:
        port = random.randrange(15000, 30000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
