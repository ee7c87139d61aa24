"""A real browser for tests: Chromium without a window, and a proxy that cuts its connections."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str:
    """Return the path of Chromium or Chrome; install Chromium where that is possible, and skip the test elsewhere."""
    found = _installed()
    if found is None and shutil.which("apt-get") and getattr(os, "geteuid", lambda: 1)() == 0:
        with suppress(subprocess.SubprocessError):
            for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
                subprocess.run(["apt-get", "--quiet", *command], check=True, capture_output=True, timeout=240)
        found = _installed()
    if found is None:
        pytest.skip("no Chromium or Chrome on PATH, and it cannot be installed: set CHROME to the path of one")
    return found


def _installed() -> str | None:
    paths = (shutil.which(name) for name in (os.environ.get("CHROME", ""), *_NAMES) if name)
    return next((path for path in paths if path is not None), None)


@contextmanager
def browsing(url: str, profile: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Open a page in a browser for as long as the block runs."""
    options = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-sandbox"]
    with (profile.parent / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [find_browser(), *options, f"--user-data-dir={profile}", url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


class CuttingProxy:
    """Passes connections on to a server, and cuts a stream of events after so many bytes."""

    def __init__(self, port: int, cut_after: int) -> None:
        self._server = port
        self._cut_after = cut_after
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
                threading.Thread(target=self._pass_events, args=(server, client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def _pass_events(self, source: socket.socket, target: socket.socket) -> None:
        of_stream = -1
        with suppress(OSError), source, target:
            while data := source.recv(65536):
                if b"text/event-stream" in data:
                    of_stream = 0
                target.sendall(data)
                if of_stream >= 0:
                    of_stream += len(data)
                    if of_stream > self._cut_after:
                        self.cuts += 1
                        target.shutdown(socket.SHUT_RDWR)
                        return
